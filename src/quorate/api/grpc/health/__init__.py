"""A part of a protobuf package's name."""
