"""Boundaries: what goes between two segments, as circuits take it.

    values = activations, rounded to integers over 2**scale, C order, tensors in the
             plan's order, then ``elements`` salt integers of ``bits`` bits each

One flat tensor, hashed whole: a salt that is hashed apart from what it is to hide hides
nothing. The salt of each boundary is its own, so that a prover, who knows the salts of
its two boundaries, cannot guess what another prover's boundary holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from bentoml_secure.digest import require_fields
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    ProofError,
)
from bentoml_secure.proofs.links import LEAST_SALT_BITS
from bentoml_secure.proofs.proof import BoundaryValues
from bentoml_secure.tensors import Array

MOST_ELEMENT_BITS = 22
MAX_SALT_ELEMENTS = 64
MAX_ACTIVATIONS = 1 << 20
_SALT_LABEL = b"bentoml-secure/boundary-salt/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SaltForm:
    """How salt is spelled as integers that a circuit's range checks let pass.

    Attributes:
        elements: How many integers.
        bits: Of each.
    """

    elements: int
    bits: int

    def __post_init__(self) -> None:
        if not (
            0 < self.bits <= MOST_ELEMENT_BITS
            and 0 < self.elements <= MAX_SALT_ELEMENTS
            and self.elements * self.bits >= LEAST_SALT_BITS
        ):
            raise MalformedInputError(
                f"salt: got {self.elements} elements of {self.bits} bits, want at "
                f"least {LEAST_SALT_BITS} bits in elements of up to "
                f"{MOST_ELEMENT_BITS} bits"
            )

    @classmethod
    def below(cls, magnitude: int, least_bits: int = LEAST_SALT_BITS) -> SaltForm:
        """Return the shortest form whose integers stay below a circuit's range.

        Args:
            magnitude: base**legs of the circuit.
            least_bits: Of all integers together.

        Raises:
            ConfigurationError: The range leaves no room for a salt.
        """
        bits = min(magnitude.bit_length() - 2, MOST_ELEMENT_BITS)
        if bits < 2 or least_bits > bits * MAX_SALT_ELEMENTS:
            raise ConfigurationError(
                f"salt: a circuit whose numbers stay below {magnitude} has no room.",
                remedy="Use a larger decomposition base, or more legs.",
            )
        return cls(elements=math.ceil(least_bits / bits), bits=bits)

    def expand(self, salt: bytes) -> BoundaryValues:
        """Return the integers of a salt.

        Args:
            salt: 32 secret bytes, of one boundary of one request.

        Source: RFC 5869, HKDF-SHA256.
        """
        size = math.ceil(self.elements * self.bits / 8)
        info = _SALT_LABEL + bytes([self.elements, self.bits])
        drawn = int.from_bytes(HKDF(SHA256(), size, None, info).derive(salt), "big")
        mask = (1 << self.bits) - 1
        return tuple(
            (drawn >> (index * self.bits)) & mask for index in range(self.elements)
        )

    def to_json(self) -> dict[str, int]:
        """Return the document of a manifest."""
        return {"elements": self.elements, "bits": self.bits}

    @classmethod
    def from_json(cls, document: object, *, what: str) -> SaltForm:
        """Parse a manifest's.

        Raises:
            MalformedInputError: A field missing, unknown or out of range.
        """
        got = require_fields(document, ("elements", "bits"), what=what)
        if not all(type(value) is int for value in got.values()):
            raise MalformedInputError(f"{what}: want two integers")
        return cls(**got)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedTensor:
    """A tensor of a boundary: its shape is the circuit's, nothing in it is free.

    Attributes:
        name: In the plan.
        shape: Of one request.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return the document of a manifest."""
        return {"name": self.name, "shape": list(self.shape)}


def activations_of(
    tensors: Mapping[str, Array], form: Sequence[FixedTensor], scale: int
) -> BoundaryValues:
    """Return tensors as integers over 2**scale, halves rounded away from zero.

    Args:
        tensors: Of just the names and shapes of ``form``, of floats.
        form: The boundary's tensors, in order.
        scale: Binary digits behind the point.

    Raises:
        MalformedInputError: Other names, another shape, NaN or infinity.
    """
    return tuple(
        int(value)
        for rounded in _rounded(tensors, form, scale)
        for value in rounded.tolist()
    )


def largest_activation(
    tensors: Mapping[str, Array], form: Sequence[FixedTensor], scale: int
) -> int:
    """Return the largest magnitude among ``activations_of``, without making them.

    Raises:
        MalformedInputError: As ``activations_of``.
    """
    return max(
        int(np.abs(rounded).max(initial=0))
        for rounded in _rounded(tensors, form, scale)
    )


def _rounded(
    tensors: Mapping[str, Array], form: Sequence[FixedTensor], scale: int
) -> Iterator[NDArray[np.float64]]:
    if tensors.keys() != {tensor.name for tensor in form}:
        got, want = sorted(tensors), sorted(tensor.name for tensor in form)
        raise MalformedInputError(f"boundary: got {got!r:.200}, want {want!r:.200}")
    for tensor in form:
        array = np.asarray(tensors[tensor.name])
        if array.shape != tensor.shape:
            raise MalformedInputError(
                f"boundary {tensor.name}: got shape {list(array.shape)}, want "
                f"{list(tensor.shape)}: a proof is of one shape"
            )
        scaled = np.ldexp(array.astype(np.float64).ravel(), scale)
        if not np.isfinite(scaled).all():
            raise MalformedInputError(f"boundary {tensor.name}: NaN or infinity")
        # As the circuit's library rounds; numpy's own rounding is to even.
        yield np.trunc(scaled + np.copysign(0.5, scaled))


def floats_of(
    activations: Sequence[int], form: Sequence[FixedTensor], scale: int
) -> dict[str, NDArray[np.float64]]:
    """Return the tensors that integers over 2**scale stand for.

    Args:
        activations: Without salt.
        form: The boundary's tensors, in order.
        scale: Binary digits behind the point.

    Raises:
        MalformedInputError: More or fewer than the form has.
    """
    want = sum(tensor.size for tensor in form)
    if len(activations) != want:
        raise MalformedInputError(
            f"boundary: got {len(activations)} activations, want {want}"
        )
    tensors, start = {}, 0
    for tensor in form:
        part = activations[start : start + tensor.size]
        start += tensor.size
        values = np.array([math.ldexp(value, -scale) for value in part], np.float64)
        tensors[tensor.name] = values.reshape(tensor.shape)
    return tensors


def deviations(
    proven: Mapping[str, NDArray[np.float64]], served: Mapping[str, Array]
) -> dict[str, float]:
    """Return the largest absolute difference of each tensor; infinite where undefined.

    Args:
        proven: By name.
        served: Of the same names.

    Raises:
        MalformedInputError: Other names, or another shape.
    """
    if proven.keys() != served.keys():
        raise MalformedInputError("proven and served outputs are not the same tensors")
    apart = {}
    for name, values in proven.items():
        other = np.asarray(served[name], np.float64)
        if other.shape != values.shape:
            raise MalformedInputError(
                f"output {name}: got shape {list(other.shape)}, want "
                f"{list(values.shape)}"
            )
        # NaN is no distance: max() would pass over one that does not come first.
        differences = np.abs(values - other)
        known = bool(np.isfinite(differences).all())
        apart[name] = float(differences.max(initial=0.0)) if known else math.inf
    return apart


def as_served(
    proven: Mapping[str, NDArray[np.float64]], served: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the proven answer in the types of the served one, each number exactly.

    Args:
        proven: By name.
        served: Of the same names.

    Raises:
        ProofError: A number that the type does not hold.
    """
    answer: dict[str, Array] = {}
    for name, values in proven.items():
        dtype = np.asarray(served[name]).dtype
        answer[name] = values.astype(dtype)
        if not np.array_equal(answer[name].astype(np.float64), values):
            raise ProofError(f"output {name}: {dtype} cannot hold it as it was proven")
    return answer
