"""Whatever bytes stand in a model or segment: it runs, or a SecureError says why."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bentoml_secure.digest import digest_file_bytes
from bentoml_secure.errors import SecureError
from bentoml_secure.split import (
    PLAN_FILE,
    Plan,
    open_segment,
    parse_plan,
    split_onnx,
)
from bentoml_secure.split.protos import parse_model
from bentoml_secure.split.samples import _evaluate, _expression
from tests.unit.split import split_graphs as graphs

pytestmark = pytest.mark.filterwarnings("ignore::bentoml_secure.split.SplitWarning")


@functools.cache
def plan_and_segment() -> tuple[dict[str, object], bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split_onnx(graphs.save(graphs.branches(), folder), folder / "p", segments=2)
        document = json.loads((folder / "p" / PLAN_FILE).read_text())
        return document, (folder / "p" / "segment-1.onnx").read_bytes()


def with_segment(data: bytes) -> Plan:
    document = json.loads(json.dumps(plan_and_segment()[0]))
    document["segments"][1]["files"][0]["digest"] = digest_file_bytes(data)
    return parse_plan(json.dumps(document).encode())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_segment_with_flipped_bytes_loads_or_is_refused(data: st.DataObject) -> None:
    changed = bytearray(plan_and_segment()[1])
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(
            st.integers(0, 255)
        )
    with contextlib.suppress(SecureError):
        open_segment(
            with_segment(bytes(changed)), 1, {"segment-1.onnx": bytes(changed)}
        )


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(sorted(graphs.ALL)), st.data())
def test_a_model_with_flipped_bytes_is_split_or_refused(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    changed = bytearray(graphs.ALL[name]().SerializeToString())
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(
        st.integers(1, 255)
    )
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(changed)
        with contextlib.suppress(SecureError), warnings.catch_warnings():
            # A flipped weight may overflow in the comparison; that is not a failure.
            warnings.simplefilter("ignore", RuntimeWarning)
            with np.errstate(all="ignore"):
                split_onnx(path, Path(folder) / "plan", segments=2)


@given(st.binary(max_size=300))
@example(b"")
def test_random_bytes_are_a_model_or_refused(data: bytes) -> None:
    with contextlib.suppress(SecureError):
        parse_model(data, what="model")


@given(st.text("sp2*+-/() .,'n", max_size=20) | st.text(max_size=20))
def test_any_symbol_gives_a_size(symbol: str) -> None:
    expression = _expression(symbol)
    if expression is not None:
        assert isinstance(_evaluate(expression, {"s": 3}, 8), int)
