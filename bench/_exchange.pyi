"""Nothing of this module is visible to Python; other Cython modules use its .pxd."""
