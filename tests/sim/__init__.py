"""Simulated worlds: what `core` meets of the system, with faults on demand and by seed."""
