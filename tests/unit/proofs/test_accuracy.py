"""Circuits against the model: exact hand-over, and differences that hide nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.proofs.accuracy import (
    Reference,
    Tensors,
    execute_chain,
    measure,
    run_model,
)
from bentoml_secure.proofs.backends import open_backend
from bentoml_secure.proofs.boundary import FixedTensor, activations_of
from bentoml_secure.proofs.folder import CIRCUIT, SETTINGS
from bentoml_secure.proofs.proof import BoundaryValues, Contents, Limits
from bentoml_secure.split import Plan
from tests.proof_case import (
    ACCURACY,
    FEATURES,
    INPUT,
    OUTPUT,
    ProofCase,
    measurements,
    proof_case,
    proof_plan,
)

LIMITS = Limits(memory_bytes=4 << 30, seconds=120, threads=2)
FORM = (FixedTensor(name="y", shape=(1, 2)),)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> ProofCase:
    return proof_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("plan") / "plan"
    return folder, proof_plan(folder)


def circuits_of(case: ProofCase) -> list[tuple[Contents, bytes | None]]:
    return [
        (
            case.proofs / str(index) / CIRCUIT,
            (case.proofs / str(index) / SETTINGS).read_bytes(),
        )
        for index in range(2)
    ]


def inputs_of(case: ProofCase, samples: Tensors) -> list[BoundaryValues]:
    manifest = case.manifest
    return [
        activations_of({INPUT: row[None]}, manifest.segments[0].inputs, manifest.scale)
        for row in samples[INPUT]
    ]


def test_circuits_in_a_row_stay_near_the_model(case: ProofCase) -> None:
    samples = measurements(5, seed=9)
    reference = run_model(case.folder, case.plan, samples, {})
    passed = execute_chain(
        open_backend("ezkl"),
        circuits_of(case),
        inputs_of(case, samples),
        case.manifest.salt,
        LIMITS,
    )
    assert [len(boundary) for boundary in passed] == [5, 5, 5]
    assert {len(values) for values in passed[1]} == {8}
    form = case.manifest.segments[-1].outputs
    measured = measure(reference.answers, passed[-1], form, case.manifest.scale)
    measured.require_within(ACCURACY)
    assert 0 < measured.mean[OUTPUT] < measured.largest[OUTPUT]
    assert measured.same_label == {OUTPUT: 1.0}
    assert measured.requests == 5


def test_a_value_out_of_range_names_its_segment(case: ProofCase) -> None:
    (inputs,) = inputs_of(case, measurements(1))
    with pytest.raises(MalformedInputError, match=r"segment 0: .*out of the circuit's"):
        execute_chain(
            open_backend("ezkl"),
            circuits_of(case),
            [(1 << 60, *inputs[1:])],
            case.manifest.salt,
            LIMITS,
        )


def run(plan: tuple[Path, Plan], samples: Tensors, **shapes: tuple[int, ...]) -> object:
    return run_model(*plan, samples, shapes)


def test_requests_are_rows_unless_a_shape_is_given(plan: tuple[Path, Plan]) -> None:
    rows = run(plan, measurements(5))
    pairs = run(plan, measurements(5), measurements=(2, FEATURES))
    assert isinstance(rows, Reference)
    assert isinstance(pairs, Reference)
    assert (len(rows.requests), len(pairs.requests)) == (5, 2)
    assert rows.shapes[OUTPUT] == (1, 3)
    assert pairs.shapes == {INPUT: (2, 4), "hidden": (2, 8), OUTPUT: (2, 3)}
    np.testing.assert_allclose(
        pairs.answers[0][OUTPUT][1:], rows.answers[1][OUTPUT], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"other": (1, 4)}, "'other': is no model input"),
        ({INPUT: (1, 5)}, r"measurements: got \[1, 5\], the samples make"),
        ({INPUT: (9, 4)}, "got 5 rows, want 9"),
        ({INPUT: (0, 4)}, "shapes: got batches of"),
    ],
)
def test_shapes_that_the_samples_do_not_make_are_refused(
    plan: tuple[Path, Plan], shapes: dict[str, tuple[int, ...]], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        run(plan, measurements(5), **shapes)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ({}, "samples: got none"),
        (measurements(0), "samples: got none"),
        ({"other": np.zeros((2, 4), np.float32)}, r"samples: got \['other'\], want"),
    ],
)
def test_samples_are_the_models_inputs(
    plan: tuple[Path, Plan], samples: Tensors, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        run(plan, samples)


def test_differences_are_told_by_output() -> None:
    served = [{"y": np.array([row], np.float32)} for row in ((1.0, 2.0), (0.5, 0.0))]
    measured = measure(served, [(4, 8), (1, 2)], FORM, 2)
    assert measured.largest == {"y": 0.5}
    assert measured.mean == {"y": 0.1875}
    assert measured.same_label == {"y": 0.5}
    with pytest.raises(ConfigurationError, match=r"'y' .* is up to 0\.5"):
        measured.require_within(0.25)
    record = measured.record(0.5, None)
    assert (record.bound, record.largest, record.samples) == (0.5, 0.5, 2)


@pytest.mark.parametrize("position", [0, 1])
def test_an_answer_that_is_no_number_is_over_every_bound(position: int) -> None:
    answer = np.zeros((1, 2), np.float32)
    answer[0, position] = math.nan
    measured = measure([{"y": answer}], [(0, 0)], FORM, 2)
    with pytest.raises(ConfigurationError, match="is up to inf"):
        measured.require_within(1e9)
