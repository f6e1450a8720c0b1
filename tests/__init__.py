"""Tests: one file per module, and the helpers that several of them share."""
