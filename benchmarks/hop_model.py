"""The model of the hop benchmark: a chain of y = 1.0001 x, one node per segment."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from bentoml_secure.digest import digest_file_bytes, digest_json
from bentoml_secure.split.plan import (
    PLAN_FILE,
    Plan,
    Runtime,
    Segment,
    SegmentFile,
)
from bentoml_secure.tensors import TensorSpec

SEGMENTS = 2
FACTOR = 1.0001


def spec(index: int) -> TensorSpec:
    """Return the tensor between segment ``index - 1`` and ``index``."""
    return TensorSpec(name=f"x{index}", dtype="float32", shape=("n",))


def segment_model(index: int) -> bytes:
    """Return segment ``index`` as ONNX bytes."""
    values = [
        helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["n"])
        for i in (index, index + 1)
    ]
    factor = helper.make_tensor("factor", TensorProto.FLOAT, [], [FACTOR])
    node = helper.make_node("Mul", [f"x{index}", "factor"], [f"x{index + 1}"])
    graph = helper.make_graph([node], "hop", values[:1], values[1:], [factor])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def write_plan(folder: Path, count: int = SEGMENTS) -> None:
    """Write a chain as a split plan; each segment's file serves BentoML as well.

    Args:
        folder: Of the plan.
        count: Segments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    segments = []
    for index in range(count):
        data, file = segment_model(index), f"segment-{index}.onnx"
        (folder / file).write_bytes(data)
        segments.append(
            Segment(
                file=file,
                files=(SegmentFile(path=file, digest=digest_file_bytes(data)),),
                inputs=(spec(index),),
                outputs=(spec(index + 1),),
                tolerance=2e-5,
            )
        )
    plan = Plan(
        version=1,
        model_name="hop",
        model_digest=digest_json([segment.to_json() for segment in segments]),
        inputs=(spec(0),),
        outputs=(spec(count),),
        runtime=Runtime(version=">=1.20,<2"),
        segments=tuple(segments),
    )
    (folder / PLAN_FILE).write_text(json.dumps(plan.to_json()))
