"""The models that proofs are measured on, set up whole and in segments.

Both are trained on real data that scikit-learn ships, by the examples' own code.
Parameters are chosen on training samples; accuracy is measured on the test set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.proofs_job import LIMITS
from bentoml_secure.proofs.accuracy import Measured, execute_chain, measure, run_model
from bentoml_secure.proofs.backends.ezkl import Ezkl
from bentoml_secure.proofs.boundary import activations_of
from bentoml_secure.proofs.circuit import boundaries_of
from bentoml_secure.proofs.folder import ProofFolder
from bentoml_secure.proofs.links import Link
from bentoml_secure.proofs.setup import Demands, SetUp, set_up
from bentoml_secure.signing import SigningKey
from bentoml_secure.split import load_plan, split_onnx
from bentoml_secure.tensors import Array
from examples.diagnosis import train as diagnosis
from examples.digits import train as digits
from examples.digits.prepare import ACCURACY as DIGITS_ACCURACY

SAMPLES = 256
DIAGNOSIS_ACCURACY = 0.06

Labels = NDArray[np.bool_] | NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and its data.

    Attributes:
        name: Of the model.
        file: The whole model, ONNX.
        accuracy: Bound that the set-up is made for.
        samples: Inputs of the training set, by name.
        tests: Inputs of the test set, by name.
        output: The tensor that tells the label.
        labels: Of the rows of that tensor.
    """

    name: str
    file: Path
    accuracy: float
    samples: Mapping[str, Array]
    tests: Mapping[str, Array]
    output: str
    labels: Callable[[Array], Labels]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A case, set up in so many segments.

    Attributes:
        case: Of which model.
        segments: How many.
        plan: Folder of the plan.
        proofs: Folder of the set-up.
        made: What setting up told.
    """

    case: Case
    segments: int
    plan: Path
    proofs: Path
    made: SetUp


def cases(folder: Path) -> dict[str, Case]:
    """Train both models; return them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    tumours, images = diagnosis.load_data(), digits.load_data()
    say("training")
    diagnosis.export(diagnosis.train(tumours), folder / "diagnosis.onnx")
    digits.export(digits.train(images), folder / "digits.onnx")
    return {
        "diagnosis": Case(
            name="diagnosis",
            file=folder / "diagnosis.onnx",
            accuracy=DIAGNOSIS_ACCURACY,
            samples={"features": tumours.train_features[:SAMPLES]},
            tests={"features": tumours.test_features},
            output="probability",
            labels=lambda probability: np.asarray(probability[:, 0] > 0.5),
        ),
        "digits": Case(
            name="digits",
            file=folder / "digits.onnx",
            accuracy=DIGITS_ACCURACY,
            samples={"image": images.train_images[:SAMPLES]},
            tests={"image": images.test_images},
            output="logits",
            labels=lambda logits: np.asarray(logits.argmax(1)),
        ),
    }


def build(case: Case, segments: int, folder: Path, link: Link = Link.HASHED) -> Built:
    """Split a model and set its proofs up, on strings that are made here: unsafe.

    Raises:
        SecureError: No circuits are within the case's accuracy, on samples and tests.
    """
    plan = folder / f"{case.name}-{segments}-{link}"
    proofs = folder / f"{plan.name}-proofs"
    say(f"{case.name} in {segments}: splitting")
    split_onnx(
        case.file, plan, segments=segments, samples=(first(case.tests, 4),), name="m"
    )
    made = set_up(
        plan,
        proofs,
        case.samples,
        SigningKey.generate(),
        folder / "srs",
        tests=case.tests,
        demands=Demands(accuracy=case.accuracy, unsafe_srs=True, link=link),
        progress=lambda doing: say(f"{case.name} in {segments}: {doing}"),
    )
    return Built(case=case, segments=segments, plan=plan, proofs=proofs, made=made)


def first(inputs: Mapping[str, Array], count: int) -> dict[str, Array]:
    """Return the first rows of inputs."""
    return {name: array[:count] for name, array in inputs.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """How circuits and the model agree on test inputs.

    Attributes:
        measured: Differences of the outputs.
        same_labels: Share of inputs that both label alike.
        requests: How many.
    """

    measured: Measured
    same_labels: float
    requests: int


def run_tests(built: Built, count: int | None = None) -> Tested:
    """Run test inputs through the model and through the circuits.

    Args:
        built: A set-up.
        count: How many inputs; all where left out.
    """
    case = built.case
    tests = case.tests if count is None else first(case.tests, count)
    say(f"{case.name} in {built.segments}: running the test set as circuits")
    plan = load_plan(built.plan)
    folder = ProofFolder.read(built.proofs, plan)
    reference = run_model(built.plan, plan, tests, {})
    forms = boundaries_of(plan, reference.shapes)
    scale, salt = folder.manifest.scale, folder.manifest.salt
    keys = [folder.proving_key(index) for index in range(built.segments)]
    passed = execute_chain(
        Ezkl(),
        [(key.circuit, key.verification.settings) for key in keys],
        [activations_of(request, forms[0], scale) for request in reference.requests],
        salt,
        LIMITS,
    )
    last = forms[-1]
    proven = np.array([v[: last[0].size] for v in passed[-1]], np.float64)
    served = np.concatenate([answer[case.output] for answer in reference.answers])
    same = case.labels(np.ldexp(proven, -scale)) == case.labels(served)
    return Tested(
        measured=measure(reference.answers, passed[-1], last, scale),
        same_labels=float(np.mean(same)),
        requests=len(served),
    )


def say(text: str) -> None:
    """Print progress where it is not in the way of figures."""
    print(text, file=sys.stderr, flush=True)
