"""Registers of a TPM's SHA-256 bank: as evidence carries them, and as a policy does.

    pcr = { 0 = ["<hex>"], 7 = ["<hex>", "<hex>"] }
    pcr = { unchecked = "why" }

Source: TCG PC Client Platform Firmware Profile, 3.3.4 (what is measured into which).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bentoml_secure.attestation.reference_values import (
    IndexedReferences,
    Unchecked,
    at_index,
    compare_reference,
    read_indexed,
)
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.attestation.tees.tpm_quote import PCR_BYTES, PCR_COUNT
from bentoml_secure.digest import parse_hex
from bentoml_secure.errors import MalformedInputError

_INDICES = frozenset(map(str, range(PCR_COUNT)))
_VALUE = re.compile(r"[0-9a-f]{64}")


def parse_pcrs(document: object, *, what: str) -> dict[int, bytes]:
    """Return the registers that evidence carries, by index, ascending.

    Args:
        document: ``{"0": 64 hex digits, ...}``, from outside.
        what: The thing's name, for errors.

    Raises:
        MalformedInputError: Another form, or another index than 0 to 23.
    """
    if not isinstance(document, dict) or not document.keys() <= _INDICES:
        raise MalformedInputError(
            f"{what}: want an object of registers 0 to {PCR_COUNT - 1}"
        )
    return {
        int(index): parse_hex(document[index], what=f"{what} {index}", length=PCR_BYTES)
        for index in sorted(document, key=int)
    }


def pcrs_to_json(pcrs: Mapping[int, bytes]) -> dict[str, str]:
    """Return registers as evidence and claims spell them."""
    return {str(index): value.hex() for index, value in sorted(pcrs.items())}


def read_pcr_references(value: object, *, what: str) -> IndexedReferences:
    """Return the accepted values that a policy's key ``pcr`` spells.

    Args:
        value: From the policy.
        what: Its table, for errors.

    Raises:
        ConfigurationError: Not a table of registers, none in it, an empty list.
    """
    return read_indexed(
        value,
        what=f"{what} pcr",
        indexes=range(PCR_COUNT),
        pattern=_VALUE,
        form="64 hex digits",
    )


def compare_pcrs(got: Mapping[str, str], wanted: IndexedReferences) -> Comparison:
    """Compare registers as claims spell them; one that is not quoted differs."""
    if isinstance(wanted, Unchecked):
        return compare_reference("pcr", "", wanted)
    comparison = Comparison()
    for index, references in wanted.items():
        value = f"{index}:{got.get(str(index), 'not quoted')}"
        comparison += compare_reference("pcr", value, at_index(index, references))
    return comparison
