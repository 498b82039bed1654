"""Reading the fields of plan.json: each of its type, none unknown, none missing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from bentoml_secure.digest import is_finite_number
from bentoml_secure.errors import MalformedInputError

MAX_SPECIFIER_CHARACTERS = 200


def fields(
    value: object, wanted: set[str], what: str, *, optional: Collection[str] = ()
) -> dict[str, Any]:
    """Return an object that has the wanted fields, and besides them only optional ones.

    Raises:
        MalformedInputError: No object, a field unknown or missing.
    """
    if not isinstance(value, dict):
        raise MalformedInputError(f"{what}: want an object")
    if unknown := value.keys() - wanted - set(optional):
        raise MalformedInputError(f"{what}: unknown field {sorted(unknown)[0]!r:.60}")
    if missing := wanted - value.keys():
        raise MalformedInputError(f"{what}: field {sorted(missing)[0]!r} is missing")
    return value


def items(value: object, what: str, most: int) -> list[Any]:
    """Return a list of at most so many.

    Raises:
        MalformedInputError: No list, or a longer one.
    """
    if not isinstance(value, list) or len(value) > most:
        raise MalformedInputError(f"{what}: want a list of at most {most}")
    return value


def text(value: object, what: str) -> str:
    """Return a string.

    Raises:
        MalformedInputError: Anything else.
    """
    if not isinstance(value, str):
        raise MalformedInputError(f"{what}: got {value!r:.60}, want text")
    return value


def amount(value: object, what: str) -> float:
    """Return a finite number from 0, as it stands there.

    Raises:
        MalformedInputError: Anything else.
    """
    # Spelled out: a type checker does not see what is_finite_number says.
    if isinstance(value, int | float) and is_finite_number(value) and value >= 0:
        return value
    raise MalformedInputError(f"{what}: got {value!r:.40}, want a number >= 0")


def version_range(value: str, what: str) -> SpecifierSet:
    """Return a range of versions as in PEP 440, one that leaves something out.

    Raises:
        MalformedInputError: Not such a range.
    """
    wanted = f"{what}: got {value!r:.60}, want a range as in PEP 440"
    if not 0 < len(value) <= MAX_SPECIFIER_CHARACTERS:
        raise MalformedInputError(wanted)
    try:
        found = SpecifierSet(value)
    except InvalidSpecifier as error:
        raise MalformedInputError(wanted) from error
    if not found:
        raise MalformedInputError(wanted)
    return found
