"""Audits: which requests are recomputed or proven, by whom, and what that is worth.

    sampling.py    which requests: drawn from the seed of their committees, pure
    recompute.py   recompute(): each segment once more, compared with what was served
    capture.py     how likely colluders have a quorum, whatever the entry does to help
    freivalds.py   whether a product of integer matrices is right, without making it
    merkle.py      one digest for all receipts of an epoch, a short path for each, pure
    challenge.py   epochs, and which of their receipts must be proven, pure
    planning.py    forecast(): what committees and audits are worth, pure

What a recomputation says is signed and judged in ``receipts/audit.py``, where a receipt
stands in its epoch in ``receipts/epoch.py``.
"""
