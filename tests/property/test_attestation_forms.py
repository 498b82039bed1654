"""Attestation against arbitrary bytes: accepted as made, or refused with our error."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.attestation.appraisal import AppraisalPolicy, parse_policy
from bentoml_secure.attestation.dev_chain import make_root
from bentoml_secure.attestation.evidence import (
    Evidence,
    endorsements_from_json,
    format_seconds,
    parse_seconds,
)
from bentoml_secure.attestation.key_document import KeyDocument, Role, report_data
from bentoml_secure.attestation.tees.simulated import Simulated, SimulatedAttester
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.digest import canonical_json, digest_bytes
from bentoml_secure.errors import ConfigurationError, SecureError

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
NONCE = bytes(32)
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda b: f"sha256-jcs-v1:{b.hex()}")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda child: st.lists(child) | st.dictionaries(st.text(), child),
    max_leaves=8,
)

ROOT_KEY = Ed25519PrivateKey.generate()
ROOT = make_root(ROOT_KEY, now=NOW)
POLICY = AppraisalPolicy.from_table(
    {
        "version": 1,
        "max_age_seconds": 300,
        "allow": ["simulated"],
        "simulated": {"roots": [digest_bytes(ROOT)]},
    }
)
ATTESTER = SimulatedAttester(
    ROOT_KEY, ROOT, platform_id="host-a", measurement="ab" * 32, clock=lambda: NOW
)


@st.composite
def documents(draw: st.DrawFn) -> KeyDocument:
    role = draw(st.sampled_from(Role))
    keys = st.dictionaries(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}", fullmatch=True),
        st.binary(min_size=1, max_size=64).map(bytes.hex),
        max_size=8,
    )
    at = draw(st.datetimes(timezones=st.just(UTC)))
    fields = {
        "version": 1,
        "role": role.value,
        "service": draw(
            st.text(min_size=1, max_size=128).filter(lambda name: name.isprintable())
        ),
        "segment": draw(DIGESTS) if role in (Role.RUNNER, Role.PROVER) else None,
        "plan": draw(DIGESTS),
        "package": draw(DIGESTS),
        "config_digest": draw(DIGESTS),
        "hpke": draw(keys),
        "ed25519": draw(st.binary(min_size=32, max_size=32)).hex(),
        "platform": draw(st.sampled_from(["simulated", "tdx", "sev-snp"])),
        "boot_id": draw(st.binary(min_size=16, max_size=16)).hex(),
        "not_after": format_seconds(at),
    }
    return KeyDocument.from_json(fields)


DOCUMENT = KeyDocument.from_json(
    {
        "version": 1,
        "role": "entry",
        "service": "diagnosis",
        "segment": None,
        "plan": "sha256-jcs-v1:" + "1" * 64,
        "package": "sha256-jcs-v1:" + "2" * 64,
        "config_digest": "sha256-jcs-v1:" + "3" * 64,
        "hpke": {},
        "ed25519": "44" * 32,
        "platform": "simulated",
        "boot_id": "55" * 16,
        "not_after": format_seconds(NOW + timedelta(days=1)),
    }
)
EVIDENCE = ATTESTER.attest(report_data(NONCE, DOCUMENT))


def accept(evidence: Evidence, document: KeyDocument = DOCUMENT) -> None:
    verify_key_document(
        document,
        evidence,
        (),
        POLICY,
        nonce=NONCE,
        now=NOW,
        nonce_issued_at=NOW,
    )


@given(documents())
def test_a_key_document_survives_the_trip(document: KeyDocument) -> None:
    wire = canonical_json(document.to_json())
    again = KeyDocument.from_json(json.loads(wire))
    assert again == document
    assert again.digest == document.digest


@given(documents(), documents(), st.binary(min_size=32, max_size=32))
def test_report_data_tells_documents_apart(
    one: KeyDocument, other: KeyDocument, nonce: bytes
) -> None:
    assert (report_data(nonce, one) == report_data(nonce, other)) == (one == other)


@given(st.integers(0, 8 * len(EVIDENCE.blob) - 1))
def test_any_flipped_bit_of_evidence_is_refused(bit: int) -> None:
    blob = bytearray(EVIDENCE.blob)
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SecureError, match="simulated"):
        Simulated().verify(Evidence(kind="simulated", blob=bytes(blob)), (), now=NOW)
    accept(EVIDENCE)


@given(st.integers(0, 1), st.integers(0, 8 * 320))
def test_a_flipped_bit_of_a_certificate_is_refused_if_signed_again(
    which: int, bit: int
) -> None:
    """Whoever holds the leaf's key can sign any certificates, and gains nothing."""
    attester = SimulatedAttester(
        ROOT_KEY, ROOT, platform_id="host-a", measurement="ab" * 32, clock=lambda: NOW
    )
    attester._certificates[which] = _flip_base64(attester._certificates[which], bit)
    with pytest.raises(SecureError, match="simulated evidence"):
        accept(attester.attest(report_data(NONCE, DOCUMENT)))


def _flip_base64(text: str, bit: int) -> str:
    der = bytearray(base64.b64decode(text))
    der[bit // 8 % len(der)] ^= 1 << bit % 8
    return base64.b64encode(der).decode()


def _nodes(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    return [path] + [p for key, child in items for p in _nodes(child, (*path, key))]


@given(st.data())
def test_any_value_replaced_in_evidence_is_refused(data: st.DataObject) -> None:
    blob = json.loads(EVIDENCE.blob)
    path = data.draw(st.sampled_from([path for path in _nodes(blob) if path]))
    value = data.draw(JSON)
    parent = blob
    for key in path[:-1]:
        parent = parent[key]
    if parent[path[-1]] == value:
        return
    parent[path[-1]] = value
    text = json.dumps(blob, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    with pytest.raises(SecureError, match=r"simulated|canonical"):
        accept(Evidence(kind="simulated", blob=text.encode(errors="surrogatepass")))


@given(st.binary(min_size=1, max_size=200))
def test_random_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(SecureError, match="simulated evidence"):
        accept(Evidence(kind="simulated", blob=blob))


@pytest.mark.parametrize(
    "parse", [Evidence.from_json, KeyDocument.from_json, endorsements_from_json]
)
@given(document=JSON)
def test_random_json_is_refused(
    parse: Callable[[object], object], document: object
) -> None:
    try:
        parse(document)
    except SecureError:
        return
    assert parse is endorsements_from_json
    assert isinstance(document, list)


@given(st.sampled_from(sorted(DOCUMENT.to_json())), JSON)
def test_random_fields_of_a_key_document(field: str, value: object) -> None:
    fields = {**DOCUMENT.to_json(), field: value}
    try:
        document = KeyDocument.from_json(fields)
    except SecureError:
        return
    assert document.to_json() == fields


@given(st.text())
def test_a_time_reads_only_as_it_is_written(text: str) -> None:
    try:
        time = parse_seconds(text, what="time")
    except SecureError:
        return
    assert format_seconds(time) == text


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_survives_the_trip(time: datetime) -> None:
    again = parse_seconds(format_seconds(time), what="time")
    assert again == time.replace(microsecond=0)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_random_policies_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="appraisal policy"):
        parse_policy(data)


@given(
    st.sampled_from(["version", "max_age_seconds", "allow", "simulated", "platforms"]),
    JSON,
)
def test_random_values_in_a_policy(key: str, value: object) -> None:
    table = {**POLICY.to_json(), key: value}
    try:
        policy = AppraisalPolicy.from_table(table)
    except ConfigurationError:
        return
    assert AppraisalPolicy.from_table(policy.to_json()) == policy
    assert key == "max_age_seconds" or table == POLICY.to_json()
