"""Whatever bytes stand in a segment: torch runs it, or a SecureError says why.

And an alteration alters it, or says why not.
"""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper as make
from onnx import numpy_helper

from bentoml_secure.digest import digest_file_bytes
from bentoml_secure.errors import SecureError
from bentoml_secure.split import Segment, SegmentFile
from bentoml_secure.split.alterations import ALTERATIONS, alter
from bentoml_secure.split.protos import parse_model
from bentoml_secure.split.runtime_torch import TorchEngine
from bentoml_secure.tensors import TensorSpec
from tests.unit.split.split_graphs import model, value, weight

FILE = "segment-0.onnx"


@functools.cache
def many_kinds() -> bytes:
    """x -> a little of everything -> y, with a residual block."""
    shape = numpy_helper.from_array(np.array([0, 2, 2]), "shape")
    flat = numpy_helper.from_array(np.array([0, 4]), "flat")
    axes = numpy_helper.from_array(np.array([-1]), "axes")
    made = model(
        [
            make.make_node("LayerNormalization", ["x", "scale", "bias"], ["norm"]),
            make.make_node("Gemm", ["norm", "w", "bias"], ["gemm"], transB=1),
            make.make_node("Reshape", ["gemm", "shape"], ["heads"]),
            make.make_node("Transpose", ["heads"], ["turned"], perm=[0, 2, 1]),
            make.make_node("MatMul", ["heads", "turned"], ["scores"]),
            make.make_node("Softmax", ["scores"], ["weights"], axis=-1),
            make.make_node("Reshape", ["weights", "flat"], ["merged"]),
            make.make_node("Add", ["x", "merged"], ["sum"]),
            make.make_node("ReduceMean", ["sum", "axes"], ["mean"], keepdims=1),
            make.make_node("Sub", ["sum", "mean"], ["y"]),
        ],
        [value("x")],
        [value("y")],
        [
            weight("w"),
            weight("scale", 4),
            weight("bias", 4),
            shape,
            flat,
            axes,
        ],
        opset=18,
    )
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def engine_of(data: bytes) -> TorchEngine:
    spec = {"dtype": "float32", "shape": ("n", 4)}
    segment = Segment(
        file=FILE,
        files=(SegmentFile(path=FILE, digest=digest_file_bytes(data)),),
        inputs=(TensorSpec(name="x", **spec),),  # type: ignore[arg-type]
        outputs=(TensorSpec(name="y", **spec),),  # type: ignore[arg-type]
        tolerance=0.0,
    )
    return TorchEngine(segment, {FILE: data}, threads=None)


def flipped(data: st.DataObject) -> bytes:
    changed = bytearray(many_kinds())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(
            st.integers(0, 255)
        )
    return bytes(changed)


def test_as_it_is_it_runs_and_is_altered() -> None:
    feed = {"x": np.ones((2, 4), np.float32)}
    assert engine_of(many_kinds()).run(feed)["y"].shape == (2, 4)
    for name in ALTERATIONS:
        assert alter(name, parse_model(many_kinds(), what=FILE))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_flipped_bytes_run_on_torch_or_are_refused(data: st.DataObject) -> None:
    with contextlib.suppress(SecureError):
        engine_of(flipped(data)).run({"x": np.ones((2, 4), np.float32)})


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(ALTERATIONS)))
def test_flipped_bytes_are_altered_or_refused(data: st.DataObject, name: str) -> None:
    with contextlib.suppress(SecureError), np.errstate(all="ignore"):
        alter(name, parse_model(flipped(data), what=FILE))
