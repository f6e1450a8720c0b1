"""Nothing of this module is visible from Python: core/_waltail.pxd has what is in it."""
