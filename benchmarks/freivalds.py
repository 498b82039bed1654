"""What a Freivalds check costs beside recomputing: ``python -m benchmarks.freivalds``.

recompute_ms_<size>   ONNX Runtime's MatMulInteger, uint8 by int8, as a segment runs it
check_ms_<size>       the check of its answer, secret and its image made beforehand
secret_ms_<size>      making them: once for each secret, until an answer is refused
ratio_<size>          recompute over check
float_ms_<size>       ONNX Runtime's float32 MatMul of the same sizes, for comparison

A size is batch x inputs x outputs. One thread; best of several.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.report import report
from bentoml_secure.audit.freivalds import FreivaldsCheck
from bentoml_secure.split.integer_layer import IntegerLayer
from bentoml_secure.split.runtime import session_options
from bentoml_secure.split.runtimes import GraphLevel
from bentoml_secure.tensors import Array

SIZES = ((1, 1024, 1024), (64, 1024, 1024), (256, 1024, 1024), (64, 4096, 4096))


def best_ms(call: Callable[[], object], repetitions: int) -> float:
    """Return the shortest of several times, after one that is not counted."""
    call()
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times) * 1e3


def session(operator: str, given: int, weights: Array) -> onnxruntime.InferenceSession:
    """Return a graph of one product with constant weights, on one thread."""
    made = TensorProto.INT32 if operator == "MatMulInteger" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", given, ["batch", len(weights)])],
        [helper.make_tensor_value_info("y", made, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        session_options(1, GraphLevel.EXTENDED),
        providers=["CPUExecutionProvider"],
    )


def measure(batch: int, k: int, n: int, repetitions: int) -> dict[str, float]:
    """Return one size's figures."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (batch, k)).astype(np.uint8)
    weights = rng.integers(-127, 128, (k, n)).astype(np.int8)
    integers = session("MatMulInteger", TensorProto.UINT8, weights)
    floats = session("MatMul", TensorProto.FLOAT, weights.astype(np.float32))
    (made,) = integers.run(None, {"x": x})
    layer = IntegerLayer(
        given="x",
        made="y",
        weights=weights.astype(np.int64),
        bias=np.zeros(n, np.int64),
        zero_point=0,
        largest=2**31 - 1,
    )
    check = FreivaldsCheck(layer, draw=secrets.token_bytes)
    wide = x.astype(np.float32)
    size = f"{batch}x{k}x{n}"
    recomputed = best_ms(lambda: integers.run(None, {"x": x}), repetitions)
    checked = best_ms(lambda: check.require(x, made), repetitions)
    return {
        f"recompute_ms_{size}": recomputed,
        f"check_ms_{size}": checked,
        f"secret_ms_{size}": best_ms(
            lambda: FreivaldsCheck(layer, draw=secrets.token_bytes), 3
        ),
        f"ratio_{size}": recomputed / checked,
        f"float_ms_{size}": best_ms(lambda: floats.run(None, {"x": wide}), repetitions),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for size in SIZES:
        figures |= measure(*size, options.repetitions)
    if options.json:
        found = report(
            "freivalds",
            figures,
            "numpy",
            "onnxruntime",
            repetitions=options.repetitions,
            threads=1,
        )
        json.dump(found, sys.stdout)
        return
    for name, value in figures.items():
        print(f"{name:32}{value:10.3f}")


if __name__ == "__main__":
    main()
