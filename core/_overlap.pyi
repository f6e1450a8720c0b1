"""No Python surface: see `_request.judge`."""
