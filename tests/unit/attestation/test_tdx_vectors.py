"""Quotes that Intel's hardware signed, with the collateral of their time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.sgx import Sgx
from bentoml_secure.attestation.tees.tdx import Tdx
from bentoml_secure.digest import Digest
from bentoml_secure.errors import MalformedInputError, PolicyRejected, SecureError
from bentoml_secure.testing.dcap_pki import DcapPki
from tests.evidence_vectors import vector
from tests.unit.attestation.dcap import FOREIGN, PKI, flipped, refused

THEN = datetime(2025, 7, 1, tzinfo=UTC)
HEADER_BYTES = 48


@dataclass(frozen=True)
class Vector:
    """A quote and its collateral.

    ``body_bytes`` is the length of the body; ``root_at`` and ``root_end`` where the
    quote's copy of the root begins and ends.
    """

    kind: str
    quote: bytes
    collateral: bytes
    body_bytes: int

    @property
    def root_at(self) -> int:
        return self.quote.rindex(b"-----BEGIN CERTIFICATE-----")

    @property
    def root_end(self) -> int:
        mark = b"-----END CERTIFICATE-----"
        return self.quote.rindex(mark) + len(mark)

    def verify(
        self,
        *,
        quote: bytes | None = None,
        collateral: bytes | None = None,
        now: datetime = THEN,
    ) -> VerifiedClaims:
        evidence = Evidence(kind=self.kind, blob=self.quote if quote is None else quote)
        given = self.collateral if collateral is None else collateral
        return load_tee(self.kind).verify(evidence, (given,), now=now)

    def edited(self, **values: Any) -> bytes:
        return json.dumps({**json.loads(self.collateral), **values}).encode()


def load(kind: str) -> Vector:
    quote = vector(f"{kind}/{kind}_quote")
    collateral = vector(f"{kind}/{kind}_quote_collateral.json")
    return Vector(kind, quote, collateral, {"tdx": 584, "sgx": 384}[kind])


@pytest.fixture(params=["tdx", "sgx"])
def genuine(request: pytest.FixtureRequest) -> Vector:
    return load(request.param)


def report_data(claims: VerifiedClaims) -> bytes:
    assert claims.report_data is not None
    return claims.report_data


def test_a_td() -> None:
    claims = load("tdx").verify()
    got = claims.claims
    assert (claims.kind, claims.vendor, claims.simulated) == ("tdx", "intel", False)
    assert got["status"] == "UpToDate"
    assert got["advisories"] == []
    assert got["tcb_evaluation"] == 17
    assert got["fmspc"] == "b0c06f000000"
    assert got["pck_ca"] == "platform"
    assert (got["dynamic_platform"], got["cached_keys"], got["smt"]) == (True,) * 3
    assert got["mr_td"].startswith("91eb2b44d141d4ece09f0c75c2c53d24")
    assert got["rtmr"]["3"] == "00" * 48
    assert got["xfam"] == "e702060000000000"
    assert claims.platform_id == "811dca2a26b952e85bb6448b097ba4fd"
    assert report_data(claims).hex().startswith("9a9d48e7f6799642d3d1b34e1e5e1742")
    # The revocation list of platform certificates ends first.
    assert claims.expires_at == datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)


def test_an_enclave() -> None:
    claims = load("sgx").verify()
    got = claims.claims
    assert (claims.kind, claims.vendor, claims.simulated) == ("sgx", "intel", False)
    assert got["status"] == "ConfigurationAndSWHardeningNeeded"
    assert got["advisories"] == ["INTEL-SA-00289", "INTEL-SA-00615"]
    assert got["fmspc"] == "00a067110000"
    assert got["pck_ca"] == "processor"
    assert (got["dynamic_platform"], got["cached_keys"], got["smt"]) == (None,) * 3
    assert got["mr_enclave"].startswith("33d8736db756ed4997e04ba358d27833")
    assert claims.platform_id == "d04ec06d4e6d92dc90d0ad3cf5ee2ddf"
    assert report_data(claims).rstrip(b"\0") == b"Hello, world!"
    assert claims.expires_at == datetime(2025, 7, 19, 10, 1, 18, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "check", "when"),
    [
        ("tdx", "collateral.issued", "2025-06-19T10:32:26Z"),
        ("tdx", None, "2025-06-19T10:32:27Z"),
        ("tdx", None, "2025-07-19T10:00:34Z"),
        ("tdx", "crl.expired", "2025-07-19T10:00:35Z"),
        ("sgx", "collateral.issued", "2025-06-19T10:56:10Z"),
        ("sgx", None, "2025-06-19T10:56:11Z"),
        ("sgx", None, "2025-07-19T10:01:18Z"),
        ("sgx", "collateral.expired", "2025-07-19T10:01:19Z"),
        ("sgx", "crl.expired", "2026-11-01T00:00:00Z"),
        ("tdx", "crl.expired", "2026-11-01T00:00:00Z"),
    ],
)
def test_only_in_their_time(kind: str, check: str | None, when: str) -> None:
    genuine, now = load(kind), datetime.fromisoformat(when)
    if check is None:
        assert genuine.verify(now=now) == genuine.verify()
    else:
        refused(check, lambda: genuine.verify(now=now))


def survives(genuine: Vector, changes: Callable[[], Any]) -> list[int]:
    """Return where a change passed, after checking that it changed no claim."""
    passed = []
    for at, quote in changes():
        try:
            claims = genuine.verify(quote=quote)
        except SecureError:
            continue
        assert claims == genuine.verify()
        passed.append(at)
    return passed


def test_every_bit_of_the_header(genuine: Vector) -> None:
    def changes() -> Any:
        for at in range(HEADER_BYTES):
            for bit in range(8):
                yield at, flipped(genuine.quote, at, 1 << bit)

    assert survives(genuine, changes) == []


def test_bits_all_over_what_is_signed(genuine: Vector) -> None:
    def changes() -> Any:
        for at in range(HEADER_BYTES, HEADER_BYTES + genuine.body_bytes + 4, 3):
            yield at, flipped(genuine.quote, at, 1 << at % 8)

    assert survives(genuine, changes) == []


def test_bits_all_over_what_vouches_for_it(genuine: Vector) -> None:
    def changes() -> Any:
        start = HEADER_BYTES + genuine.body_bytes + 4
        for at in range(start, genuine.root_at, 7):
            yield at, flipped(genuine.quote, at, 1 << at % 8)

    assert survives(genuine, changes) == []


def test_bits_all_over_the_copy_of_the_root(genuine: Vector) -> None:
    def changes() -> Any:
        for at in range(genuine.root_at, genuine.root_end, 7):
            yield at, flipped(genuine.quote, at, 1 << at % 8)

    assert survives(genuine, changes) == []


def test_padding(genuine: Vector) -> None:
    assert genuine.verify(quote=genuine.quote + bytes(500)) == genuine.verify()
    with pytest.raises(MalformedInputError, match="beyond its end"):
        genuine.verify(quote=genuine.quote + b"\x01")


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("tcb_info", "tcb_info.signature"),
        ("tcb_info_signature", "tcb_info.signature"),
        ("qe_identity", "qe_identity.signature"),
        ("qe_identity_signature", "qe_identity.signature"),
        ("root_ca_crl", "crl"),
        ("pck_crl", "crl"),
    ],
)
def test_edited_collateral(genuine: Vector, name: str, check: str) -> None:
    text = json.loads(genuine.collateral)[name]
    # The last digit of a signature, or of the date at which an item changed.
    at = max(i for i, c in enumerate(text) if c.isdigit())
    changed = text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :]
    refused(check, lambda: genuine.verify(collateral=genuine.edited(**{name: changed})))


@pytest.mark.parametrize("name", ["tcb_info_issuer_chain", "qe_identity_issuer_chain"])
def test_another_signer_of_collateral(genuine: Vector, name: str) -> None:
    other = DcapPki(now=THEN, name="another")
    chain = other.tcb_signer.pem + other.root.pem
    refused("chain", lambda: genuine.verify(collateral=genuine.edited(**{name: chain})))


def test_lists_under_a_foreign_root(genuine: Vector) -> None:
    lists = FOREIGN.revocation_list(FOREIGN.root).hex()
    edited = genuine.edited(root_ca_crl=lists)
    refused("crl", lambda: genuine.verify(collateral=edited))


def test_a_foreign_root(genuine: Vector) -> None:
    evidence = Evidence(kind=genuine.kind, blob=genuine.quote)
    tee = (Tdx if genuine.kind == "tdx" else Sgx)(root=PKI.root_digest)
    given = (genuine.collateral,)
    refused("chain.root", lambda: tee.verify(evidence, given, now=THEN))
    with_root = genuine.edited(tcb_info_issuer_chain=PKI.root.pem)
    refused("crl", lambda: tee.verify(evidence, (with_root,), now=THEN))


def test_a_td_under_a_root_that_only_looks_like_intels(genuine: Vector) -> None:
    assert genuine.verify().root == Digest(
        "sha256:44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
    )


def test_collateral_of_the_other_kind() -> None:
    td, enclave = load("tdx"), load("sgx")
    refused("collateral.tee", lambda: td.verify(collateral=enclave.collateral))
    refused("collateral.tee", lambda: enclave.verify(collateral=td.collateral))


def test_older_firmware_than_the_collateral_knows() -> None:
    text = vector("tdx/tdx-quote.hex").decode().strip().removeprefix("0x")
    genuine = load("tdx")
    refused("tcb.level", lambda: genuine.verify(quote=bytes.fromhex(text)))


class TestPolicy:
    def appraise(self, genuine: Vector, table: dict[str, Any], nonce: bytes) -> Any:
        policy = AppraisalPolicy.from_table(
            {
                "version": 1,
                "max_age_seconds": 300,
                "allow": [genuine.kind],
                genuine.kind: table,
            }
        )
        return appraise(
            genuine.verify(),
            policy,
            report_data=nonce,
            now=THEN,
            nonce_issued_at=THEN,
        )

    def test_a_td_is_accepted_and_another_nonce_is_not(self) -> None:
        genuine = load("tdx")
        claims = genuine.verify()
        table = {"mr_td": [claims.claims["mr_td"]]}
        assert self.appraise(genuine, table, report_data(claims)).kind == "tdx"
        with pytest.raises(PolicyRejected, match="report_data: got") as caught:
            self.appraise(genuine, table, bytes(64))
        assert len(caught.value.findings) == 1

    def test_an_enclave_is_accepted_where_its_status_is(self) -> None:
        genuine = load("sgx")
        claims = genuine.verify()
        table = {"mr_enclave": [claims.claims["mr_enclave"]]}
        with pytest.raises(PolicyRejected, match="status: got ConfigurationAnd"):
            self.appraise(genuine, table, report_data(claims))
        status = {"status": ["ConfigurationAndSWHardeningNeeded"]}
        assert self.appraise(genuine, {**table, **status}, report_data(claims))
        rejecting = {**table, **status, "reject_advisories": ["INTEL-SA-00615"]}
        with pytest.raises(PolicyRejected, match="advisories: got INTEL-SA-00615"):
            self.appraise(genuine, rejecting, report_data(claims))
