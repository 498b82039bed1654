"""Evidence of Intel's kinds made under a development root, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.attestation.tees.sgx import Sgx
from bentoml_secure.attestation.tees.tdx import Tdx
from bentoml_secure.errors import CheckFailedError
from bentoml_secure.testing.dcap_pki import DcapPki

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
REPORT_DATA = bytes(range(64))
PKI = DcapPki(now=NOW)
FOREIGN = DcapPki(now=NOW, name="foreign")
TDX, SGX = Tdx(root=PKI.root_digest), Sgx(root=PKI.root_digest)


def tdx(
    quote: bytes | None = None, *endorsements: bytes, now: datetime = NOW
) -> VerifiedClaims:
    """Verify a TD's quote under the development root; a good one by default."""
    blob = PKI.tdx_quote(REPORT_DATA) if quote is None else quote
    return TDX.verify(
        Evidence(kind="tdx", blob=blob),
        endorsements or (PKI.collateral("TDX"),),
        now=now,
    )


def sgx(
    quote: bytes | None = None, *endorsements: bytes, now: datetime = NOW
) -> VerifiedClaims:
    """Verify an enclave's quote under the development root; a good one by default."""
    blob = PKI.sgx_quote(REPORT_DATA) if quote is None else quote
    return SGX.verify(
        Evidence(kind="sgx", blob=blob),
        endorsements or (PKI.collateral("SGX"),),
        now=now,
    )


def refused(check: str, verify: Callable[[], object]) -> None:
    """Demand that one named check refuses, and no other."""
    with pytest.raises(CheckFailedError) as caught:
        verify()
    assert [finding.field for finding in caught.value.findings] == [check]


def flipped(data: bytes, at: int, mask: int = 1) -> bytes:
    """Return bytes with one of them changed."""
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def fields(comparison: Comparison) -> list[str]:
    """Return the names of what a policy found."""
    return [finding.field for finding in comparison.findings]


def left_out(comparison: Comparison) -> Mapping[str, str]:
    """Return what a policy did not check, and why."""
    return {entry.field: entry.reason for entry in comparison.unchecked}


def setting(where: slice, value: bytes) -> Callable[[bytearray], None]:
    """Return an edit of a body that puts bytes there."""

    def edit(body: bytearray) -> None:
        body[where] = value

    return edit


def level(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Return an edit of the one level of a TCB info, or the first of an identity."""

    def edit(info: dict[str, Any]) -> None:
        info["tcbLevels"][0] |= values

    return edit


def field(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Return an edit of a document's fields."""

    def edit(document: dict[str, Any]) -> None:
        document |= values

    return edit
