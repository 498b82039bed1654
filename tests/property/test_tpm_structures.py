"""A TPM's structures against arbitrary bytes: read as made, or refused by our error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.attestation.attesters.certificate_table import (
    parse_certificate_table,
)
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.tpm import Tpm
from bentoml_secure.attestation.tees.tpm_credential import EnrolmentRequest
from bentoml_secure.attestation.tees.tpm_endorsement import verify_endorsement_key
from bentoml_secure.attestation.tees.tpm_enrolment import parse_enrolment
from bentoml_secure.attestation.tees.tpm_keys import parse_attestation_key
from bentoml_secure.attestation.tees.tpm_quote import parse_quote
from bentoml_secure.attestation.tees.tpm_structures import ALG_SHA256
from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import SecureError
from bentoml_secure.testing.tpm_pki import (
    NOW,
    QuoteParts,
    TpmPki,
    marshal_public,
)

PKI = TpmPki()
EVIDENCE = PKI.evidence()
MESSAGE = QuoteParts().marshal()
PUBLIC = marshal_public(PKI.ak_key)
REFUSED = (
    r"TPM |chain\.|ek\.|ak\.|quote\.|enrolment|attestation key|endorsement"
    r"|canonical|Ed25519 key|event log"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda child: st.lists(child) | st.dictionaries(st.text(), child),
    max_leaves=8,
)


def verify(evidence: Evidence) -> None:
    Tpm().verify(evidence, PKI.chain, now=NOW)


@given(
    st.binary(max_size=64),
    st.integers(0, 2**64 - 1),
    st.integers(1, 2**24 - 1),
    st.binary(max_size=64),
)
def test_a_quote_reads_as_it_is_made(
    extra_data: bytes, clock: int, bits: int, digest: bytes
) -> None:
    quote = parse_quote(
        QuoteParts(
            extra_data=extra_data,
            clock=clock,
            banks=[(ALG_SHA256, bits)],
            pcr_digest=digest,
        ).marshal()
    )
    assert (quote.extra_data, quote.clock, quote.pcr_digest) == (
        extra_data,
        clock,
        digest,
    )
    assert sum(1 << index for index in quote.pcr_selection) == bits


@pytest.mark.parametrize(
    ("parse", "genuine"),
    [
        (parse_quote, MESSAGE),
        (parse_attestation_key, PUBLIC),
        (parse_certificate_table, bytes(48)),
        (lambda der: verify_endorsement_key(der, PKI.chain, now=NOW), PKI.root),
        (lambda der: verify_endorsement_key(PKI.ek_certificate, [der], now=NOW), b""),
    ],
    ids=["quote", "key", "table", "certificate", "endorsement"],
)
@given(data=st.data())
def test_hurt_structures_are_read_or_refused(
    parse: Callable[[bytes], object], genuine: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(genuine)))
    dropped, inserted = data.draw(st.integers(0, 4)), data.draw(st.binary(max_size=40))
    hurt = genuine[:at] + inserted + genuine[at + dropped :]
    try:
        parse(hurt)
    except SecureError:
        return
    assert parse in (parse_quote, parse_attestation_key, parse_certificate_table)


@given(st.integers(0, 8 * len(EVIDENCE.blob) - 1))
def test_any_flipped_bit_of_evidence_is_refused(bit: int) -> None:
    blob = bytearray(EVIDENCE.blob)
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SecureError, match=REFUSED):
        verify(Evidence(kind="tpm", blob=bytes(blob)))


@given(st.sampled_from(sorted(json.loads(EVIDENCE.blob))), JSON)
def test_any_value_replaced_in_evidence_is_refused(field: str, value: Any) -> None:
    document = json.loads(EVIDENCE.blob)
    if document[field] == value or (field == "enrolment" and value is None):
        return
    try:
        blob = canonical_json({**document, field: value})
    except SecureError:
        return
    with pytest.raises(SecureError, match=REFUSED):
        verify(Evidence(kind="tpm", blob=blob))


@given(st.binary(min_size=1, max_size=200))
def test_random_bytes_are_refused(blob: bytes) -> None:
    evidence = Evidence(kind="tpm", blob=blob)
    for read in (verify, Tpm().describe):
        with pytest.raises(SecureError, match="TPM evidence"):
            read(evidence)


@given(st.binary(min_size=1, max_size=200), st.binary(min_size=1, max_size=200))
def test_quotes_that_nobody_signed_are_refused(
    message: bytes, signature: bytes
) -> None:
    parts = replace(PKI.parts(), message=message, signature=signature)
    with pytest.raises(SecureError, match=REFUSED):
        verify(parts.to_evidence())


@pytest.mark.parametrize("parse", [parse_enrolment, EnrolmentRequest.from_json])
@given(document=JSON)
def test_random_json_is_refused(
    parse: Callable[[object], object], document: object
) -> None:
    with pytest.raises(SecureError, match=REFUSED):
        parse(document)
