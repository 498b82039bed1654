"""A set-up: a folder that proves a plan, or nothing at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bentoml_secure.digest import digest_file_bytes
from bentoml_secure.errors import ConfigurationError, VerificationError
from bentoml_secure.proofs.admission import MEMORY_FACTOR
from bentoml_secure.proofs.backends import open_backend
from bentoml_secure.proofs.boundary import activations_of
from bentoml_secure.proofs.folder import ProofFolder
from bentoml_secure.proofs.proof import BoundaryValues, Limits, SegmentProof
from bentoml_secure.proofs.setup import Demands, set_up
from tests.proof_case import (
    ACCURACY,
    INPUT,
    PARAMETERS,
    ProofCase,
    measurements,
    proof_case,
)

LIMITS = Limits(memory_bytes=4 << 30, seconds=120, threads=2)
FIXED = Demands(accuracy=ACCURACY, parameters=(PARAMETERS,) * 2)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> ProofCase:
    return proof_case(tmp_path_factory.mktemp("case"))


def again(case: ProofCase, out: Path, demands: Demands = FIXED) -> ProofFolder:
    set_up(case.folder, out, case.samples, case.owner, case.srs, demands=demands)
    return ProofFolder.read(out, case.plan)


def test_its_keys_prove_the_plan_segment_by_segment(case: ProofCase) -> None:
    folder = ProofFolder.read(case.proofs, case.plan)
    manifest, backend = folder.manifest, open_backend("ezkl")
    inputs = activations_of(
        {INPUT: case.samples[INPUT][:1]}, manifest.segments[0].inputs, manifest.scale
    )
    boundary = inputs + manifest.salt.expand(bytes(32))
    proofs: list[SegmentProof] = []
    for index in range(2):
        made: list[BoundaryValues] = []
        salt = manifest.salt.expand(bytes([index + 1]) * 32)
        proofs.append(
            backend.prove(
                folder.proving_key(index), boundary, salt, LIMITS, made.append
            )
        )
        (boundary,) = made
    assert proofs[0].facts.output == proofs[1].facts.input
    keys = [folder.verification_key(index) for index in range(2)]
    pairs = list(zip(proofs, keys, strict=True))
    backend.verify(pairs, manifest.srs.verifier, LIMITS)


def test_the_manifest_says_what_the_folder_holds(case: ProofCase) -> None:
    manifest = ProofFolder.read(case.proofs, case.plan).manifest
    assert manifest == case.manifest
    assert manifest.plan == case.plan.digest
    assert manifest.signer_id == case.owner.public.key_id
    assert manifest.srs.unsafe
    assert (manifest.accuracy.bound, manifest.accuracy.samples) == (ACCURACY, 8)
    for index, segment in enumerate(manifest.segments):
        proving_key = case.proofs / str(index) / "pk"
        assert segment.proving_key_bytes == proving_key.stat().st_size
        assert segment.memory_bytes > MEMORY_FACTOR * segment.proving_key_bytes
    assert case.proofs.stat().st_mode & 0o077 == 0


def test_the_size_of_a_proving_key_is_predicted(case: ProofCase) -> None:
    backend = open_backend("ezkl")
    for index, segment in enumerate(case.manifest.segments):
        settings = (case.proofs / str(index) / "settings.json").read_bytes()
        predicted = backend.require_settings(settings).proving_key_bytes
        assert predicted == pytest.approx(segment.proving_key_bytes, rel=0.1)


def test_the_same_plan_gives_the_same_keys(case: ProofCase, tmp_path: Path) -> None:
    second = again(case, tmp_path / "again").manifest
    for one, other in zip(case.manifest.segments, second.segments, strict=True):
        # ezkl writes the same circuit in other bytes at every run.
        assert replace(one, circuit=other.circuit) == other


@pytest.mark.slow
def test_parameters_are_chosen_where_none_are_given(
    case: ProofCase, tmp_path: Path
) -> None:
    np.savez(tmp_path / "samples.npz", measurements=measurements(6)[INPUT])
    made = set_up(
        case.folder,
        tmp_path / "chosen",
        tmp_path / "samples.npz",
        case.owner,
        case.srs,
        demands=Demands(accuracy=0.05),
    )
    accuracy = made.manifest.accuracy
    data = (tmp_path / "samples.npz").read_bytes()
    assert accuracy.samples_digest == digest_file_bytes(data)
    assert accuracy.largest <= 0.05
    assert made.measured.requests == 6
    assert {s.parameters.logrows for s in made.manifest.segments} == {11}


@pytest.mark.parametrize(
    ("demands", "reason"),
    [
        (replace(FIXED, accuracy=1e-6), "of the circuits is up to"),
        (replace(FIXED, memory_bytes=1 << 28), "segment 0: takes about .* of memory"),
        (replace(FIXED, parameters=(PARAMETERS,)), "parameters: got 1 at scales"),
        (
            replace(FIXED, parameters=(PARAMETERS, replace(PARAMETERS, scale=8))),
            r"got 2 at scales \[7, 8\], want 2 at one scale",
        ),
        (
            replace(FIXED, parameters=(replace(PARAMETERS, logrows=9),) * 2),
            "segment 0 logrows: got 9, want at least 11",
        ),
        (
            replace(FIXED, parameters=(replace(PARAMETERS, logrows=12),) * 2),
            r"has no file of 2\*\*12 rows",
        ),
    ],
)
def test_what_cannot_be_set_up_leaves_nothing(
    case: ProofCase, tmp_path: Path, demands: Demands, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        again(case, tmp_path / "proofs", demands)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(case: ProofCase, tmp_path: Path) -> None:
    (tmp_path / "proofs").mkdir()
    with pytest.raises(ConfigurationError, match="proofs: exists"):
        again(case, tmp_path / "proofs")


def test_a_plan_that_was_altered_is_refused(case: ProofCase, tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    folder.mkdir()
    for file in case.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / case.plan.segments[1].file
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(VerificationError, match=f"{weights.name}: got sha256"):
        again(replace(case, folder=folder), tmp_path / "proofs")
