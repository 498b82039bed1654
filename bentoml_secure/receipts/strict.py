"""Reading JSON from outside field by field: exact names, types and bounds.

Each function returns the value in its type or raises ``MalformedInputError`` with
the thing, what was got and what was wanted.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bentoml_secure.digest import is_finite_number, require_fields
from bentoml_secure.errors import MalformedInputError

MAX_TEXT_CHARACTERS = 512

fields = require_fields


def items(value: object, *, what: str, most: int) -> list[Any]:
    """Return a list of at most ``most`` items."""
    if not isinstance(value, list) or len(value) > most:
        raise MalformedInputError(f"{what}: want a list of at most {most}")
    return value


def text(value: object, *, what: str) -> str:
    """Return printable text: findings and claims are read on terminals."""
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= MAX_TEXT_CHARACTERS
        or not value.isprintable()
    ):
        raise MalformedInputError(
            f"{what}: got {value!r:.60}, want 1 to {MAX_TEXT_CHARACTERS} printable "
            "characters"
        )
    return value


def choice(value: object, allowed: Collection[str], *, what: str) -> str:
    """Return one of the spellings ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise MalformedInputError(
            f"{what}: got {value!r:.60}, want one of {', '.join(allowed)}"
        )
    return value


def whole(value: object, *, what: str, low: int, high: int) -> int:
    """Return an integer from ``low`` to ``high``; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedInputError(f"{what}: got {value!r:.40}, want an integer")
    if not low <= value <= high:
        raise MalformedInputError(f"{what}: got {value}, want {low} to {high}")
    return value


def flag(value: object, *, what: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise MalformedInputError(f"{what}: got {value!r:.40}, want true or false")
    return value


def mapping(value: object, *, what: str, most: int) -> dict[str, Any]:
    """Return an object of at most ``most`` members."""
    if not isinstance(value, dict) or len(value) > most:
        raise MalformedInputError(f"{what}: want an object of at most {most}")
    return value


def numbers(
    value: object, *, what: str, most: int = 64, nullable: bool = False
) -> dict[str, Any]:
    """Return finite numbers by name, as floats; or null where that is allowed."""
    got: dict[str, Any] = {}
    for name, number in mapping(value, what=what, most=most).items():
        text(name, what=f"{what} name")
        if number is None and nullable:
            got[name] = None
        elif is_finite_number(number):
            # Canonical JSON writes 1.0 as 1.
            got[name] = float(number)
        else:
            raise MalformedInputError(
                f"{what} {name!r:.60}: got {number!r:.40}, want a finite number"
            )
    return got
