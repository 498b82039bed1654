"""Cut a model into segments that anyone can run, one after the other.

A plan (``plan.json`` beside the segments' files) says what each segment reads and
makes under the model's own names, and pins every byte that is loaded.

    plan = split_onnx("model.onnx", "plan", segments=3)
    outputs = run_chain(Path("plan"), {"input": array})

Reading a plan is cheap: what needs onnx, onnxruntime or torch is imported when it is
first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bentoml_secure.split.plan import (
    PLAN_FILE,
    CalibrationRecord,
    Plan,
    Runtime,
    Segment,
    SegmentFile,
    load_plan,
    parse_plan,
    read_file,
)
from bentoml_secure.split.runtimes import GraphLevel, PermittedRuntime, RuntimeChoice

if TYPE_CHECKING:
    from bentoml_secure.split.alterations import ALTERATIONS, alter
    from bentoml_secure.split.exporting import split_torch
    from bentoml_secure.split.inlining import inline_segment
    from bentoml_secure.split.runtime import (
        Chain,
        LoadedSegment,
        load_chain,
        load_segment,
        open_segment,
        require_runtime,
        run_chain,
    )
    from bentoml_secure.split.samples import read_samples
    from bentoml_secure.split.splitting import SplitWarning, split_onnx

__all__ = [
    "ALTERATIONS",
    "CalibrationRecord",
    "Chain",
    "GraphLevel",
    "LoadedSegment",
    "PLAN_FILE",
    "PermittedRuntime",
    "Plan",
    "Runtime",
    "RuntimeChoice",
    "Segment",
    "SegmentFile",
    "SplitWarning",
    "alter",
    "inline_segment",
    "load_chain",
    "load_plan",
    "load_segment",
    "open_segment",
    "parse_plan",
    "read_file",
    "read_samples",
    "require_runtime",
    "run_chain",
    "split_onnx",
    "split_torch",
]

_LATE = {
    "ALTERATIONS": "alterations",
    "alter": "alterations",
    "inline_segment": "inlining",
    "SplitWarning": "splitting",
    "Chain": "runtime",
    "LoadedSegment": "runtime",
    "load_chain": "runtime",
    "load_segment": "runtime",
    "open_segment": "runtime",
    "read_samples": "samples",
    "require_runtime": "runtime",
    "run_chain": "runtime",
    "split_onnx": "splitting",
    "split_torch": "exporting",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
