"""Cut a model into segments that anyone can run, one after the other.

A plan (``plan.json`` beside the segments' files) says what each segment reads and
makes under the model's own names, and pins every byte that is loaded.
"""

from __future__ import annotations

from bentoml_secure.split.plan import (
    PLAN_FILE,
    Plan,
    Runtime,
    Segment,
    SegmentFile,
    load_plan,
    parse_plan,
    read_file,
)

__all__ = [
    "PLAN_FILE",
    "Plan",
    "Runtime",
    "Segment",
    "SegmentFile",
    "load_plan",
    "parse_plan",
    "read_file",
]
