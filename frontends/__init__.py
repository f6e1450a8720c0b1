"""quorate.frontends"""

if __name__ != "quorate.frontends":
    raise ImportError(f"import quorate.frontends, not {__name__!r}")
