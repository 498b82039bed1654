"""A plan that was split from a model, and a real proof set-up of it in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bentoml_secure.digest import canonical_json
from bentoml_secure.proofs.backends import open_backend
from bentoml_secure.proofs.boundary import SaltForm
from bentoml_secure.proofs.circuit import boundaries_of, circuit_model
from bentoml_secure.proofs.manifest import sign_manifest
from bentoml_secure.proofs.proof import Parameters
from bentoml_secure.proofs.srs_folder import SrsFolder
from bentoml_secure.split import Plan, read_file, split_onnx
from bentoml_secure.testing.proof_set_up import ProofSetUp, make_set_up

PARAMETERS = Parameters(
    scale=7,
    decomposition_base=256,
    decomposition_legs=3,
    inner_columns=2,
    logrows=11,
    lookup_bound=0,
)
SALT = SaltForm.below(256**3)
SHAPES = {"features": (1, 4), "hidden": (1, 8), "logits": (1, 3)}
MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """What a model's owner has.

    Attributes:
        plan: Of two segments, a layer each.
        plan_folder: Its files.
        folder: The proof set-up's files.
        srs_folder: Where the string is from.
        set_up: The same in memory.
        circuits: The graphs that its circuits are compiled from.
    """

    plan: Plan
    plan_folder: Path
    folder: Path
    srs_folder: Path
    set_up: ProofSetUp
    circuits: tuple[bytes, ...]


def layer(
    generator: np.random.Generator, name: str, inputs: int, outputs: int
) -> list[onnx.TensorProto]:
    weights = generator.normal(size=(inputs, outputs)).astype(np.float32)
    bias = generator.normal(size=outputs).astype(np.float32)
    return [
        numpy_helper.from_array(weights, f"{name}.weight"),
        numpy_helper.from_array(bias, f"{name}.bias"),
    ]


def write_model(path: Path) -> None:
    generator = np.random.default_rng(7)
    graph = helper.make_graph(
        [
            helper.make_node(
                "Gemm", ["features", "first.weight", "first.bias"], ["sum"]
            ),
            helper.make_node("Relu", ["sum"], ["hidden"]),
            helper.make_node(
                "Gemm", ["hidden", "second.weight", "second.bias"], ["logits"]
            ),
        ],
        "mlp",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        [*layer(generator, "first", 4, 8), *layer(generator, "second", 8, 3)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


def circuits_of(plan: Plan, folder: Path) -> list[bytes]:
    forms = boundaries_of(plan, SHAPES)
    return [
        circuit_model(
            segment,
            {
                file.path: read_file(
                    folder, file.path, file.digest, max_bytes=MAX_BYTES
                )
                for file in segment.files
            },
            inputs,
            outputs,
            SALT,
        )
        for segment, inputs, outputs in zip(
            plan.segments, forms, forms[1:], strict=False
        )
    ]


def write_folder(folder: Path, made: ProofSetUp) -> None:
    """Write a set-up in plain, as ``prove setup`` does."""
    for index, key in enumerate(made.keys):
        part = folder / str(index)
        part.mkdir(parents=True)
        assert isinstance(key.circuit, bytes)
        assert isinstance(key.key, Path)
        (part / "settings.json").write_bytes(key.verification.settings)
        (part / "vk").write_bytes(key.verification.key)
        (part / "circuit").write_bytes(key.circuit)
        (part / "pk").write_bytes(key.key.read_bytes())
    (folder / "srs").mkdir()
    srs = made.keys[0].srs
    (folder / "srs" / srs.name).write_bytes(srs.read_bytes())
    write_manifest(folder, made)


def write_manifest(folder: Path, made: ProofSetUp) -> None:
    """Write the manifest, which the owner signs whatever it says."""
    envelope = sign_manifest(made.manifest, made.owner)
    (folder / "manifest.json").write_bytes(canonical_json(envelope.to_json()))


@pytest.fixture(scope="session")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Owned:
    """Return a plan and its proof set-up; do not write into either."""
    base = tmp_path_factory.mktemp("owned")
    write_model(base / "mlp.onnx")
    plan = split_onnx(base / "mlp.onnx", base / "plan", cuts=["hidden"])
    strings = SrsFolder(base / "strings")
    string = strings.generate(PARAMETERS.logrows)
    (base / "keys").mkdir()
    circuits = circuits_of(plan, base / "plan")
    made = make_set_up(
        plan,
        circuits,
        PARAMETERS,
        salt=SALT,
        srs=strings.record([PARAMETERS.logrows]),
        srs_file=string.path,
        folder=base / "keys",
        backend=open_backend("ezkl"),
    )
    write_folder(base / "proofs", made)
    return Owned(
        plan=plan,
        plan_folder=base / "plan",
        folder=base / "proofs",
        srs_folder=strings.path,
        set_up=made,
        circuits=tuple(circuits),
    )
