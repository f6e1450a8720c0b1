"""Nothing of a pool is seen from Python."""
