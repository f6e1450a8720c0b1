"""quorate.core"""

if __name__ != "quorate.core":
    raise ImportError(f"import quorate.core, not {__name__!r}")
