"""Attacks on tokens of Arm CCA, of a development platform."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.attestation.tees.cca import Cca
from bentoml_secure.attestation.tees.cca_keys import MAX_KEY_BYTES, MAX_KEYS, key_digest
from bentoml_secure.attestation.tees.cca_tokens import MAX_TOKEN_BYTES
from bentoml_secure.digest import digest_bytes
from bentoml_secure.errors import (
    AttestationError,
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    MissingEndorsementError,
    PolicyRejected,
)
from bentoml_secure.testing.cca_pki import CcaPki
from bentoml_secure.testing.ec_pki import sign_raw

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
REPORT_DATA = bytes(range(64))
RIM = "01" * 32


@pytest.fixture(scope="module")
def pki() -> CcaPki:
    return CcaPki()


def verify(
    pki: CcaPki, evidence: Evidence, endorsements: tuple[bytes, ...] | None = None
) -> VerifiedClaims:
    tee = Cca(development_key=pki.cpak.public_key())
    given = (pki.jwk,) if endorsements is None else endorsements
    return tee.verify(evidence, given, now=NOW)


def refused(pki: CcaPki, evidence: Evidence) -> str:
    with pytest.raises(CheckFailedError) as caught:
        verify(pki, evidence)
    (finding,) = caught.value.findings
    return finding.field


def policy(**table: Any) -> AppraisalPolicy:
    return AppraisalPolicy.from_table(
        {
            "version": 1,
            "max_age_seconds": 300,
            "allow": ["cca"],
            "cca": {"rim": [RIM], **table},
        }
    )


def fields_of(
    claims: VerifiedClaims,
    accepted: AppraisalPolicy,
    report_data: bytes = REPORT_DATA,
) -> list[str]:
    try:
        appraise(
            claims, accepted, report_data=report_data, now=NOW, nonce_issued_at=None
        )
    except PolicyRejected as rejection:
        return [finding.field for finding in rejection.findings]
    return []


class TestGood:
    def test_a_token_says_what_was_signed(self, pki: CcaPki) -> None:
        claims = verify(pki, pki.attest(REPORT_DATA))
        assert (claims.kind, claims.vendor) == ("cca", "none (simulated)")
        assert claims.simulated
        assert claims.report_data == REPORT_DATA
        assert claims.platform_id == "01" + bytes(range(32)).hex()
        assert (claims.issued_at, claims.expires_at) == (None, None)
        der = pki.cpak.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        assert claims.root == digest_bytes(der)
        assert claims.claims["rim"] == RIM
        assert claims.claims["rem"][3] == "03" * 32
        assert claims.claims["lifecycle"] == 0x3000
        assert claims.claims["realm_profile"] == "tag:arm.com,2023:realm#1.0.0"
        first, second = claims.claims["software"]
        assert (first["type"], first["version"]) == ("BL", "1.0")
        assert (second["type"], second["measurement"]) == (None, "04" * 32)

    def test_without_a_development_key_nobody_is_simulated(self, pki: CcaPki) -> None:
        claims = Cca().verify(pki.token(), (pki.jwk,), now=NOW)
        assert (claims.vendor, claims.simulated) == ("arm", False)

    def test_both_forms_of_the_whole(self, pki: CcaPki) -> None:
        realm = pki.realm_claims({})
        digest = hashlib.sha256(realm[44237]).digest()
        tokens = (
            pki.sign(pki.cpak, pki.platform_claims({10: digest})),
            pki.sign(pki.rak, realm),
        )
        want = verify(pki, pki.wrapped(*tokens))
        for evidence in (
            pki.wrapped(*tokens, tag=907, records=True),
            pki.wrapped(*tokens, tag=399, records=True),
            pki.wrapped(*(cbor2.dumps(cbor2.loads(t).value) for t in tokens)),
            Evidence(kind="cca", blob=pki.wrapped(*tokens).blob + bytes(7)),
        ):
            assert verify(pki, evidence) == want

    @pytest.mark.parametrize(
        ("platform", "realm"),
        [
            ("http://arm.com/CCA-SSD/1.0.0", None),
            ("http://arm.com/CCA-SSD/1.0.0", "tag:arm.com,2023:realm#1.0.0"),
            ("tag:arm.com,2024:cca_platform#2.0.0", "tag:arm.com,2024:realm#2.0.0"),
        ],
    )
    def test_profiles_that_go_together(
        self, pki: CcaPki, platform: str, realm: str | None
    ) -> None:
        evidence = pki.token(platform={265: platform}, realm={265: realm})
        assert verify(pki, evidence).claims["realm_profile"] == realm

    @pytest.mark.parametrize("name", ["sha-256", "sha-384", "sha-512"])
    def test_either_form_of_the_realm_key(self, pki: CcaPki, name: str) -> None:
        for key in (pki.cose_key(), pki.raw_key()):
            verify(pki, pki.token(realm={44237: key, 44240: name}))

    def test_claims_of_later_profiles_are_not_read(self, pki: CcaPki) -> None:
        verify(pki, pki.token(platform={2394: 1, 2405: [{}]}, realm={44242: "private"}))

    def test_either_form_of_the_cpak(self, pki: CcaPki) -> None:
        der = pki.cpak.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        jwk = json.loads(pki.jwk)
        others = (
            b"",
            b"\x30\x82",
            b"{",
            b'{"tcb_info": []}',
            b" " * (MAX_KEY_BYTES + 1),
            CcaPki().jwk,
            ed25519.Ed25519PrivateKey.generate()
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        )
        for given in (
            pki.jwk,
            pki.pem,
            b"\n" + pki.pem,
            der,
            json.dumps({"keys": [jwk]}).encode(),
            json.dumps([jwk]).encode(),
            json.dumps({**jwk, "kid": "1", "use": "sig"}).encode(),
        ):
            claims = verify(pki, pki.token(), (*others, given))
            assert claims.root == key_digest(pki.cpak.public_key())

    def test_it_is_described_unverified(self, pki: CcaPki) -> None:
        evidence = pki.wrapped(
            pki.sign(pki.rak, pki.platform_claims({})),
            pki.sign(pki.cpak, pki.realm_claims({})),
        )
        described = Cca().describe(evidence)
        assert described["challenge"] == REPORT_DATA.hex()
        assert described["rim"] == RIM


class TestChecks:
    """Each check, by a token that nothing else refuses."""

    def test_a_platform_token_by_another_key(self, pki: CcaPki) -> None:
        other = CcaPki()
        other.rak = pki.rak
        assert refused(pki, other.token()) == "platform.signature"

    def test_a_realm_token_by_another_key(self, pki: CcaPki) -> None:
        other = CcaPki()
        other.cpak = pki.cpak
        # It shows the realm's key and signs with its own.
        evidence = other.token(realm={44237: pki.cose_key()})
        assert refused(pki, evidence) == "realm.signature"

    def test_a_realm_that_the_platform_does_not_name(self, pki: CcaPki) -> None:
        """A genuine platform's token above a realm of the attacker's."""
        genuine = cbor2.loads(pki.token().blob).value
        theirs = CcaPki()
        forged = theirs.sign(theirs.rak, theirs.realm_claims({}))
        assert refused(pki, pki.wrapped(genuine[44234], forged)) == "binding"
        for challenge in (bytes(32), bytes(64)):
            evidence = pki.token(platform={10: challenge})
            assert refused(pki, evidence) == "binding"

    def test_another_hash_than_the_platform_took(self, pki: CcaPki) -> None:
        genuine = cbor2.loads(pki.token().blob).value
        realm = pki.sign(pki.rak, pki.realm_claims({44240: "sha-512"}))
        assert refused(pki, pki.wrapped(genuine[44234], realm)) == "binding"

    @pytest.mark.parametrize("which", ["platform", "realm"])
    @pytest.mark.parametrize("extra", [{2: [1], 1: -35}, {1: -35, 4: b"kid"}])
    def test_a_header_with_more_in_it(
        self, pki: CcaPki, which: str, extra: dict[int, Any]
    ) -> None:
        realm = pki.realm_claims({})
        digest = hashlib.sha256(realm[44237]).digest()
        platform = pki.platform_claims({10: digest})
        headers = {"platform": {1: -35, 3: 263}, "realm": {1: -35, 3: 263}}
        good = [
            pki.sign(pki.cpak, platform, header=headers["platform"]),
            pki.sign(pki.rak, realm, header=headers["realm"]),
        ]
        verify(pki, pki.wrapped(*good))
        headers[which] = extra
        bad = [
            pki.sign(pki.cpak, platform, header=headers["platform"]),
            pki.sign(pki.rak, realm, header=headers["realm"]),
        ]
        assert refused(pki, pki.wrapped(*bad)) == f"{which}.header"

    @pytest.mark.parametrize("algorithm", [-7, -36, -37, 5, None, "ES384"])
    def test_an_algorithm_that_is_not_the_key_s(
        self, pki: CcaPki, algorithm: Any
    ) -> None:
        genuine = cbor2.loads(pki.token().blob).value
        claims = pki.platform_claims({})
        platform = pki.sign(pki.cpak, claims, header={1: algorithm})
        evidence = pki.wrapped(platform, genuine[44241])
        assert refused(pki, evidence) == "platform.signature"

    @pytest.mark.parametrize(
        "profile",
        ["http://arm.com/psa/2.0.0", "tag:arm.com,2026:cca_platform#2.0.0", "x"],
    )
    def test_a_platform_of_another_profile(self, pki: CcaPki, profile: str) -> None:
        evidence = pki.token(platform={265: profile})
        assert refused(pki, evidence) == "platform.profile"

    @pytest.mark.parametrize(
        "profile", [None, "tag:arm.com,2024:realm#2.0.0", "tag:arm.com,2023:realm#9"]
    )
    def test_a_realm_of_another_profile(self, pki: CcaPki, profile: str | None) -> None:
        assert refused(pki, pki.token(realm={265: profile})) == "realm.profile"

    def test_a_bit_of_either_payload(self, pki: CcaPki) -> None:
        genuine = cbor2.loads(pki.token().blob).value
        for label, marks, field in (
            (44234, b"SIMULATED", "platform.signature"),
            (44241, b"\1" * 32, "realm.signature"),
        ):
            tokens = dict(genuine)
            assert marks in tokens[label]
            tokens[label] = tokens[label].replace(marks, b"\7" + marks[1:])
            evidence = pki.wrapped(tokens[44234], tokens[44241])
            assert refused(pki, evidence) == field


class TestEndorsements:
    @pytest.mark.parametrize("given", [(), (b"{}", b"collateral", b"\x30\x03\2\1\1")])
    def test_no_cpak(self, pki: CcaPki, given: tuple[bytes, ...]) -> None:
        with pytest.raises(MissingEndorsementError, match="no CPAK was given"):
            verify(pki, pki.token(), given)

    def test_the_cpak_of_another_platform(self, pki: CcaPki) -> None:
        with pytest.raises(CheckFailedError, match=r"platform\.signature"):
            verify(pki, pki.token(), (CcaPki().jwk,))

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"crv": "P-224"}, "curve: got 'P-224'"),
            ({"crv": ["P-384"]}, "curve: got"),
            ({"x": "A"}, "is not base64url"),
            ({"x": None}, "CPAK x: got 3 bytes"),
            ({"y": "AAAA"}, "CPAK y: got 3 bytes, want 48"),
            ({"y": "A" * 64}, "no point of secp384r1"),
        ],
    )
    def test_a_key_that_is_none(
        self, pki: CcaPki, changes: dict[str, Any], match: str
    ) -> None:
        jwk = json.dumps({**json.loads(pki.jwk), **changes}).encode()
        with pytest.raises(MalformedInputError, match=match):
            verify(pki, pki.token(), (jwk,))

    def test_more_keys_than_anybody_needs(self, pki: CcaPki) -> None:
        many = json.dumps([json.loads(pki.jwk)] * (MAX_KEYS + 1)).encode()
        with pytest.raises(MalformedInputError, match="got 65, want at most 64"):
            verify(pki, pki.token(), (many,))


class TestForms:
    @pytest.mark.parametrize(
        ("claims", "match"),
        [
            ({265: None}, "claim 265 is missing"),
            ({265: 7}, "want text"),
            ({10: b""}, "want 32 or 48 or 64 bytes"),
            ({256: bytes(32)}, "want 33 bytes"),
            ({2395: -1}, "want 0 to 65535"),
            ({2395: True}, "want 0 to 65535"),
            ({2396: bytes(31)}, "want 32 bytes"),
            ({2401: "x"}, "config: want bytes"),
            ({2399: []}, "want 1 to 64"),
            ({2399: [7]}, "software component: want a map"),
            ({2399: [{2: b"", 5: bytes(32)}]}, "measurement: want 32"),
            ({2399: [{2: bytes(32)}]}, "signer: want 32"),
            ({2399: [{1: 7, 2: bytes(32), 5: bytes(32)}]}, "want text as 1"),
        ],
    )
    def test_a_platform_claim_out_of_its_form(
        self, pki: CcaPki, claims: dict[int, Any], match: str
    ) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(pki, pki.token(platform=claims))

    @pytest.mark.parametrize(
        ("claims", "match"),
        [
            ({10: bytes(63)}, "want 64 bytes"),
            ({10: None}, "claim 10 is missing"),
            ({44235: bytes(63)}, "want 64 bytes"),
            ({44238: bytes(31)}, "want 32 or 48 or 64 bytes"),
            ({44239: [bytes(32)] * 3}, "want 4"),
            ({44239: [b""] * 4}, "want 32, 48 or 64 bytes"),
            ({44240: "md5"}, "want one of sha-256"),
            ({44237: "key"}, "public key: want bytes"),
            ({44237: b""}, "cut short"),
            ({44237: b"\4" + bytes(96)}, "no point of secp384r1"),
            ({44237: cbor2.dumps([])}, "want a COSE_Key"),
            ({44237: cbor2.dumps({1: 2, -1: [2]})}, "want a COSE_Key"),
            ({44237: cbor2.dumps({1: 1, -1: 2})}, "want a COSE_Key"),
            ({44237: cbor2.dumps({1: 2, -1: 2, -2: b""})}, "both coordinates as"),
            ({44237: cbor2.dumps({1: 2, -1: 2, -2: b"", -3: b""})}, "of 48 bytes"),
        ],
    )
    def test_a_realm_claim_out_of_its_form(
        self, pki: CcaPki, claims: dict[int, Any], match: str
    ) -> None:
        changed = pki.realm_claims(claims)
        evidence = pki.wrapped(
            pki.sign(pki.cpak, pki.platform_claims({})), pki.sign(pki.rak, changed)
        )
        with pytest.raises(MalformedInputError, match=match):
            verify(pki, evidence)

    @pytest.mark.parametrize(
        ("blob", "match"),
        [
            (b"\0", "want a map under tag"),
            (cbor2.dumps({44234: b"", 44241: b""}), "want a map under tag"),
            (cbor2.dumps(cbor2.CBORTag(399, [])), "want a map under tag"),
            (cbor2.dumps(cbor2.CBORTag(398, {})), "unexpected byte 0xd9"),
            (cbor2.dumps(cbor2.CBORTag(399, {44234: b""})), "want exactly 44234"),
            (
                cbor2.dumps(cbor2.CBORTag(399, {44234: b"", 44241: b"", 1: 1})),
                "want exactly 44234",
            ),
            (
                cbor2.dumps(cbor2.CBORTag(399, {44234: 7, 44241: b""})),
                "as bytes or as a record",
            ),
            (
                cbor2.dumps(cbor2.CBORTag(907, {44234: [263], 44241: b""})),
                "as bytes or as a record",
            ),
            (bytes(MAX_TOKEN_BYTES + 1), "at most 32768"),
        ],
    )
    def test_what_is_no_token(self, pki: CcaPki, blob: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(pki, Evidence(kind="cca", blob=blob))

    def test_a_token_whose_payload_is_no_map(self, pki: CcaPki) -> None:
        genuine = cbor2.loads(pki.token().blob).value
        message = [cbor2.dumps({1: -35}), {}, b"\x80", bytes(96)]
        evidence = pki.wrapped(genuine[44234], cbor2.dumps(message))
        with pytest.raises(MalformedInputError, match="want a map of claims"):
            verify(pki, evidence)

    def test_bytes_after_the_token(self, pki: CcaPki) -> None:
        evidence = Evidence(kind="cca", blob=pki.token().blob + b"\1")
        with pytest.raises(MalformedInputError, match="bytes after the CBOR item"):
            verify(pki, evidence)

    def test_evidence_of_another_kind(self, pki: CcaPki) -> None:
        with pytest.raises(AttestationError, match="got tdx, want cca"):
            verify(pki, Evidence(kind="tdx", blob=pki.token().blob))


class TestPolicy:
    def test_what_is_demanded_and_there(self, pki: CcaPki) -> None:
        claims = verify(pki, pki.token())
        for table in (
            {},
            {"rim": {"unchecked": "a test"}},
            {"rem": {"0": ["00" * 32], "3": ["03" * 32]}},
            {"personalization_value": ["00" * 64]},
            {"software": ["02" * 32, "04" * 32]},
            {"implementation_id": [claims.claims["implementation_id"]]},
            {"cpak": [claims.root]},
        ):
            assert fields_of(claims, policy(**table)) == []

    @pytest.mark.parametrize(
        ("field", "table"),
        [
            ("rim", {"rim": ["00" * 32]}),
            ("rem", {"rem": {"1": ["00" * 32]}}),
            ("personalization_value", {"personalization_value": ["01" * 64]}),
            ("software", {"software": ["02" * 32]}),
            ("implementation_id", {"implementation_id": ["00" * 32]}),
            ("cpak", {"cpak": ["sha256:" + "00" * 32]}),
        ],
    )
    def test_what_is_demanded_and_not_there(
        self, pki: CcaPki, field: str, table: dict[str, Any]
    ) -> None:
        assert fields_of(verify(pki, pki.token()), policy(**table)) == [field]

    @pytest.mark.parametrize("state", [0, 0x2FFF, 0x3100, 0x4000, 0x5001, 0xFFFF])
    def test_a_platform_that_is_not_secured_never_passes(
        self, pki: CcaPki, state: int
    ) -> None:
        claims = verify(pki, pki.token(platform={2395: state}))
        lax = policy(rim={"unchecked": "a test"}, cpak={"unchecked": "a test"})
        assert fields_of(claims, lax) == ["lifecycle"]

    @pytest.mark.parametrize("state", [0x3000, 0x3003, 0x30FF])
    def test_a_platform_that_is_secured(self, pki: CcaPki, state: int) -> None:
        assert fields_of(verify(pki, pki.token(platform={2395: state})), policy()) == []

    def test_another_challenge(self, pki: CcaPki) -> None:
        claims = verify(pki, pki.token())
        assert fields_of(claims, policy(), bytes(64)) == ["report_data"]

    def test_what_was_left_out_is_listed(self, pki: CcaPki) -> None:
        result = appraise(
            verify(pki, pki.token()),
            policy(rem={"0": ["00" * 32], "1": {"unchecked": "log"}}),
            report_data=Unchecked("a test"),
            now=NOW,
            nonce_issued_at=None,
        )
        left = {field.field: field.reason for field in result.unchecked}
        assert left["rem"] == "1: log"
        assert "vouches for" in left["cpak"]
        assert left.keys() == {
            *("cpak", "rem", "software", "personalization_value"),
            *("implementation_id", "report_data", "age", "platform_id"),
        }

    def test_a_policy_reads_back(self) -> None:
        for table in (
            {"rim": [RIM]},
            {"rim": {"unchecked": "w"}, "rem": {"unchecked": "w"}},
            {"rim": [RIM], "cpak": ["sha256:" + "00" * 32], "software": [RIM]},
            {"rim": [RIM], "rem": {"0": [RIM], "3": {"unchecked": "w"}}},
        ):
            accepted = policy(**table)
            assert accepted.to_json()["cca"] == table
            assert AppraisalPolicy.from_table(accepted.to_json()) == accepted

    @pytest.mark.parametrize(
        ("table", "match"),
        [
            ({"rim": None}, "at least one initial measurement"),
            ({"rim": []}, "at least one initial measurement"),
            ({"rim": ["00"]}, "want initial measurement in hex"),
            ({"rem": {}}, "want accepted values by index"),
            ({"rem": ["00" * 32]}, "want accepted values by index"),
            ({"rem": {"4": [RIM]}}, "unknown key '4'"),
            ({"rem": {"unchecked": ""}}, "want a reason"),
            ({"cpak": ["00" * 32]}, "want digest of a CPAK"),
            ({"lifecycle": {"unchecked": "w"}}, "unknown key 'lifecycle'"),
        ],
    )
    def test_a_policy_out_of_its_form(self, table: dict[str, Any], match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            policy(**table)

    def test_a_policy_needs_initial_measurements(self) -> None:
        with pytest.raises(ConfigurationError, match="at least one initial"):
            Cca().parse_policy({"cpak": ["sha256:" + "00" * 32]})


def test_a_p256_cpak(pki: CcaPki) -> None:
    """Curve and hash follow from the algorithm that the header names."""
    other = CcaPki()
    other.cpak = ec.generate_private_key(ec.SECP256R1())
    realm = other.realm_claims({})
    digest = hashlib.sha256(realm[44237]).digest()
    platform = other.platform_claims({10: digest})
    signed = other.sign(other.rak, realm)
    good = other.wrapped(_sign_es256(other, platform), signed)
    verify(other, good, (other.pem,))
    crossed = other.wrapped(other.sign(other.cpak, platform), signed)
    with pytest.raises(CheckFailedError, match=r"platform\.signature"):
        verify(other, crossed, (other.pem,))


def _sign_es256(pki: CcaPki, claims: dict[int, Any]) -> bytes:
    protected, payload = cbor2.dumps({1: -7}), cbor2.dumps(claims)
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    return cbor2.dumps([protected, {}, payload, sign_raw(pki.cpak, signed, SHA256())])
