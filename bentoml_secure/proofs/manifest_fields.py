"""Reading the fields of a manifest: each of its type, within its bounds."""

from __future__ import annotations

from typing import Any

from bentoml_secure.digest import FILE, Digest, parse_digest, require_fields
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.proofs.boundary import MAX_ACTIVATIONS, FixedTensor
from bentoml_secure.proofs.proof import Parameters
from bentoml_secure.split.plan_fields import items
from bentoml_secure.tensors import MAX_DIMENSIONS, MAX_NAME_CHARACTERS, MAX_TENSORS

MAX_LOGROWS = 26
MAX_WHOLE = 2**53 - 1

# Of each number of ``Parameters``, from and to.
_BOUNDS = {
    "scale": (1, 30),
    "decomposition_base": (2, 1 << MAX_LOGROWS),
    "decomposition_legs": (1, 16),
    "inner_columns": (1, 64),
    "logrows": (1, MAX_LOGROWS),
    "lookup_bound": (0, 1 << MAX_LOGROWS),
}


def whole(value: object, what: str, low: int, high: int) -> int:
    """Return an integer from ``low`` to ``high``; true and false are none.

    Raises:
        MalformedInputError: Anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedInputError(f"{what}: got {value!r:.40}, want an integer")
    if not low <= value <= high:
        # Decimal digits of an integer from outside are not printed: they are slow.
        raise MalformedInputError(f"{what}: out of range, want {low} to {high}")
    return value


def name(value: object, what: str) -> str:
    """Return a name of bounded length that can be printed.

    Raises:
        MalformedInputError: Anything else.
    """
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= MAX_NAME_CHARACTERS
        or not value.isprintable()
    ):
        raise MalformedInputError(
            f"{what}: got {value!r:.60}, want 1 to {MAX_NAME_CHARACTERS} printable "
            "characters"
        )
    return value


def file_digest(value: object, what: str) -> Digest:
    """Return the digest of a file.

    Raises:
        MalformedInputError: Anything else.
    """
    return parse_digest(value, what=what, algorithm=FILE)


def parse_parameters(document: object, *, what: str) -> Parameters:
    """Parse how a segment became a circuit.

    Raises:
        MalformedInputError: A number missing, unknown or out of range.
    """
    got: dict[str, Any] = require_fields(document, _BOUNDS, what=what)
    return Parameters(
        **{
            name: whole(value, f"{what} {name}", *_BOUNDS[name])
            for name, value in got.items()
        }
    )


def parse_tensors(document: object, *, what: str) -> tuple[FixedTensor, ...]:
    """Parse the tensors of a boundary.

    Raises:
        MalformedInputError: None, too many, too large, two of one name.
    """
    tensors = tuple(
        _tensor(entry, f"{what} {index}")
        for index, entry in enumerate(items(document, what, MAX_TENSORS))
    )
    if not tensors or len({tensor.name for tensor in tensors}) != len(tensors):
        raise MalformedInputError(f"{what}: want tensors, each name once")
    if sum(tensor.size for tensor in tensors) > MAX_ACTIVATIONS:
        raise MalformedInputError(f"{what}: over {MAX_ACTIVATIONS} activations")
    return tensors


def _tensor(document: object, what: str) -> FixedTensor:
    got = require_fields(document, ("name", "shape"), what=what)
    axes = items(got["shape"], f"{what} shape", MAX_DIMENSIONS)
    return FixedTensor(
        name=name(got["name"], f"{what} name"),
        shape=tuple(whole(axis, f"{what} shape", 1, MAX_ACTIVATIONS) for axis in axes),
    )
