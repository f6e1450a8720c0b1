"""No Python surface: decoded by workers and core alike; see `frontends._kv.judge`."""
