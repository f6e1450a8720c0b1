# cython: language_level=3
"""The calls that Python lacks here; nothing of it is for other Cython modules."""
