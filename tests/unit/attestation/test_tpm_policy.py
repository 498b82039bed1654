"""Who enrolled a TPM's key, and what a policy accepts."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.evidence import AttestationResult
from bentoml_secure.attestation.key_document import KeyDocument, Role, report_data
from bentoml_secure.attestation.tees.tpm import Tpm
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.digest import canonical_json, digest_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    PolicyRejected,
)
from bentoml_secure.signing import SigningKey
from bentoml_secure.testing.tpm_pki import (
    ATTRIBUTES,
    NOW,
    PCRS,
    QuoteParts,
    TpmPki,
    make_key,
    marshal_public,
)
from tests.unit.attestation.tpm import PKI, fields_of, judge, refused, table, verify


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

    def test_who_enrols_is_not_left_out_in_silence(self) -> None:
        without = table()
        del without["enrolment"]
        policy = Tpm().parse_policy(without)
        left = policy.compare(verify(PKI.evidence())).unchecked
        reasons = {one.field: one.reason for one in left}
        assert "the policy lists no authority" in reasons["enrolment"]
        # And again from what the policy says of itself.
        assert Tpm().parse_policy(policy.to_json()).enrolment == policy.enrolment

    def test_a_peer_does_not_vouch_for_its_own_tpm(self) -> None:
        """Evidence from the network wants an authority that the policy lists."""
        nonce = b"n" * 32
        document = KeyDocument(
            role=Role.ENTRY,
            service="S",
            segment=None,
            plan=digest_json("plan"),
            package=digest_json("package"),
            config_digest=digest_json("configuration"),
            hpke=(),
            ed25519="11" * 32,
            platform="tpm",
            boot_id="22" * 16,
            not_after=NOW + timedelta(days=1),
        )
        quote = QuoteParts(extra_data=report_data(nonce, document)[:32])
        evidence = PKI.parts(quote=quote).to_evidence()

        def judged(**changes: Any) -> AttestationResult:
            tables = {**table(), **changes}
            tables = {key: value for key, value in tables.items() if value}
            policy = AppraisalPolicy.from_table(
                {
                    "version": 1,
                    "max_age_seconds": 300,
                    "allow": ["tpm"],
                    "tpm": tables,
                }
            )
            return verify_key_document(
                document,
                evidence,
                PKI.chain,
                policy,
                nonce=nonce,
                now=NOW,
                nonce_issued_at=NOW,
            )

        assert judged().kind == "tpm"
        for changes in ({"enrolment": None}, {"enrolment": {"unchecked": "a trial"}}):
            with pytest.raises(PolicyRejected, match="enrolment: got"):
                judged(**changes)
