"""Reading and comparing reference values: what every kind's policy table is made of.

A reference value is a list of accepted values, never empty, or
``{ unchecked = "why" }``, which leaves the check out and shows in every result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bentoml_secure.attestation.evidence import UncheckedField
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.errors import ConfigurationError, Finding

MAX_REASON_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A check left out on purpose, and why."""

    reason: str

    def to_json(self) -> dict[str, str]:
        """Return the table that spells it in a policy."""
        return {"unchecked": self.reason}


References = tuple[str, ...] | Unchecked
"""Accepted values, sorted; or the reason why any value is."""

IndexedReferences = Mapping[int, References] | Unchecked
"""The same for each of several registers; or the reason why none is compared."""


def require_known(
    table: object, known: frozenset[str], *, what: str
) -> Mapping[str, Any]:
    """Return ``table`` if it is one and has no key besides ``known``.

    Raises:
        ConfigurationError: Not a table; an unknown key, for a typo must not open a
            door.
    """
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{what}: got {table!r:.60}, want a table.")
    if unknown := sorted(map(str, table.keys() - known)):
        raise ConfigurationError(
            f"{what}: unknown key {unknown[0]!r:.60};"
            f" known: {', '.join(sorted(known))}.",
            remedy="Correct or remove it.",
        )
    return table


def read_list(
    value: object, *, what: str, pattern: re.Pattern[str], form: str
) -> tuple[str, ...]:
    """Return a policy's list of accepted values, sorted, each once.

    Args:
        value: From the policy.
        what: The key's name, for the error.
        pattern: Every item must match it in full.
        form: The pattern in words, for the error.

    Raises:
        ConfigurationError: Not a list, empty, or an item of another form.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ConfigurationError(
            f"{what}: got {value!r:.80}, want a list with at least one {form}.",
            remedy="An empty list would accept nothing, or everything by mistake.",
        )
    for item in value:
        if not isinstance(item, str) or not pattern.fullmatch(item):
            raise ConfigurationError(f"{what}: got {item!r:.80}, want {form}.")
    return tuple(sorted(set(value)))


def read_references(
    value: object, *, what: str, pattern: re.Pattern[str], form: str
) -> References:
    """Return a list of accepted values, or the reason for none.

    Raises:
        ConfigurationError: Neither a list as in ``read_list`` nor
            ``{ unchecked = "why" }``.
    """
    if not isinstance(value, Mapping):
        return read_list(value, what=what, pattern=pattern, form=form)
    return read_unchecked(value, what=what)


def read_unchecked(table: Mapping[str, Any], *, what: str) -> Unchecked:
    """Return the reason that ``{ unchecked = "why" }`` gives.

    Raises:
        ConfigurationError: Another key; no reason, or one too long to show.
    """
    require_known(table, frozenset({"unchecked"}), what=what)
    reason = table.get("unchecked")
    if (
        not isinstance(reason, str)
        or not reason.strip()
        or len(reason) > MAX_REASON_CHARACTERS
        or not reason.isprintable()
    ):
        raise ConfigurationError(
            f"{what} unchecked: got {reason!r:.80}, want a reason of 1 to"
            f" {MAX_REASON_CHARACTERS} printable characters."
        )
    return Unchecked(reason)


def read_indexed(
    value: object, *, what: str, indexes: range, pattern: re.Pattern[str], form: str
) -> IndexedReferences:
    """Return accepted values by index, or the reason for none.

    Args:
        value: From the policy: ``{ 0 = ["<hex>"], 1 = { unchecked = "why" } }``, or
            ``{ unchecked = "why" }`` for all.
        what: The key's name, for the error.
        indexes: Those that there are.
        pattern: Every value must match it in full.
        form: The pattern in words, for the error.

    Raises:
        ConfigurationError: Another form, another index, no value.
    """
    if not isinstance(value, Mapping) or not value:
        raise ConfigurationError(
            f"{what}: got {value!r:.60}, want accepted values by index.",
            remedy="List them, or say why none is compared.",
        )
    if "unchecked" in value:
        return read_unchecked(value, what=what)
    require_known(value, frozenset(map(str, indexes)), what=what)
    return {
        int(index): read_references(
            value[index], what=f"{what} {index}", pattern=pattern, form=form
        )
        for index in sorted(value, key=int)
    }


def indexed_to_json(references: IndexedReferences) -> dict[str, Any]:
    """Return reference values by index as a policy spells them."""
    if isinstance(references, Unchecked):
        return dict(references.to_json())
    return {str(index): references_to_json(each) for index, each in references.items()}


def at_index(index: int, references: References) -> References:
    """Return reference values whose index stands before each: ``7:<hex>``.

    One check compares all indexes, and its findings say which.
    """
    if isinstance(references, Unchecked):
        return Unchecked(f"{index}: {references.reason}")
    return tuple(f"{index}:{value}" for value in references)


def references_to_json(references: References) -> list[str] | dict[str, str]:
    """Return reference values as a policy spells them."""
    if isinstance(references, Unchecked):
        return references.to_json()
    return list(references)


def compare_reference(field: str, got: str, references: References) -> Comparison:
    """Compare one value with its reference values."""
    if isinstance(references, Unchecked):
        return Comparison(
            unchecked=(UncheckedField(field=field, reason=references.reason),)
        )
    if got in references:
        return Comparison()
    return Comparison(findings=(Finding(field, got, one_of(references)),))


def one_of(values: tuple[str, ...]) -> str:
    """Say which values were wanted."""
    return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
