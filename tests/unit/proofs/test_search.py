"""Parameters that are chosen: accurate, within range with room, and cheap."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.accuracy import Reference, run_model
from bentoml_secure.proofs.backends import open_backend
from bentoml_secure.proofs.boundary import SaltForm, activations_of
from bentoml_secure.proofs.circuit import Form, boundaries_of, circuit_model
from bentoml_secure.proofs.proof import Limits, Parameters
from bentoml_secure.proofs.search import Chosen, choose
from bentoml_secure.split import Plan, read_file
from tests.proof_case import measurements, proof_plan

LIMITS = Limits(memory_bytes=8 << 30, seconds=120, threads=2)


class Chain:
    """A plan of a layer with an activation, and what a search is given of it."""

    def __init__(self, folder: Path, activation: str) -> None:
        self.folder = folder
        self.plan: Plan = proof_plan(folder, segments=1, activation=activation)
        self.reference: Reference = run_model(folder, self.plan, measurements(6), {})
        self.forms: tuple[Form, ...] = boundaries_of(self.plan, self.reference.shapes)
        self.backend = open_backend("ezkl")

    def model(self, index: int, salt: SaltForm) -> bytes:
        segment = self.plan.segments[index]
        contents = {
            file.path: read_file(self.folder, file.path, file.digest, max_bytes=1 << 20)
            for file in segment.files
        }
        return circuit_model(
            segment, contents, self.forms[index], self.forms[index + 1], salt
        )

    def choose(self, accuracy: float) -> Chosen:
        return choose(
            self.backend,
            self.model,
            self.forms,
            self.reference,
            accuracy=accuracy,
            limits=LIMITS,
        )

    def circuit(self, parameters: Parameters, salt: SaltForm) -> bytes:
        model = self.model(0, salt)
        settings, _ = self.backend.measure(model, parameters, LIMITS)
        return self.backend.compile(model, settings, LIMITS)


@pytest.fixture(scope="module")
def sigmoid(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("sigmoid") / "plan", "Sigmoid")


@pytest.fixture(scope="module")
def relu(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("relu") / "plan", "Relu")


def test_a_chain_of_linear_layers_gets_no_table_and_the_fewest_rows(
    relu: Chain,
) -> None:
    chosen = relu.choose(0.1)
    (parameters,) = chosen.parameters
    assert parameters.lookup_bound == 0
    _, rows = relu.backend.measure(relu.model(0, chosen.salt), parameters, LIMITS)
    assert parameters.logrows == rows.least_logrows == 11
    magnitude = parameters.decomposition_base**parameters.decomposition_legs
    assert 1 << chosen.salt.bits < magnitude
    assert chosen.salt == SaltForm(elements=6, bits=22)


def test_a_smaller_bound_takes_a_larger_scale(relu: Chain) -> None:
    coarse, fine = relu.choose(0.2), relu.choose(0.005)
    assert coarse.scale < fine.scale
    assert coarse.parameters[0].logrows == fine.parameters[0].logrows


def test_tables_hold_activations_four_times_as_large(sigmoid: Chain) -> None:
    chosen = sigmoid.choose(0.2)
    (parameters,) = chosen.parameters
    circuit = sigmoid.circuit(parameters, chosen.salt)
    salt = (1,) * chosen.salt.elements
    given = [
        activations_of(request, sigmoid.forms[0], chosen.scale)
        for request in sigmoid.reference.requests
    ]
    larger = [(tuple(4 * v for v in values) + salt, salt) for values in given]
    looked_up = sigmoid.backend.lookups(circuit, larger, LIMITS)
    assert 0 < looked_up <= parameters.lookup_bound


def test_an_accuracy_beyond_every_scale_is_refused(relu: Chain) -> None:
    with pytest.raises(ConfigurationError, match="on the samples, want at most"):
        relu.choose(1e-9)


def test_given_parameters_are_a_choice_with_salt_in_range() -> None:
    parameters = Parameters(
        scale=7,
        decomposition_base=256,
        decomposition_legs=3,
        inner_columns=1,
        logrows=11,
        lookup_bound=0,
    )
    chosen = Chosen.of([parameters, replace(parameters, decomposition_legs=2)])
    assert chosen.salt == SaltForm.below(256**2)
    assert chosen.scale == 7
