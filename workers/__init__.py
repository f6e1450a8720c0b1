"""quorate.workers"""

if __name__ != "quorate.workers":
    raise ImportError(f"import quorate.workers, not {__name__!r}")
