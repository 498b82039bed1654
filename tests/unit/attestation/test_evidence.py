from __future__ import annotations

import ast
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import bentoml_secure
from bentoml_secure.attestation.evidence import (
    MAX_ENDORSEMENTS,
    MAX_EVIDENCE_BYTES,
    Evidence,
    VerifiedClaims,
    endorsements_from_json,
    endorsements_to_json,
    format_seconds,
    parse_seconds,
)
from bentoml_secure.digest import Digest
from bentoml_secure.errors import MalformedInputError

PACKAGE = Path(bentoml_secure.__file__).parent


def makers_of(noun: str) -> set[str]:
    """Files of the package that call ``noun``."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == noun
    }


def test_only_verifiers_make_claims_and_only_the_appraisal_makes_results() -> None:
    makers = makers_of("VerifiedClaims")
    assert makers
    assert all(maker.startswith("attestation/tees/") for maker in makers)
    assert makers_of("AttestationResult") == {"attestation/appraisal.py"}


def test_evidence_travels_as_kind_and_base64() -> None:
    evidence = Evidence(kind="sev-snp", blob=b"\x00report\xff")
    assert evidence.to_json() == {"kind": "sev-snp", "blob": "AHJlcG9ydP8="}
    assert Evidence.from_json(evidence.to_json()) == evidence


def test_the_digest_of_evidence_covers_its_kind() -> None:
    one, other = (Evidence(kind=kind, blob=b"x") for kind in ("tdx", "sgx"))
    assert one.digest != other.digest
    assert one.digest.startswith("sha256-jcs-v1:")


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ([], "evidence: got list, want an object"),
        ({"kind": "tdx"}, "field 'blob' is missing"),
        ({"kind": "tdx", "blob": "AA==", "claims": {}}, "unknown field 'claims'"),
        ({"kind": "TDX", "blob": "AA=="}, "evidence kind: got 'TDX'"),
        ({"kind": "tdx\n", "blob": "AA=="}, "evidence kind: got"),
        ({"kind": None, "blob": "AA=="}, "evidence kind: got None"),
        ({"kind": "x" * 33, "blob": "AA=="}, "evidence kind: got"),
        ({"kind": "tdx", "blob": ""}, "tdx evidence: got 0 bytes"),
        ({"kind": "tdx", "blob": 7}, "evidence blob"),
        ({"kind": "tdx", "blob": "AB=="}, "evidence blob"),
        ({"kind": "tdx", "blob": "A A="}, "evidence blob"),
        ({"kind": "tdx", "blob": "\u00e9AA="}, "evidence blob"),
        ({"kind": "tdx", "blob": "A" * (2 * MAX_EVIDENCE_BYTES)}, "evidence blob"),
    ],
)
def test_evidence_of_another_form_is_refused(document: Any, match: str) -> None:
    with pytest.raises(MalformedInputError, match=match):
        Evidence.from_json(document)


def test_evidence_over_the_cap_cannot_be_made() -> None:
    Evidence(kind="tdx", blob=bytes(MAX_EVIDENCE_BYTES))
    with pytest.raises(MalformedInputError, match="want 1 to 262144"):
        Evidence(kind="tdx", blob=bytes(MAX_EVIDENCE_BYTES + 1))


def test_endorsements_travel_as_a_list_of_base64() -> None:
    endorsements = (b"vcek", b"", b"\xff")
    assert endorsements_from_json(endorsements_to_json(endorsements)) == endorsements


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({}, "want a list of at most 64"),
        (["AA=="] * (MAX_ENDORSEMENTS + 1), "want a list of at most 64"),
        (["AA==", "?"], "endorsement 1"),
        ([None], "endorsement 0"),
    ],
)
def test_endorsements_of_another_form_are_refused(document: Any, match: str) -> None:
    with pytest.raises(MalformedInputError, match=match):
        endorsements_from_json(document)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 63, 65])
def test_claims_hold_a_whole_challenge_or_are_not_made(length: int) -> None:
    with pytest.raises(MalformedInputError, match=f"got {length} bytes, want 32 or 64"):
        VerifiedClaims(
            kind="tdx",
            report_data=bytes(length),
            claims={},
            platform_id="p",
            vendor="v",
            root=Digest("sha256:00"),
            issued_at=None,
            expires_at=None,
            simulated=False,
        )


def test_a_time_has_one_spelling() -> None:
    east = timezone(timedelta(hours=2))
    time = datetime(2026, 3, 1, 14, 0, 59, 999_999, tzinfo=east)
    assert format_seconds(time) == "2026-03-01T12:00:59Z"
    assert parse_seconds("2026-03-01T12:00:59Z", what="t") == datetime(
        2026, 3, 1, 12, 0, 59, tzinfo=UTC
    )


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01T12:00:59+00:00",
        "2026-03-01T12:00:59.5Z",
        "2026-03-01 12:00:59Z",
        "2026-03-01T12:00:59Z\n",
        "2026-02-30T12:00:00Z",
        "2026-03-01T24:00:60Z",
        "0000-01-01T00:00:00Z",
        "٢026-03-01T12:00:59Z",  # a digit, though not an ASCII one
        1772366459,
        None,
    ],
)
def test_other_spellings_of_a_time_are_refused(text: object) -> None:
    with pytest.raises(MalformedInputError, match="t: "):
        parse_seconds(text, what="t")
