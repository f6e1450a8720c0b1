"""No Python surface: used by apply and by listings."""
