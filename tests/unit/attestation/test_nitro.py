"""Attacks on attestation documents of Nitro enclaves, under a development root."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.nitro import MAX_DOCUMENT_BYTES, Nitro
from bentoml_secure.errors import (
    AttestationError,
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    PolicyRejected,
)
from bentoml_secure.testing.nitro_pki import NitroPki

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
REPORT_DATA = bytes(range(64))
PCR0 = "01" * 48


@pytest.fixture(scope="module")
def pki() -> NitroPki:
    return NitroPki(now=NOW)


@pytest.fixture(scope="module")
def verify(pki: NitroPki) -> Callable[..., VerifiedClaims]:
    tee = Nitro(root=pki.root)

    def verify(evidence: Evidence, now: datetime = NOW) -> VerifiedClaims:
        return tee.verify(evidence, (), now=now)

    return verify


Verify = Callable[..., VerifiedClaims]


def refused(verify: Verify, evidence: Evidence, now: datetime = NOW) -> str:
    with pytest.raises(CheckFailedError) as caught:
        verify(evidence, now)
    (finding,) = caught.value.findings
    return finding.field


def policy(**table: Any) -> AppraisalPolicy:
    return AppraisalPolicy.from_table(
        {"version": 1, "max_age_seconds": 300, "allow": ["nitro"], "nitro": table}
    )


def fields_of(
    claims: VerifiedClaims,
    accepted: AppraisalPolicy,
    report_data: bytes | Unchecked = REPORT_DATA,
    now: datetime = NOW,
) -> list[str]:
    try:
        appraise(
            claims, accepted, report_data=report_data, now=now, nonce_issued_at=None
        )
    except PolicyRejected as rejection:
        return [finding.field for finding in rejection.findings]
    return []


class TestGood:
    def test_a_document_says_what_was_signed(
        self, pki: NitroPki, verify: Verify
    ) -> None:
        claims = verify(pki.document(nonce=b"n" * 20, public_key=b"k" * 30))
        assert (claims.kind, claims.vendor) == ("nitro", "none (simulated)")
        assert claims.simulated
        assert claims.report_data == REPORT_DATA
        assert claims.platform_id == "i-0123456789abcdef0"
        assert claims.issued_at == NOW
        assert claims.expires_at == NOW + timedelta(hours=3)
        assert claims.claims["pcrs"]["0"] == PCR0
        assert claims.claims["nonce"] == (b"n" * 20).hex()
        assert claims.claims["public_key"] == (b"k" * 30).hex()
        assert claims.claims["user_data"] == REPORT_DATA.hex()

    def test_the_attester_covers_the_report_data(
        self, pki: NitroPki, verify: Verify
    ) -> None:
        other = bytes(64)
        assert verify(pki.attest(other)).report_data == other

    def test_with_its_tag_with_breaks_and_padded(
        self, pki: NitroPki, verify: Verify
    ) -> None:
        payload = pki.payload()
        want = verify(pki.signed(cbor2.dumps(payload)))
        open_ended = b"\xbf" + cbor2.dumps(payload)[1:] + b"\xff"
        for evidence in (
            pki.signed(cbor2.dumps(payload), tag=18),
            pki.signed(open_ended),
            Evidence(
                kind="nitro", blob=pki.signed(cbor2.dumps(payload)).blob + bytes(9)
            ),
        ):
            assert verify(evidence) == want

    def test_absent_fields_are_as_good_as_null(
        self, pki: NitroPki, verify: Verify
    ) -> None:
        payload = pki.payload(user_data=None)
        want = verify(pki.signed(cbor2.dumps(payload)))
        for name in ("nonce", "public_key", "user_data"):
            del payload[name]
        assert verify(pki.signed(cbor2.dumps(payload))) == want

    def test_it_is_described_unverified(self, pki: NitroPki) -> None:
        evidence = pki.signed(cbor2.dumps(pki.payload()), header={1: -7})
        described = Nitro().describe(evidence)
        assert described["module_id"] == "i-0123456789abcdef0-enc0123456789abcdef"
        assert described["issued_at"] == "2026-03-01T12:00:00Z"
        assert described["certificates"] == 5


class TestChecks:
    """Each check, by a document that nothing else refuses."""

    @pytest.mark.parametrize(
        "header", [{1: -7}, {1: -35, 4: b"kid"}, {}, {1: -35, 2: [1]}, {1: "ES384"}]
    )
    def test_a_header_that_says_more_or_less_than_es384(
        self, pki: NitroPki, verify: Verify, header: dict[int, Any]
    ) -> None:
        evidence = pki.signed(cbor2.dumps(pki.payload()), header=header)
        assert refused(verify, evidence) == "cose.header"

    def test_an_unprotected_header(self, pki: NitroPki, verify: Verify) -> None:
        evidence = pki.signed(cbor2.dumps(pki.payload()), unprotected={1: -35})
        assert refused(verify, evidence) == "cose.unprotected"

    def test_a_signature_by_another_key(self, pki: NitroPki, verify: Verify) -> None:
        other = NitroPki(now=NOW)
        evidence = other.document(chain=pki.pki.chain())
        assert refused(verify, evidence) == "cose.signature"

    def test_a_document_of_a_nitro_tpm(self, pki: NitroPki, verify: Verify) -> None:
        evidence = pki.document(module_id="i-0123456789abcdef0-tpm0000000000000000")
        assert refused(verify, evidence) == "module_id"

    def test_a_signature_cut_short(self, pki: NitroPki, verify: Verify) -> None:
        message = cbor2.loads(pki.document().blob)
        for signature in (b"", message[3][:95], message[3] + b"\0", bytes(96)):
            blob = cbor2.dumps([*message[:3], signature])
            assert refused(verify, Evidence(kind="nitro", blob=blob)) == (
                "cose.signature"
            )


CHAIN_CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("chain.validity", 4, {"not_after": NOW - timedelta(seconds=1)}),
    ("chain.validity", 4, {"not_before": NOW + timedelta(seconds=1)}),
    ("chain.validity", 2, {"not_after": NOW - timedelta(seconds=1)}),
    ("chain.ca", 3, {"ca": False}),
    ("chain.ca", 2, {"ca": None}),
    ("chain.path_length", 1, {"path_length": 1}),
    ("chain.path_length", 2, {"path_length": 0}),
    ("chain.key_cert_sign", 1, {"key_cert_sign": False}),
    ("chain.leaf_ca", 4, {"ca": True}),
    ("chain.digital_signature", 4, {"digital_signature": False}),
    ("chain.issuer", 3, {"issuer": "somebody.else"}),
    ("chain.signature", 3, {"signer": ec.generate_private_key(ec.SECP384R1())}),
    ("chain.hash", 2, {"weak_hash": True}),
    (
        "chain.critical",
        4,
        {"extensions": ((x509.InhibitAnyPolicy(0), True),)},
    ),
]


class TestChain:
    @pytest.mark.parametrize(
        ("field", "index", "changes"),
        CHAIN_CASES,
        ids=[f"{field} of {index}" for field, index, _ in CHAIN_CASES],
    )
    def test_one_certificate_that_does_not_hold(
        self,
        pki: NitroPki,
        verify: Verify,
        field: str,
        index: int,
        changes: dict[str, Any],
    ) -> None:
        evidence = pki.document(chain=pki.pki.chain(index, **changes))
        assert refused(verify, evidence) == field

    def test_what_a_chain_may_say(self, pki: NitroPki, verify: Verify) -> None:
        for index, changes in (
            (1, {"path_length": 2}),
            (4, {"ca": None}),
            (4, {"extensions": ((x509.OCSPNoCheck(), False),)}),
        ):
            verify(pki.document(chain=pki.pki.chain(index, **changes)))

    def test_another_root(self, pki: NitroPki, verify: Verify) -> None:
        assert refused(verify, NitroPki(now=NOW).document()) == "chain.root"
        with pytest.raises(CheckFailedError, match=r"chain\.root: .*641a0321"):
            load_tee("nitro").verify(pki.document(), (), now=NOW)

    def test_the_pinned_root_above_another_chain(
        self, pki: NitroPki, verify: Verify
    ) -> None:
        other = NitroPki(now=NOW)
        chain = [pki.root, *other.pki.chain()[1:]]
        assert refused(verify, other.document(chain=chain)) == "chain.signature"

    def test_another_order(self, pki: NitroPki, verify: Verify) -> None:
        root, *rest, leaf = pki.pki.chain()
        for chain, field in (
            ([*rest, root, leaf], "chain.root"),
            ([root, *rest[::-1], leaf], "chain.issuer"),
            ([root, *rest[1:], leaf], "chain.issuer"),
            ([root, *rest, leaf, leaf], "chain.ca"),
            ([root, leaf], "chain.issuer"),
        ):
            assert refused(verify, pki.document(chain=chain)) == field

    def test_the_hours_of_the_leaf(self, pki: NitroPki, verify: Verify) -> None:
        for hours in (-3, 3):
            verify(pki.document(), NOW + timedelta(hours=hours))
        late = NOW + timedelta(hours=3, seconds=1)
        assert refused(verify, pki.document(), late) == "chain.validity"

    def test_a_development_root_has_to_say_so(self, pki: NitroPki) -> None:
        foreign = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name.from_rfc4514_string("CN=aws.nitro-enclaves,O=Amazon")
        root = (
            x509.CertificateBuilder(name, name, foreign.public_key(), 1)
            .not_valid_before(NOW)
            .not_valid_after(NOW + timedelta(days=1))
            .sign(foreign, SHA384())
            .public_bytes(Encoding.DER)
        )
        with pytest.raises(ConfigurationError, match="SIMULATED - NOT HARDWARE"):
            Nitro(root=root)
        with pytest.raises(ConfigurationError, match="does not parse"):
            Nitro(root=b"no certificate")


class TestForms:
    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"digest": "SHA256"}, "want SHA384"),
            ({"module_id": 7}, "module_id"),
            ({"module_id": ""}, "module_id"),
            ({"timestamp": "now"}, "want milliseconds"),
            ({"timestamp": True}, "want milliseconds"),
            ({"timestamp": 2**62}, "is no time"),
            ({"pcrs": []}, "want 1 to 32"),
            ({"pcrs": {}}, "want 1 to 32"),
            ({"pcrs": {0: bytes(48), 1: bytes(48)}}, "PCR 2 is missing"),
            ({"pcrs": {i: bytes(48) for i in range(33)}}, "want 1 to 32"),
            ({"pcrs": {32: bytes(48)}}, "no PCR has index 32"),
            ({"pcrs": {"0": bytes(48)}}, "no PCR has index '0'"),
            ({"pcrs": {0: bytes(47)}}, "want 32, 48 or 64 bytes"),
            ({"pcrs": {0: "00" * 24}}, "want 32, 48 or 64 bytes"),
            ({"cabundle": []}, "want 1 to 8 certificates"),
            ({"cabundle": [b""] * 9}, "want 1 to 8 certificates"),
            ({"cabundle": b"der"}, "want 1 to 8 certificates"),
            ({"cabundle": ["der"]}, "a certificate that is not bytes"),
            ({"certificate": None}, "a certificate that is not bytes"),
            ({"certificate": b""}, "does not parse"),
            ({"certificate": bytes(4097)}, "at most 4096"),
            ({"user_data": bytes(513)}, "at most 512"),
            ({"nonce": bytes(513)}, "at most 512"),
            ({"public_key": bytes(1025)}, "at most 1024"),
            ({"user_data": "text"}, "want null or"),
            ({"extra": 1}, "unknown field 'extra'"),
        ],
    )
    def test_a_payload_out_of_its_form(
        self, pki: NitroPki, verify: Verify, fields: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(pki.document(**fields))

    @pytest.mark.parametrize("name", ["pcrs", "module_id", "certificate", "digest"])
    def test_a_field_that_is_missing(
        self, pki: NitroPki, verify: Verify, name: str
    ) -> None:
        payload = pki.payload()
        del payload[name]
        with pytest.raises(MalformedInputError, match=f"'{name}' is missing"):
            verify(pki.signed(cbor2.dumps(payload)))

    @pytest.mark.parametrize(
        ("blob", "match"),
        [
            (b"\x84", "cut short"),
            (cbor2.dumps([b"", {}, b""]), "array of four"),
            (cbor2.dumps([b"", {}, b"", "sig"]), "bytes, map, bytes, bytes"),
            (cbor2.dumps([b"", [], b"", b""]), "bytes, map, bytes, bytes"),
            (cbor2.dumps([b"\x80", {}, b"", b""]), "want a map"),
            (cbor2.dumps([b"\xa0", {}, b"\x80", b""]), "want a map"),
            (cbor2.dumps(cbor2.CBORTag(98, [b"", {}, b"", b""])), "0xd8"),
            (b"\x00" * 40, "array of four"),
            (b"\xa0" + bytes(MAX_DOCUMENT_BYTES), "at most 32768"),
        ],
    )
    def test_what_is_no_document(self, verify: Verify, blob: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(Evidence(kind="nitro", blob=blob))

    def test_bytes_after_the_document(self, pki: NitroPki, verify: Verify) -> None:
        blob = pki.document().blob
        with pytest.raises(MalformedInputError, match="bytes after the CBOR item"):
            verify(Evidence(kind="nitro", blob=blob + b"\0\x01"))

    def test_a_key_of_another_curve(self, pki: NitroPki, verify: Verify) -> None:
        other = NitroPki(now=NOW)
        other.pki.keys[-1] = ec.generate_private_key(ec.SECP256R1())
        chain = other.pki.chain(4, path_length=None, name="p-256")
        with pytest.raises(MalformedInputError, match="want a key on secp384r1"):
            verify(pki.document(chain=chain))

    def test_evidence_of_another_kind(self, pki: NitroPki, verify: Verify) -> None:
        blob = pki.document().blob
        with pytest.raises(AttestationError, match="got tdx, want nitro"):
            verify(Evidence(kind="tdx", blob=blob))


class TestPolicy:
    def test_listed_values_are_accepted(self, pki: NitroPki, verify: Verify) -> None:
        claims = verify(pki.document())
        accepted = policy(pcr={"0": [PCR0, "ff" * 48], "8": ["09" * 48]})
        assert fields_of(claims, accepted) == []

    def test_values_that_are_not_listed(self, pki: NitroPki, verify: Verify) -> None:
        claims = verify(pki.document())
        accepted = policy(pcr={"0": ["ff" * 48], "1": [PCR0]})
        assert fields_of(claims, accepted) == ["pcr", "pcr"]

    def test_a_pcr_that_the_document_lacks(self, pki: NitroPki, verify: Verify) -> None:
        pcrs = {i: b"\1" * 48 for i in range(3)}
        claims = verify(pki.document(pcrs=pcrs))
        assert fields_of(claims, policy(pcr={"8": [PCR0]})) == ["pcr"]

    @pytest.mark.parametrize("zero", [(0, 1, 2), (0,), (1,), (2,)])
    def test_an_enclave_in_debug_mode_never_passes(
        self, pki: NitroPki, verify: Verify, zero: tuple[int, ...]
    ) -> None:
        pcrs = {i: bytes(48) if i in zero else b"\1" * 48 for i in range(16)}
        claims = verify(pki.document(pcrs=pcrs))
        for accepted in (
            policy(pcr={"unchecked": "a test"}),
            policy(pcr={"4": [PCR0]}),
        ):
            assert fields_of(claims, accepted) == ["debug"]

    def test_a_document_that_is_too_old(self, pki: NitroPki, verify: Verify) -> None:
        claims = verify(pki.document())
        late = NOW + timedelta(seconds=301)
        accepted = policy(pcr={"0": [PCR0]})
        assert fields_of(claims, accepted, now=late) == ["issued_at"]

    @pytest.mark.parametrize(
        "user_data", [None, b"", bytes(31), bytes(63), bytes(65), bytes(512)]
    )
    def test_no_challenge_equals_no_report_data(
        self, pki: NitroPki, verify: Verify, user_data: bytes | None
    ) -> None:
        claims = verify(pki.document(user_data=user_data))
        accepted = policy(pcr={"0": [PCR0]})
        assert claims.report_data is None
        for report_data in (bytes(64), bytes(32)):
            assert fields_of(claims, accepted, report_data) == ["report_data"]
        assert fields_of(claims, accepted, Unchecked("a test")) == []
        assert claims.to_json()["report_data"] is None

    def test_the_first_half_of_a_challenge_is_not_all_of_it(
        self, pki: NitroPki, verify: Verify
    ) -> None:
        claims = verify(pki.document(user_data=REPORT_DATA[:32]))
        accepted = policy(pcr={"0": [PCR0]})
        assert fields_of(claims, accepted, REPORT_DATA) == ["report_data"]
        assert fields_of(claims, accepted, REPORT_DATA[:32]) == []

    def test_another_challenge(self, pki: NitroPki, verify: Verify) -> None:
        claims = verify(pki.document())
        accepted = policy(pcr={"0": [PCR0]})
        assert fields_of(claims, accepted, REPORT_DATA[::-1]) == ["report_data"]

    def test_what_was_left_out_is_listed(self, pki: NitroPki, verify: Verify) -> None:
        result = appraise(
            verify(pki.document()),
            policy(pcr={"0": [PCR0], "1": {"unchecked": "kernel"}}),
            report_data=REPORT_DATA,
            now=NOW,
            nonce_issued_at=None,
        )
        left = [(field.field, field.reason) for field in result.unchecked]
        assert ("pcr", "1: kernel") in left
        assert "revocation" in [field for field, _ in left]
        none = policy(pcr={"unchecked": "any image"})
        (first, *_) = none.kinds["nitro"].compare(verify(pki.document())).unchecked
        assert (first.field, first.reason) == ("pcr", "any image")

    def test_a_policy_reads_back(self) -> None:
        for table in (
            {"pcr": {"0": [PCR0], "1": {"unchecked": "kernel"}, "15": [PCR0]}},
            {"pcr": {"unchecked": "any image"}},
        ):
            accepted = policy(**table)
            assert accepted.to_json()["nitro"] == table
            assert AppraisalPolicy.from_table(accepted.to_json()) == accepted

    @pytest.mark.parametrize(
        ("table", "match"),
        [
            ({}, "want accepted values by index"),
            ({"pcr": {}}, "want accepted values by index"),
            ({"pcr": ["00" * 48]}, "want accepted values by index"),
            ({"pcr": {"16": [PCR0]}}, "unknown key '16'"),
            ({"pcr": {"00": [PCR0]}}, "unknown key '00'"),
            ({"pcr": {"0": []}}, "at least one SHA-384"),
            ({"pcr": {"0": ["00" * 47]}}, "want SHA-384 value of 96"),
            ({"pcr": {"0": [PCR0.upper() + "AB"]}}, "want SHA-384 value of 96"),
            ({"pcr": {"unchecked": ""}}, "want a reason"),
            ({"pcr": {"unchecked": "w", "0": [PCR0]}}, "unknown key '0'"),
            ({"pcr": {"0": [PCR0]}, "allow_debug": True}, "unknown key 'allow_debug'"),
        ],
    )
    def test_a_policy_out_of_its_form(self, table: dict[str, Any], match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            policy(**table)
