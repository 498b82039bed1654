"""Evidence of TPMs: links between root, keys and quote, forms, policies."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.event_log import LogKind, parse_event_log, replay
from bentoml_secure.attestation.evidence import (
    AttestationResult,
    Evidence,
    VerifiedClaims,
)
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.tpm import (
    MAX_BLOB_BYTES,
    MAX_EVENT_LOG_BYTES,
    Tpm,
    parse_tpm_evidence,
)
from bentoml_secure.attestation.tees.tpm_keys import parse_attestation_key
from bentoml_secure.attestation.tees.tpm_quote import GENERATED
from bentoml_secure.attestation.tees.tpm_structures import ALG_SHA256
from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import (
    AttestationError,
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    MissingEndorsementError,
    PolicyRejected,
)
from bentoml_secure.signing import SigningKey
from bentoml_secure.testing.tpm_pki import (
    ATTRIBUTES,
    CHALLENGE,
    NOW,
    PCRS,
    QuoteParts,
    TpmPki,
    make_key,
    marshal_public,
    sign_quote,
)
from tests.unit.attestation.event_logs import event, head

PKI = TpmPki()
REPORT_DATA = CHALLENGE + bytes(32)
RESTRICTED = 1 << 16
DECRYPT = 1 << 17


def verify(evidence: Evidence | None = None, now: datetime = NOW) -> VerifiedClaims:
    return Tpm().verify(evidence or PKI.evidence(), PKI.chain, now=now)


def refused(check: str, evidence: Evidence, now: datetime = NOW) -> None:
    with pytest.raises(CheckFailedError) as caught:
        verify(evidence, now)
    assert [finding.field for finding in caught.value.findings] == [check]


def table(**changes: Any) -> dict[str, Any]:
    return {
        "pcr": {str(index): [value.hex()] for index, value in PCRS.items()},
        "ek_roots": [PKI.root_digest],
        "enrolment": [PKI.authority.public.key_id],
    } | changes


def judge(
    evidence: Evidence | None = None,
    *,
    report_data: bytes = REPORT_DATA,
    nonce_issued_at: datetime | None = NOW,
    **changes: Any,
) -> AttestationResult:
    policy = AppraisalPolicy.from_table(
        {
            "version": 1,
            "max_age_seconds": 300,
            "allow": ["tpm"],
            "tpm": table(**changes),
        }
    )
    return appraise(
        verify(evidence),
        policy,
        report_data=report_data,
        now=NOW,
        nonce_issued_at=nonce_issued_at,
    )


def fields_of(*arguments: Any, **changes: Any) -> list[str]:
    with pytest.raises(PolicyRejected, match="authentic but not") as caught:
        judge(*arguments, **changes)
    return [finding.field for finding in caught.value.findings]


def test_the_table_has_it() -> None:
    assert isinstance(load_tee("tpm"), Tpm)


def test_evidence_says_what_was_quoted() -> None:
    claims = verify()
    assert claims.kind == "tpm"
    assert claims.report_data == CHALLENGE
    assert claims.platform_id == PKI.ek
    assert claims.root == PKI.root_digest
    assert claims.vendor == "Maker"
    assert claims.issued_at is None
    assert claims.expires_at == NOW + timedelta(days=30)
    assert claims.simulated
    assert claims.claims == {
        "class": "measured boot",
        "pcrs": {str(index): value.hex() for index, value in PCRS.items()},
        "ak_name": parse_attestation_key(marshal_public(PKI.ak_key)).name.hex(),
        "enrolment": PKI.authority.public.key_id,
        "event_log": "none",
        "manufacturer": "id:00000000",
        "model": "in memory",
        "clock": "1000 ms",
        "reset_count": 3,
        "restart_count": 0,
        "safe": True,
        "firmware_version": "0000000020260301",
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa.generate_private_key(65537, 2048),
        lambda: ec.generate_private_key(ec.SECP384R1()),
    ],
)
def test_attestation_keys_of_other_types(make: Callable[[], Any]) -> None:
    key = make()
    claims = verify(PKI.parts(ak_key=key).to_evidence())
    assert claims.claims["ak_name"] != verify().claims["ak_name"]


def test_what_is_described_is_not_verified() -> None:
    parts = PKI.parts()
    unsigned = replace(parts, signature=b"\0", enrolment=None, event_log=b"log")
    described = Tpm().describe(unsigned.to_evidence())
    assert described["report_data"] == CHALLENGE.hex()
    assert described["enrolment"] == "none"
    assert described["event_log_bytes"] == 3
    assert described["pcrs"] == verify().claims["pcrs"]
    assert Tpm().describe(parts.to_evidence())["enrolment"].startswith("sha256:")
    json.dumps(described)


class TestLinks:
    def test_another_makers_certificate(self) -> None:
        refused("chain.signature", PKI.evidence(ek_certificate=TpmPki().ek_certificate))

    def test_no_chain(self) -> None:
        with pytest.raises(MissingEndorsementError, match="not among"):
            Tpm().verify(PKI.evidence(), (), now=NOW)

    @pytest.mark.parametrize(
        ("attributes", "match"),
        [
            (ATTRIBUTES & ~(1 << 1), "not fixedTPM"),
            (ATTRIBUTES & ~(1 << 4), "not fixedParent"),
            (ATTRIBUTES & ~(1 << 5), "not sensitiveDataOrigin"),
            (ATTRIBUTES & ~RESTRICTED, "not restricted"),
            (ATTRIBUTES & ~(1 << 18), "not sign"),
            (ATTRIBUTES | DECRYPT, "decrypt"),
            (0, "not fixedTPM, not fixedParent"),
        ],
    )
    def test_a_key_that_signs_anything(self, attributes: int, match: str) -> None:
        public = marshal_public(PKI.ak_key, attributes=attributes)
        evidence = PKI.evidence(ak_public=public, enrolment=None)
        refused("ak.attributes", evidence)
        with pytest.raises(CheckFailedError, match=match):
            verify(evidence)

    def test_a_key_whose_name_is_another_digest(self) -> None:
        public = marshal_public(PKI.ak_key, name_hash=0x000C)
        refused("ak.name_hash", PKI.evidence(ak_public=public, enrolment=None))

    def test_a_quote_by_another_key(self) -> None:
        message = QuoteParts().marshal()
        refused(
            "quote.signature", PKI.evidence(signature=sign_quote(make_key(), message))
        )

    def test_a_statement_of_the_key_that_no_tpm_made(self) -> None:
        parts = PKI.parts(quote=QuoteParts(magic=GENERATED ^ 1))
        refused("quote.magic", parts.to_evidence())

    @pytest.mark.parametrize("length", [0, 9, 31, 33, 64])
    def test_a_challenge_of_another_length(self, length: int) -> None:
        parts = PKI.parts(quote=QuoteParts(extra_data=bytes(length)))
        refused("quote.extra_data", parts.to_evidence())

    def test_registers_that_are_not_quoted(self) -> None:
        refused("quote.pcrs", PKI.parts(pcrs={**PCRS, 4: bytes(32)}).to_evidence())
        lying = {**PCRS, 0: bytes(32)}
        refused("quote.pcr_digest", PKI.parts(pcrs=lying).to_evidence())


class TestEnrolment:
    def test_of_another_endorsement_key(self) -> None:
        enrolment = PKI.enrol(marshal_public(PKI.ak_key), ek=TpmPki().ek)
        refused("enrolment.ek", PKI.evidence(enrolment=enrolment))

    def test_of_another_attestation_key(self) -> None:
        enrolment = PKI.enrol(marshal_public(make_key()))
        refused("enrolment.ak", PKI.evidence(enrolment=enrolment))

    def test_of_the_same_key_with_other_attributes(self) -> None:
        public = marshal_public(PKI.ak_key, attributes=ATTRIBUTES ^ 1 << 6)
        refused("enrolment.ak", PKI.evidence(ak_public=public))

    @pytest.mark.parametrize("days", [-1, 31])
    def test_out_of_its_dates(self, days: int) -> None:
        moved = NOW - timedelta(days=days)
        enrolment = PKI.enrol(marshal_public(PKI.ak_key), now=moved)
        refused("enrolment.validity", PKI.evidence(enrolment=enrolment))

    def test_signed_by_another_key_than_it_names(self) -> None:
        ours = PKI.enrol(marshal_public(PKI.ak_key))
        theirs = PKI.enrol(marshal_public(PKI.ak_key), key=SigningKey.generate())
        for field in ("sig", "keyid"):
            mixed = json.loads(json.dumps(ours))
            mixed["signatures"][0][field] = theirs["signatures"][0][field]
            refused("enrolment.signature", PKI.evidence(enrolment=mixed))

    def test_of_another_type(self) -> None:
        enrolment = {**PKI.enrol(marshal_public(PKI.ak_key)), "payloadType": "other"}
        refused("enrolment.signature", PKI.evidence(enrolment=enrolment))

    def test_by_an_authority_that_the_policy_does_not_list(self) -> None:
        foreign = PKI.enrol(marshal_public(PKI.ak_key), key=SigningKey.generate())
        assert fields_of(PKI.evidence(enrolment=foreign)) == ["enrolment"]

    def test_none(self) -> None:
        evidence = PKI.evidence(enrolment=None)
        assert verify(evidence).claims["enrolment"] == "none"
        assert verify(evidence).expires_at == NOW + timedelta(days=365)
        assert fields_of(evidence) == ["enrolment"]

    def test_none_is_accepted_only_with_a_reason_that_shows(self) -> None:
        result = judge(PKI.evidence(enrolment=None), enrolment={"unchecked": "a trial"})
        unchecked = {field.field: field.reason for field in result.unchecked}
        assert unchecked["enrolment"] == "a trial"

    @pytest.mark.parametrize(
        ("enrolment", "match"),
        [
            (False, "enrolment: want exactly payload"),
            ({}, "enrolment: want exactly payload"),
            ([], "enrolment: want exactly payload"),
            ("", "enrolment: want exactly payload"),
        ],
    )
    def test_what_is_no_envelope(self, enrolment: Any, match: str) -> None:
        evidence = PKI.evidence(enrolment=enrolment)
        with pytest.raises(MalformedInputError, match=match):
            verify(evidence)
        with pytest.raises(MalformedInputError, match=match):
            Tpm().describe(evidence)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"version": 2}, "version: got 2, want 1"),
            ({"version": True}, "version: got True, want 1"),
            ({"more": 1}, "unknown field 'more'"),
            ({"authority": "00"}, "Ed25519 key"),
            ({"ek": "sha256-jcs-v1:" + "0" * 64}, "want sha256:<hex>"),
            ({"ak_name": "00"}, "enrolment ak_name"),
            ({"issued_at": 0}, "enrolment issued_at"),
            ({"not_after": "never"}, "enrolment not_after"),
        ],
    )
    def test_statements_of_another_form(
        self, change: dict[str, Any], match: str
    ) -> None:
        envelope = PKI.enrol(marshal_public(PKI.ak_key))
        statement = json.loads(base64.b64decode(envelope["payload"])) | change
        envelope["payload"] = base64.b64encode(canonical_json(statement)).decode()
        with pytest.raises(MalformedInputError, match=match):
            verify(PKI.evidence(enrolment=envelope))


class TestEventLog:
    """Registers 0 and 7 as a log gives them, and one that only the system extends."""

    LOG = head() + event(0, b"firmware") + event(7, b"keys") + event(8, b"kernel")
    REPLAYED = replay(parse_event_log(LOG, LogKind.TPM), LogKind.TPM)

    def evidence(self, log: bytes, pcrs: dict[int, bytes]) -> Evidence:
        bits = sum(1 << index for index in pcrs)
        digest = hashlib.sha256(b"".join(pcrs.values())).digest()
        quote = QuoteParts(banks=[(ALG_SHA256, bits)], pcr_digest=digest)
        parts = PKI.parts(quote=quote, pcrs=pcrs)
        return replace(parts, event_log=log).to_evidence()

    def test_that_gives_the_registers(self) -> None:
        claims = verify(self.evidence(self.LOG, self.REPLAYED))
        assert claims.claims["event_log"] == "replayed"

    def test_a_register_that_nothing_extended(self) -> None:
        verify(self.evidence(self.LOG, {3: bytes(32)}))

    def test_registers_of_the_system_may_go_on(self) -> None:
        verify(self.evidence(self.LOG, {**self.REPLAYED, 8: b"\1" * 32}))

    @pytest.mark.parametrize("index", [0, 3, 7])
    def test_that_gives_other_registers(self, index: int) -> None:
        pcrs = dict(sorted({**self.REPLAYED, index: b"\1" * 32}.items()))
        refused("event_log.replay", self.evidence(self.LOG, pcrs))

    @pytest.mark.parametrize(
        ("log", "match"),
        [
            (b"", "event log"),
            (LOG[:-1], "event log"),
            (head((0x04,)), "has no sha256 digests"),
        ],
    )
    def test_that_does_not_parse(self, log: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(self.evidence(log, self.REPLAYED))


class TestPolicy:
    def test_what_is_wanted_is_accepted(self) -> None:
        result = judge()
        assert result.expires_at == NOW + timedelta(seconds=300)
        assert [field.field for field in result.unchecked] == [
            "ek_revocation",
            "platform_id",
        ]

    def test_age_cannot_be_told_from_a_quote(self) -> None:
        result = judge(nonce_issued_at=None)
        assert "age" in [field.field for field in result.unchecked]

    def test_another_challenge(self) -> None:
        assert fields_of(report_data=bytes(64)) == ["report_data"]

    def test_a_root_that_is_not_listed(self) -> None:
        assert fields_of(ek_roots=[TpmPki().root_digest]) == ["ek_root"]

    def test_another_value_of_a_register(self) -> None:
        wanted = {"0": [PCRS[0].hex()], "7": [PCRS[0].hex()]}
        assert fields_of(pcr=wanted) == ["pcr"]

    def test_a_register_that_is_not_quoted(self) -> None:
        wanted = {"0": [PCRS[0].hex()], "4": [PCRS[0].hex()]}
        assert fields_of(pcr=wanted) == ["pcr"]
        with pytest.raises(PolicyRejected, match="pcr: got 4:not quoted"):
            judge(pcr=wanted)

    def test_one_of_several_values(self) -> None:
        judge(pcr={"7": ["00" * 32, PCRS[7].hex()]})

    def test_registers_left_out_show(self) -> None:
        result = judge(pcr={"unchecked": "another machine"})
        reasons = {field.field: field.reason for field in result.unchecked}
        assert reasons["pcr"] == "another machine"
        result = judge(pcr={"0": [PCRS[0].hex()], "4": {"unchecked": "varies"}})
        reasons = {field.field: field.reason for field in result.unchecked}
        assert reasons["pcr"] == "4: varies"

    def test_every_finding_is_listed(self) -> None:
        assert fields_of(
            PKI.evidence(enrolment=None),
            report_data=bytes(64),
            ek_roots=["sha256:" + "0" * 64],
            pcr={"0": ["00" * 32], "7": ["00" * 32]},
        ) == ["ek_root", "enrolment", "pcr", "pcr", "report_data"]

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"pcr": {"unchecked": "why"}},
            {"pcr": {"10": {"unchecked": "why"}, "2": ["ab" * 32]}},
            {"enrolment": {"unchecked": "why"}},
        ],
    )
    def test_a_policy_survives_the_trip(self, change: dict[str, Any]) -> None:
        policy = Tpm().parse_policy(table(**change))
        assert Tpm().parse_policy(policy.to_json()) == policy
        assert policy.to_json() == table(**change)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"pcr": None}, "pcr: got None, want accepted values by index"),
            ({"pcr": {}}, "want accepted values by index"),
            ({"pcr": ["00" * 32]}, "want accepted values by index"),
            ({"pcr": {"24": ["00" * 32]}}, "unknown key '24'"),
            ({"pcr": {"00": ["00" * 32]}}, "unknown key '00'"),
            ({"pcr": {"0": []}}, "want a list with at least one"),
            ({"pcr": {"0": ["00" * 20]}}, "want 64 hex digits"),
            ({"pcr": {"0": ["00" * 32], "unchecked": "w"}}, "unknown key '0'"),
            ({"pcr": {"unchecked": ""}}, "want a reason"),
            ({"ek_roots": None}, "ek_roots: got None"),
            ({"ek_roots": []}, "want a list with at least one"),
            ({"ek_roots": ["00" * 32]}, "want digest of a root"),
            ({"ek_roots": {"unchecked": "w"}}, "want a list"),
            ({"enrolment": []}, "want a list with at least one"),
            ({"enrolment": ["none"]}, "want key id of an authority"),
            ({"allow_debug": True}, "unknown key 'allow_debug'"),
        ],
    )
    def test_tables_that_are_refused(self, change: dict[str, Any], match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            Tpm().parse_policy(table(**change))

    def test_who_enrols_cannot_be_left_out_in_silence(self) -> None:
        without = table()
        del without["enrolment"]
        with pytest.raises(ConfigurationError, match="key enrolment is missing"):
            Tpm().parse_policy(without)


def blob(**changes: Any) -> Evidence:
    document = json.loads(PKI.evidence().blob) | changes
    return Evidence(kind="tpm", blob=canonical_json(document))


class TestForm:
    def test_evidence_survives_the_trip(self) -> None:
        for log in (None, b"", b"log"):
            parts = replace(PKI.parts(), event_log=log)
            assert parse_tpm_evidence(parts.to_evidence()) == parts

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"version": 2}, "version: got 2, want 1"),
            ({"version": True}, "version: got True, want 1"),
            ({"simulated": False}, "unknown field 'simulated'"),
            ({"ek_certificate": None}, "ek_certificate: want base64"),
            ({"ak_public": "A"}, "ak_public is not base64"),
            ({"ak_public": ""}, "attestation key: 0 bytes are left"),
            ({"message": ""}, "quote"),
            ({"signature": "AA=="}, "TPM signature: 1 bytes are left"),
            ({"signature": "A" * 1372}, "signature: want base64 of at most 1024"),
            ({"pcrs": []}, "want an object of registers 0 to 23"),
            ({"pcrs": {"24": "00" * 32}}, "want an object of registers"),
            ({"pcrs": {"00": "00" * 32}}, "want an object of registers"),
            ({"pcrs": {"0": "00" * 31}}, "pcrs 0: got 62 hex digits, want 64"),
            ({"pcrs": {"0": 7}}, "pcrs 0: got 7"),
            ({"event_log": 7}, "event_log: want base64"),
            (
                {"event_log": "A" * (4 * MAX_EVENT_LOG_BYTES // 3 + 8)},
                "event_log: want base64 of at most 131072",
            ),
        ],
    )
    def test_blobs(self, changes: dict[str, Any], match: str) -> None:
        with pytest.raises((MalformedInputError, CheckFailedError), match=match):
            verify(blob(**changes))

    def test_a_field_that_is_missing(self) -> None:
        document = json.loads(PKI.evidence().blob)
        for name in document:
            less = {key: document[key] for key in document if key != name}
            with pytest.raises(MalformedInputError, match=f"'{name}' is missing"):
                verify(Evidence(kind="tpm", blob=canonical_json(less)))

    def test_another_spelling_of_the_same_json(self) -> None:
        document = json.loads(PKI.evidence().blob)
        evidence = Evidence(kind="tpm", blob=json.dumps(document).encode())
        with pytest.raises(MalformedInputError, match="not canonical JSON"):
            verify(evidence)

    def test_more_than_the_cap(self) -> None:
        evidence = Evidence(kind="tpm", blob=b" " * (MAX_BLOB_BYTES + 1))
        with pytest.raises(MalformedInputError, match="want at most"):
            verify(evidence)

    def test_another_kind(self) -> None:
        evidence = Evidence(kind="tdx", blob=PKI.evidence().blob)
        with pytest.raises(AttestationError, match="got tdx, want tpm"):
            verify(evidence)

    @pytest.mark.parametrize(
        ("edit", "match"),
        [
            (lambda area: area + b"\0", "1 bytes after its end"),
            (lambda area: area[:-1], "bytes are left"),
            (lambda area: bytes(1025), "got 1025 bytes, want at most 1024"),
            (lambda area: _edit(area, 2, 0x25), "type 0x0025, want RSA or ECC"),
            (lambda area: _edit(area, 18, 16), "curve 0x0010, want P-256 or P-384"),
            (lambda area: area[:-1] + bytes([area[-1] ^ 1]), "no public key"),
            (lambda area: _edit(area, 12, 6), "bytes are left"),
        ],
    )
    def test_keys(self, edit: Callable[[bytes], bytes], match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(PKI.parts(edit=edit).to_evidence())

    @pytest.mark.parametrize(
        ("at", "match"),
        [(18, "modulus of 256 bytes, want 2040 bits"), (24, "want 2040")],
    )
    def test_rsa_keys(self, at: int, match: str) -> None:
        key = rsa.generate_private_key(65537, 2048)
        parts = PKI.parts(ak_key=key, edit=lambda area: _edit(area, at, 2040))
        with pytest.raises(MalformedInputError, match=match):
            verify(parts.to_evidence())


def _edit(area: bytes, at: int, value: int) -> bytes:
    return area[:at] + value.to_bytes(2, "big") + area[at + 2 :]
