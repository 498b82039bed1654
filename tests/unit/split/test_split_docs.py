"""The page on the format: its example runs, its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from bentoml_secure.split import load_plan, run_chain, split_onnx
from bentoml_secure.tensors import DTYPES
from tests.unit.split import split_graphs as graphs

PAGE = (Path(__file__).parents[3] / "docs" / "plan-format.md").read_text()


def test_the_example_computes_what_this_package_does(tmp_path: Path) -> None:
    path = graphs.save(graphs.many_ends(), tmp_path)
    split_onnx(path, tmp_path / "plan", segments=3)
    inputs = {
        "x": np.ones((2, 4), np.float32),
        "z": np.full((2, 4), 3, np.float32),
        "unused": np.zeros(1, np.float32),
    }
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"folder": str(tmp_path / "plan"), "inputs": inputs}
    with np.errstate(all="raise"):
        exec(example, names)  # noqa: S102
    want = run_chain(tmp_path / "plan", inputs)
    assert names["outputs"].keys() == want.keys()
    for name, array in want.items():
        assert names["outputs"][name].tobytes() == array.tobytes()


def test_every_field_of_a_plan_is_on_the_page(tmp_path: Path) -> None:
    path = graphs.save(graphs.masked(), tmp_path)
    split_onnx(path, tmp_path / "plan", segments=3)
    fields: set[str] = set()
    waiting: list[Any] = [load_plan(tmp_path / "plan").to_json()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            fields |= value.keys()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    assert {f for f in fields if f not in re.findall(r"[a-z_]+", PAGE)} == set()
    assert {"bool", "float16", "int8", "uint64"} <= DTYPES.keys()
