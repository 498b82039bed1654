"""Circuits and a set-up for receipts with proofs, made once per process.

A plan of which every segment multiplies four numbers by the identity: what is proven
is cheap to prove, and what honest testing replicas answer.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bentoml_secure.proofs.backends.ezkl import Ezkl
from bentoml_secure.proofs.boundary import SaltForm
from bentoml_secure.proofs.links import Link
from bentoml_secure.proofs.proof import Parameters
from bentoml_secure.proofs.srs import SrsRecord
from bentoml_secure.proofs.srs_folder import SrsFolder
from bentoml_secure.scenario import Proving
from bentoml_secure.testing.deployment import Deployment, build_deployment, make_plan
from bentoml_secure.testing.proof_set_up import ProofSetUp, make_set_up
from bentoml_secure.testing.proofs import Records, prove_draft
from bentoml_secure.testing.receipts import Draft, build_draft

PARAMETERS = Parameters(
    scale=7,
    decomposition_base=256,
    decomposition_legs=3,
    inner_columns=2,
    logrows=11,
    lookup_bound=0,
)
SALT = SaltForm.below(256**3)
LONG_SALT = SaltForm.below(256**3, Link.POLYCOMMIT.salt_bits)
FEATURES = 4
IDENTITY = np.eye(FEATURES, dtype=np.float32)


def circuit(weights: np.ndarray, *, relu: bool = False, salt: SaltForm = SALT) -> bytes:
    """Return the graph of one segment: boundary and next salt in, boundary out."""
    width = len(weights)
    constants = {
        "from": np.array([0]),
        "to": np.array([width]),
        "axis": np.array([1]),
        "weights": weights.astype(np.float32),
    }
    bent = [helper.make_node("Relu", ["product"], ["bent"])] if relu else []
    nodes = [
        helper.make_node("Slice", ["boundary", "from", "to", "axis"], ["x"]),
        helper.make_node("MatMul", ["x", "weights"], ["product"]),
        *bent,
        helper.make_node(
            "Concat",
            ["bent" if relu else "product", "next_salt"],
            ["boundary_out"],
            axis=1,
        ),
    ]

    def row(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])

    behind = salt.elements
    graph = helper.make_graph(
        nodes,
        "segment",
        [row("boundary", width + behind), row("next_salt", behind)],
        [row("boundary_out", width + behind)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return bytes(model.SerializeToString())


@functools.cache
def folder() -> Path:
    """Return a folder of this process, which ends with it."""
    made = tempfile.TemporaryDirectory(prefix="bsec-proven-")
    _KEPT.append(made)
    return Path(made.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def srs(logrows: int = PARAMETERS.logrows) -> tuple[SrsRecord, Path]:
    """Return a string that was generated here, and its file."""
    made = SrsFolder(folder() / "srs")
    file = made.generate(logrows)
    return made.record([logrows]), file.path


def set_up_with(
    circuits: Sequence[bytes],
    name: str = "keys",
    *,
    parameters: Parameters = PARAMETERS,
    salt: SaltForm = SALT,
    link: Link = Link.HASHED,
) -> ProofSetUp:
    """Set up circuits of a plan of as many segments."""
    keys = folder() / name
    keys.mkdir(exist_ok=True)
    record, file = srs(parameters.logrows)
    return make_set_up(
        make_plan(len(circuits), provable=True),
        circuits,
        parameters,
        salt=salt,
        srs=record,
        srs_file=file,
        folder=keys,
        backend=Ezkl(),
        link=link,
    )


@functools.cache
def committing() -> ProofSetUp:
    """Return the set-up of three segments, linked by commitments."""
    return set_up_with(
        [circuit(IDENTITY, salt=LONG_SALT)] * 3,
        "committing",
        # The longer salt is hashed at the model's own ends, and takes rows.
        parameters=replace(PARAMETERS, logrows=12),
        salt=LONG_SALT,
        link=Link.POLYCOMMIT,
    )


@functools.cache
def set_up() -> ProofSetUp:
    """Return the set-up of two segments."""
    return set_up_with([circuit(IDENTITY), circuit(IDENTITY, relu=True)])


def deploy(
    proving: ProofSetUp | None = None, proof: str = "every", **terms: object
) -> Deployment:
    """Return a deployment that proves."""
    made = proving or set_up()
    return build_deployment(
        segments=len(made.keys),
        set_up=made,
        terms={"proof": Proving(proof), **terms},
    )


@functools.cache
def proven(label: str = "a request", infers: int = 1) -> tuple[Draft, Records]:
    """Return a request to ``deploy()``, and its proofs."""
    draft = build_draft(_deployed(), label=label, infers=infers)
    return draft, prove_draft(draft)


@functools.cache
def _deployed() -> Deployment:
    return deploy()
