"""How far circuits' answers are from the model's: both run on the same requests.

The model runs in floats, as it is served. The circuits run one after the other on
integers, each on just what the one before put out, with salt, as provers will.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bentoml_secure.digest import Digest
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.proofs.boundary import (
    FixedTensor,
    SaltForm,
    deviations,
    floats_of,
)
from bentoml_secure.proofs.manifest import Accuracy
from bentoml_secure.proofs.proof import (
    BoundaryValues,
    Contents,
    Limits,
    ProofBackend,
)
from bentoml_secure.split import Plan, load_chain
from bentoml_secure.split.calibration_inputs import draw_inputs
from bentoml_secure.tensors import Array

Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Requests, and what the model itself makes of them.

    Attributes:
        requests: Inputs by name, each of one request.
        answers: Outputs by name, of each.
        shapes: Of every tensor between segments, the model's inputs and outputs
            included; the same in all requests.
    """

    requests: tuple[Tensors, ...]
    answers: tuple[Tensors, ...]
    shapes: Mapping[str, tuple[int, ...]]


def run_model(
    folder: Path, plan: Plan, samples: Tensors, shapes: Mapping[str, tuple[int, ...]]
) -> Reference:
    """Run a plan on samples, as it is served.

    Args:
        folder: Of the plan.
        plan: It.
        samples: Stacked along the batch, or along a first axis of their own.
        shapes: Of inputs that are to be of more than one row of the batch, by name.

    Raises:
        ConfigurationError: Other inputs than the plan's, no sample, or requests that
            are not all of one shape.
        MalformedInputError: A sample of another dtype or shape.
    """
    requests = _requests(plan, samples, shapes)
    chain = load_chain(folder)
    answers, seen = [], None
    for request in requests:
        made = chain.run_all(request)
        found = {name: tuple(array.shape) for name, array in made.items()}
        if seen not in (None, found):
            raise ConfigurationError(
                "samples: requests are of several shapes, a proof is of one.",
                remedy="Give samples of one shape only.",
            )
        seen = found
        answers.append({spec.name: made[spec.name] for spec in plan.outputs})
    return Reference(requests=requests, answers=tuple(answers), shapes=seen or {})


def _requests(
    plan: Plan, samples: Tensors, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Tensors, ...]:
    if unknown := shapes.keys() - {spec.name for spec in plan.inputs}:
        raise ConfigurationError(f"shape {min(unknown)!r:.100}: is no model input")
    count = min((len(array) for array in samples.values() if array.ndim), default=0)
    if not count:
        raise ConfigurationError("samples: got none, want at least 1")
    (rows,) = draw_inputs(plan, (), dict(samples), count)
    together = {shape[0] for name, shape in shapes.items() if shape} or {1}
    if len(together) != 1 or min(together) < 1:
        raise ConfigurationError(
            f"shapes: got batches of {sorted(together)}, want the same of each input"
        )
    size = together.pop() if shapes else 1
    requests = [
        _joined(rows[start : start + size])
        for start in range(0, len(rows) - size + 1, size)
    ]
    if not requests:
        raise ConfigurationError(f"samples: got {len(rows)} rows, want {size}")
    for name, shape in shapes.items():
        if requests[0][name].shape != shape:
            raise ConfigurationError(
                f"shape {name}: got {list(shape)}, the samples make requests of "
                f"{list(requests[0][name].shape)}"
            )
    return tuple(requests)


def _joined(rows: Sequence[Tensors]) -> Tensors:
    if len(rows) == 1:
        return rows[0]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def execute_chain(
    backend: ProofBackend,
    circuits: Sequence[tuple[Contents, bytes | None]],
    inputs: Sequence[BoundaryValues],
    salt: SaltForm,
    limits: Limits,
) -> list[list[BoundaryValues]]:
    """Run circuits in order on boundaries; return all boundaries, without salt.

    Args:
        backend: That made the circuits.
        circuits: Of the segments, in order, each with its settings: without them what
            is looked up outside of its tables passes.
        inputs: What goes into the first, of each request, without salt.
        salt: Form of the salts, which are drawn here.
        limits: Of each process.

    Returns:
        For each boundary, the first one included, that of every request.

    Raises:
        ConfigurationError: A circuit changes salt that it should pass on.
        MalformedInputError: A value out of a circuit's range.
    """
    passed = [list(inputs)]
    before = [_draw(salt) for _ in inputs]
    for index, (circuit, settings) in enumerate(circuits):
        after = [_draw(salt) for _ in inputs]
        given = zip(passed[-1], before, after, strict=True)
        try:
            made = backend.execute(
                circuit,
                [(values + own, next_) for values, own, next_ in given],
                limits,
                settings=settings,
            )
        except MalformedInputError as error:
            raise MalformedInputError(f"segment {index}: {error}") from error
        for values, want in zip(made, after, strict=True):
            if values[-salt.elements :] != want:
                raise ConfigurationError(
                    f"segment {index}: its circuit does not pass salt on unchanged: "
                    "outputs come at another scale than inputs."
                )
        passed.append([values[: -salt.elements] for values in made])
        before = after
    return passed


def _draw(salt: SaltForm) -> BoundaryValues:
    return tuple(secrets.randbelow(1 << salt.bits) for _ in range(salt.elements))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How far apart answers were.

    Attributes:
        largest: Absolute difference of each output.
        mean: Of the absolute differences of all elements of each output.
        same_label: Of each output with several elements in its last axis: the share of
            rows whose largest element is the same one.
        requests: How many.
    """

    largest: Mapping[str, float]
    mean: Mapping[str, float]
    same_label: Mapping[str, float]
    requests: int

    def require_within(self, bound: float, *, of: str = "samples") -> None:
        """Refuse differences over a bound.

        Args:
            bound: The largest that is taken.
            of: Which requests these are, for the error.

        Raises:
            ConfigurationError: An output's is, or cannot be told.
        """
        for name, value in self.largest.items():
            if not value <= bound:
                raise ConfigurationError(
                    f"accuracy: output {name!r:.100} of the circuits is up to "
                    f"{value:.3g} from the model's on the {of}, want at most "
                    f"{bound:g}.",
                    remedy="Give more samples or a larger scale, accept a larger "
                    "difference (--accuracy), or scale what the model computes with "
                    "into a smaller range.",
                )

    def record(self, bound: float, samples: Digest | None) -> Accuracy:
        """Return what a manifest says of it.

        Args:
            bound: That was asked for; it holds.
            samples: Digest of the file that the requests are of.
        """
        return Accuracy(
            bound=float(bound),
            largest=max(self.largest.values()),
            samples=self.requests,
            samples_digest=samples,
            by_output=dict(self.largest),
        )


def measure(
    answers: Sequence[Tensors],
    proven: Sequence[BoundaryValues],
    form: Sequence[FixedTensor],
    scale: int,
) -> Measured:
    """Compare the circuits' answers with the model's.

    Args:
        answers: The model's, of each request.
        proven: The boundaries that come out of the last circuit, without salt.
        form: Of that boundary.
        scale: Of all boundaries.
    """
    apart: dict[str, list[float]] = {tensor.name: [] for tensor in form}
    means: dict[str, list[float]] = {tensor.name: [] for tensor in form}
    labels: dict[str, list[bool]] = {}
    for served, values in zip(answers, proven, strict=True):
        floats = floats_of(values, form, scale)
        for name, largest in deviations(floats, served).items():
            apart[name].append(largest)
            differences = np.abs(floats[name] - served[name])
            means[name].append(float(differences.mean()) if differences.size else 0.0)
            if served[name].ndim and served[name].shape[-1] > 1:
                same = floats[name].argmax(-1) == served[name].argmax(-1)
                labels.setdefault(name, []).extend(same.ravel().tolist())
    return Measured(
        # NaN of an answer comes as infinity, which max() does not pass over.
        largest={name: max(values) for name, values in apart.items()},
        mean={name: math.fsum(values) / len(values) for name, values in means.items()},
        same_label={name: sum(same) / len(same) for name, same in labels.items()},
        requests=len(answers),
    )
