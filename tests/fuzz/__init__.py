"""Fuzzing of what reads files: the bolt reader, the log's reader, snapshot files, the restore.

Rules:
1. Whatever the bytes, a reader succeeds or raises an expected error (`core/errors.py`'s `Fatal`,
   `KeyError` where it is documented), in bounded time and memory. Where it succeeds, the target
   compares with what the plain models say, and walks the invariants.
2. A target has four parts: `seeds` (small good files, of which `corpus/` is made), `mutate` (knows
   the format: it changes what a checksum covers and then the checksum, too), `run` (True when
   the input was accepted), and its name.
3. Everything follows from a seed: a failure prints the command that makes it again, and keeps the
   input in a file.

What calls what: `__main__` -> `engines` (Atheris when it is there, else our own loop) -> `targets`
-> `bolt`, `wal`, `snapshot`, `restore` -> `mutations`.
"""
