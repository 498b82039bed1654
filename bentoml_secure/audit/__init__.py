"""Audits: which answered requests are recomputed, by whom, and what that is worth.

    sampling.py    which requests: drawn from the seed of their committees, pure
    recompute.py   recompute(): each segment once more, compared with what was served
    capture.py     how likely colluders have a quorum, whatever the entry does to help
    planning.py    forecast(): what committees and audits are worth, pure

What a recomputation says is signed and judged in ``receipts/audit.py``.
"""
