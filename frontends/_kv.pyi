"""No Python surface: the pump calls `check`."""
