"""A small network that is proven segment by segment: its plan, set-up and owner.

    case = proof_case(folder)            # 2 segments, about 3 s
    setup = ProofFolder.read(case.proofs, case.plan)

Four measurements, eight hidden units with ReLU, three scores. Parameters are given, not
searched for: every circuit has 2**11 rows, and a proof takes about a CPU second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bentoml_secure.proofs.links import Link
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.proofs.proof import Parameters
from bentoml_secure.proofs.setup import Demands, set_up
from bentoml_secure.signing import SigningKey
from bentoml_secure.split import Plan, load_plan, split_onnx
from bentoml_secure.tensors import Array

INPUT = "measurements"
OUTPUT = "scores"
FEATURES, HIDDEN, SCORES = 4, 8, 3
ACCURACY = 0.1
PARAMETERS = Parameters(
    scale=7,
    decomposition_base=512,
    decomposition_legs=3,
    inner_columns=1,
    logrows=11,
    lookup_bound=0,
)
CUTS = {1: (), 2: ("hidden",), 3: ("hidden", "more")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofCase:
    """What was made.

    Attributes:
        folder: Of the plan.
        proofs: Of the set-up.
        srs: Of the structured reference strings, unsafe ones.
        plan: Whose segments are proven.
        manifest: Of the set-up.
        owner: Who signed it.
        samples: Of the model's inputs, as the set-up was given them.
    """

    folder: Path
    proofs: Path
    srs: Path
    plan: Plan
    manifest: Manifest
    owner: SigningKey
    samples: dict[str, Array]


def network(*, activation: str = "Relu", seed: int = 5) -> ModelProto:
    """Return the network, its weights drawn."""
    drawn = np.random.default_rng(seed)
    sizes = (FEATURES, HIDDEN, HIDDEN, SCORES)
    weights, nodes, given = [], [], INPUT
    names = ("hidden", "more", OUTPUT)
    for index, (rows, columns) in enumerate(pairwise(sizes)):
        made = names[index]
        last = made == OUTPUT
        matrix = drawn.standard_normal((rows, columns)) / np.sqrt(rows)
        bias = drawn.standard_normal(columns) / 4
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{index}"))
        weights.append(numpy_helper.from_array(bias.astype(np.float32), f"b{index}"))
        linear = made if last else f"linear{index}"
        nodes.append(
            helper.make_node("Gemm", [given, f"w{index}", f"b{index}"], [linear])
        )
        if not last:
            nodes.append(helper.make_node(activation, [linear], [made]))
        given = made
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "network",
        [value(INPUT, TensorProto.FLOAT, ["batch", FEATURES])],
        [value(OUTPUT, TensorProto.FLOAT, ["batch", SCORES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def measurements(count: int, *, seed: int = 6) -> dict[str, Array]:
    """Return so many inputs, stacked."""
    drawn = np.random.default_rng(seed).standard_normal((count, FEATURES))
    return {INPUT: drawn.astype(np.float32)}


def proof_plan(folder: Path, *, segments: int = 2, activation: str = "Relu") -> Plan:
    """Split the network into a folder.

    Args:
        folder: New.
        segments: 1, 2 or 3.
        activation: Operator between layers.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = folder.parent / f"{folder.name}.onnx"
    onnx.save(network(activation=activation), model)
    cuts = CUTS[segments]
    split_onnx(model, folder, segments=None if cuts else 1, cuts=cuts or None)
    return load_plan(folder)


def proof_case(
    folder: Path,
    *,
    segments: int = 2,
    srs: Path | None = None,
    link: Link = Link.HASHED,
) -> ProofCase:
    """Split the network and set proofs of it up.

    Args:
        folder: Of all that is made.
        segments: 1, 2 or 3.
        srs: Folder of structured reference strings that may be there already.
        link: How boundaries between segments are stated.
    """
    # Commitments take a longer salt, which is hashed at the ends and takes rows.
    logrows = PARAMETERS.logrows + (link is Link.POLYCOMMIT)
    parameters = replace(PARAMETERS, logrows=logrows)
    plan = proof_plan(folder / "plan", segments=segments)
    owner, samples = SigningKey.generate(), measurements(8)
    strings = srs or folder / "srs"
    made = set_up(
        folder / "plan",
        folder / "proofs",
        samples,
        owner,
        strings,
        demands=Demands(
            accuracy=ACCURACY,
            parameters=(parameters,) * segments,
            unsafe_srs=True,
            link=link,
        ),
    )
    return ProofCase(
        folder=folder / "plan",
        proofs=folder / "proofs",
        srs=strings,
        plan=plan,
        manifest=made.manifest,
        owner=owner,
        samples=samples,
    )
