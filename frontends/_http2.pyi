PREFACE: bytes
"""No Python surface: `_grpc.Connection` is the way in."""
