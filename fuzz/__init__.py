"""Fuzzing of every parser that reads bytes from outside.

Each module is a target: ``seeds()`` and ``one(data)``, which raises on a fault. Run one
with ``python -m fuzz NAME`` (and libFuzzer's options), all with ``python -m fuzz``.
"""
