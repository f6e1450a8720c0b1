"""No Python surface: `_grpc` calls it."""
