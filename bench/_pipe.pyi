"""Nothing of a pipe is seen from Python."""
