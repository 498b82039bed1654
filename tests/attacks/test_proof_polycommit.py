"""Boundaries that are committed to, in place of hashed: they link, and tell everything.

ezkl's visibility ``polycommit`` costs no rows. But the column is not blinded, and its
value at one point stands in every proof. The salt keeps nobody from reading it: all of
it, and the activations behind it, follow from one proof. So settings of such circuits
are refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bentoml_secure.errors import ProofError
from bentoml_secure.proofs.backends.ezkl_child import element, integer
from bentoml_secure.proofs.proof import BoundaryValues
from bentoml_secure.testing.proof_set_up import LIMITS
from tests import proven_case
from tests.attacks.columns import Column, Opened, small_solution, take_apart

COMMITTED = "KZGCommit"
ACTIVATIONS = (300, 17, 2, 1023)
ACTIVATION_BITS = 10
LOGROWS = proven_case.PARAMETERS.logrows
BOUNDARY, SALT, NEXT = range(3)
"""Order of commitments, and of evaluations."""

_PROVE = """
import sys
from pathlib import Path
import ezkl

circuit, pk, vk, settings, srs, folder = sys.argv[1:]
for given in sorted(Path(folder).glob("*.input")):
    witness, proof = str(given.with_suffix(".w")), str(given.with_suffix(".proof"))
    ezkl.gen_witness(str(given), circuit, witness)
    ezkl.prove(witness, circuit, pk, proof_path=proof, srs_path=srs)
    assert ezkl.verify(proof, settings, vk, srs_path=srs) is True
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """One run of a segment whose boundaries are committed to; its proof verifies."""

    boundary: BoundaryValues
    salt: BoundaryValues
    out: BoundaryValues
    proof: Opened


def committing(settings: bytes) -> bytes:
    """Return settings of the same circuit, its boundaries committed to."""
    document = json.loads(settings)
    run_args = document["run_args"]
    run_args["input_visibility"] = run_args["output_visibility"] = COMMITTED
    salt = proven_case.SALT.elements
    width = proven_case.FEATURES + salt
    sizes = {"polycommit": [width, salt, width], "poseidon": [0, [0]]}
    document["module_sizes"] = sizes
    return json.dumps(document).encode()


@pytest.fixture(scope="module")
def settings() -> bytes:
    """Of a segment as it is proven, hashed."""
    backend = proven_case.set_up().backend
    model = proven_case.circuit(proven_case.IDENTITY)
    return backend.measure(model, proven_case.PARAMETERS, LIMITS)[0]


@pytest.fixture(scope="module")
def runs(
    settings: bytes, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Proven, Proven, Proven]:
    """Two segments in a row; and the second, of a boundary that is one unit off."""
    first, second, third = (proven_case.SALT.expand(bytes([n]) * 32) for n in (1, 2, 3))
    off = (ACTIVATIONS[0] + 1, *ACTIVATIONS[1:])
    given = [
        ((*ACTIVATIONS, *first), second),
        ((*ACTIVATIONS, *second), third),
        ((*off, *second), third),
    ]
    folder = tmp_path_factory.mktemp("committed")
    _prove(committing(settings), given, folder)
    made = []
    for index, (boundary, salt) in enumerate(given):
        witness = json.loads((folder / f"{index}.w").read_bytes())
        proof = json.loads((folder / f"{index}.proof").read_bytes())["proof"]
        made.append(
            Proven(
                boundary=boundary,
                salt=salt,
                out=tuple(integer(text) for text in witness["outputs"][0]),
                proof=take_apart(bytes(proof)),
            )
        )
    return made[0], made[1], made[2]


def _prove(
    settings: bytes, given: list[tuple[BoundaryValues, BoundaryValues]], folder: Path
) -> None:
    """Prove in a process of its own, as ezkl keeps what it reads from environments."""
    backend = proven_case.set_up().backend
    srs = proven_case.srs()[1]
    model = proven_case.circuit(proven_case.IDENTITY)
    circuit = backend.compile(model, settings, LIMITS)
    key = folder / "pk"
    key.touch()
    files = {"circuit": circuit, "settings": settings}
    files["vk"] = backend.set_up(circuit, srs, key, LIMITS)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for index, values in enumerate(given):
        witness = {"input_data": [[element(v) for v in each] for each in values]}
        (folder / f"{index}.input").write_text(json.dumps(witness))
    paths = [folder / name for name in ("circuit", "pk", "vk", "settings")]
    subprocess.run(
        [sys.executable, "-c", _PROVE, *map(str, (*paths, srs, folder))],
        env={**os.environ, "EZKL_REPO_PATH": str(folder)},
        check=True,
        capture_output=True,
        timeout=120,
    )


def test_equal_boundaries_have_equal_commitments(
    runs: tuple[Proven, Proven, Proven],
) -> None:
    first, second, off = runs
    came_out = first.proof.points[NEXT]
    assert second.proof.points[BOUNDARY] == came_out
    assert off.proof.points[BOUNDARY] != came_out


def test_every_proof_tells_a_value_of_each_column(
    runs: tuple[Proven, Proven, Proven],
) -> None:
    run, column = runs[0], Column(LOGROWS)
    boundary, salt, out = run.proof.values[:3]
    point = column.point((run.boundary, boundary), (run.salt, salt))
    assert column.value(run.out, point) == out


def test_who_reads_one_proof_knows_the_boundary(
    runs: tuple[Proven, Proven, Proven],
) -> None:
    """Nothing is taken from the run but sizes and, for short, the public point."""
    run, column = runs[0], Column(LOGROWS)
    told = run.proof.values
    point = column.point((run.boundary, told[BOUNDARY]), (run.salt, told[SALT]))
    weights, empty = column.weights(point), column.value((), point)
    size = proven_case.SALT.elements
    salt = small_solution(weights[:size], told[SALT] - empty, proven_case.SALT.bits)
    assert tuple(salt) == run.salt
    width = proven_case.FEATURES
    behind = sum(w * s for w, s in zip(weights[width:], salt, strict=False))
    rest = told[NEXT] - empty - behind
    assert tuple(small_solution(weights[:width], rest, ACTIVATION_BITS)) == ACTIVATIONS


@pytest.mark.parametrize("side", ["input", "output"])
def test_settings_that_commit_are_refused(settings: bytes, side: str) -> None:
    backend = proven_case.set_up().backend
    document = json.loads(settings)
    document["run_args"][f"{side}_visibility"] = COMMITTED
    for refused in (json.dumps(document).encode(), committing(settings)):
        with pytest.raises(ProofError, match="visibility: got 'KZGCommit'"):
            backend.require_settings(refused)
