# cython: language_level=3
"""The one system call that Python lacks here; nothing of it is for other Cython modules."""
