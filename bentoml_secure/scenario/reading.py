"""Reading the values of a scenario's table: each refused with what was wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from bentoml_secure.attestation.evidence import parse_kind
from bentoml_secure.digest import is_finite_number
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.scenario.demands import Independence

MAX_PLACED_KINDS = 32
OTHERS = "*"
"""In a placement: every segment that it does not name."""

_SEGMENT = re.compile(r"0|[1-9][0-9]{0,2}")
_E = TypeVar("_E", bound=StrEnum)


def read_independence(value: object, *, what: str) -> Independence:
    """Return the independence that a file asks for by name.

    Raises:
        ConfigurationError: No such name.
    """
    return read_choice(value, Independence, what=f"{what} independence")


def read_choice(value: object, kinds: type[_E], *, what: str) -> _E:
    """Return what a file asks for by name.

    Raises:
        ConfigurationError: No such name.
    """
    if not isinstance(value, str) or value not in tuple(kinds):
        raise ConfigurationError(
            f"{what}: got {value!r:.40}, want one of {', '.join(kinds)}."
        )
    return kinds(value)


def read_flag(value: object, *, what: str) -> bool:
    """Return true or false.

    Raises:
        ConfigurationError: Neither.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{what}: want true or false")
    return value


def read_share(value: Any, *, what: str) -> float:
    """Return a share.

    Raises:
        ConfigurationError: Not a number from 0 to 1.
    """
    if not is_finite_number(value) or not 0 <= value <= 1:
        raise ConfigurationError(f"{what}: got {value!r:.40}, want a share from 0 to 1")
    # Canonical JSON writes 0.0 as 0, and -0.0 too.
    return abs(float(value))


def read_counts(
    fields: Mapping[str, Any], bounds: Mapping[str, tuple[int, int]], *, what: str
) -> dict[str, int]:
    """Return the integers of a table.

    Args:
        fields: The table's.
        bounds: Name to least and most.
        what: Whose they are, for the error.

    Raises:
        ConfigurationError: One is no integer, or out of its bounds.
    """
    for bound, (low, high) in bounds.items():
        value = fields[bound]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigurationError(f"{what} {bound}: want an integer")
        if not low <= value <= high:
            raise ConfigurationError(
                f"{what} {bound}: got {value}, want {low} to {high}"
            )
    return {bound: fields[bound] for bound in bounds}


def read_placement(value: object, *, what: str) -> dict[str, tuple[str, ...]]:
    """Return the kinds of evidence by segment.

    Raises:
        ConfigurationError: No table; a segment or kind that is none, or stands twice.
    """
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{what}: got {value!r:.60}, want a table")
    for key in value:
        if key != OTHERS and not _SEGMENT.fullmatch(key):
            raise ConfigurationError(
                f"{what}: got segment {key!r:.60}, want 0 to 999 or {OTHERS!r}"
            )
    return {key: _read_kinds(kinds, f"{what} {key}") for key, kinds in value.items()}


def _read_kinds(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_PLACED_KINDS:
        raise ConfigurationError(
            f"{what}: got {value!r:.60}, want a list of 1 to {MAX_PLACED_KINDS} kinds"
        )
    try:
        kinds = {parse_kind(kind, what=what) for kind in value}
    except MalformedInputError as error:
        raise ConfigurationError(str(error)) from error
    if len(kinds) != len(value):
        raise ConfigurationError(f"{what}: a kind stands twice")
    return tuple(kinds)
