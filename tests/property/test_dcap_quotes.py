"""Quotes that were changed: refused, or every claim is as it was signed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.tees.dcap_collateral import find_collateral
from bentoml_secure.attestation.tees.dcap_quote import Quote, TeeType, parse_quote
from bentoml_secure.attestation.tees.sgx import Sgx
from bentoml_secure.attestation.tees.tdx import Tdx
from bentoml_secure.errors import MalformedInputError, SecureError
from bentoml_secure.testing.dcap_pki import DcapPki, QuoteParts

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
PKI = DcapPki(now=NOW)
KINDS = ("tdx", "sgx")
TEES = {"tdx": TeeType.TDX, "sgx": TeeType.SGX}


@functools.cache
def make(kind: str) -> tuple[bytes, bytes]:
    quote = PKI.tdx_quote if kind == "tdx" else PKI.sgx_quote
    return quote(bytes(range(64))), PKI.collateral(kind.upper())


def verify(kind: str, quote: bytes, collateral: bytes) -> VerifiedClaims:
    tee = (Tdx if kind == "tdx" else Sgx)(root=PKI.root_digest)
    return tee.verify(Evidence(kind=kind, blob=quote), (collateral,), now=NOW)


@functools.cache
def honest(kind: str) -> VerifiedClaims:
    return verify(kind, *make(kind))


def refused_or_same(kind: str, call: Callable[[], VerifiedClaims]) -> None:
    try:
        claims = call()
    except SecureError:
        return
    assert claims == honest(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quote_with_a_bit_flipped(kind: str) -> None:
    quote, collateral = make(kind)

    @settings(max_examples=150)
    @given(st.integers(0, 8 * len(quote) - 1))
    def flip(bit: int) -> None:
        changed = bytearray(quote)
        changed[bit // 8] ^= 1 << bit % 8
        refused_or_same(kind, lambda: verify(kind, bytes(changed), collateral))

    flip()


@pytest.mark.parametrize("kind", KINDS)
def test_a_quote_with_a_part_replaced(kind: str) -> None:
    quote, collateral = make(kind)

    @settings(max_examples=100)
    @given(st.integers(0, len(quote)), st.integers(0, 600), st.binary(max_size=8))
    def replace(at: int, dropped: int, inserted: bytes) -> None:
        changed = quote[:at] + inserted + quote[at + dropped :]
        refused_or_same(kind, lambda: verify(kind, changed or b"\0", collateral))

    replace()


@pytest.mark.parametrize("kind", KINDS)
def test_collateral_with_a_part_replaced(kind: str) -> None:
    quote, collateral = make(kind)

    @settings(max_examples=150)
    @given(st.integers(0, len(collateral)), st.integers(0, 4), st.binary(max_size=4))
    def replace(at: int, dropped: int, inserted: bytes) -> None:
        changed = collateral[:at] + inserted + collateral[at + dropped :]
        refused_or_same(kind, lambda: verify(kind, quote, changed))

    replace()


@pytest.mark.parametrize("tee", list(TeeType))
@given(data=st.binary(max_size=600))
@example(data=bytes(48))
def test_bytes_are_a_quote_or_malformed(tee: TeeType, data: bytes) -> None:
    try:
        quote = parse_quote(data, tee)
    except SecureError:
        return
    assert isinstance(quote, Quote)


@given(
    st.sampled_from(KINDS),
    st.integers(0, 400),
    st.integers(0, 200),
    st.binary(max_size=300),
    st.integers(0, 2**16 - 1).filter(lambda number: number != 5),
)
@settings(max_examples=50)
def test_lengths_are_read_as_they_were_written(
    kind: str, data: int, padding: int, certification: bytes, certification_type: int
) -> None:
    parts = QuoteParts(
        qe_data=bytes(data),
        certification_type=certification_type,
        certification=certification,
    )
    make_quote = PKI.tdx_quote if kind == "tdx" else PKI.sgx_quote
    blob = make_quote(bytes(64), parts=parts)
    quote = parse_quote(blob + bytes(padding), TEES[kind])
    assert quote.signed == blob
    assert quote.certification_type == certification_type
    assert quote.certification == certification
    assert quote.pck_chain is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.sampled_from(KINDS), st.data())
@settings(max_examples=100)
def test_collateral_with_fields_of_any_form(kind: str, data: st.DataObject) -> None:
    document = json.loads(make(kind)[1])
    name = data.draw(st.sampled_from([*sorted(document), "pck_certificate_chain"]))
    document[name] = data.draw(JSON)
    try:
        found = find_collateral([json.dumps(document).encode()])
    except MalformedInputError:
        return
    assert len(found) == 1
