"""No Python surface: see `_kv.judge`."""
