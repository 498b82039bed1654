"""Evidence of TPMs: links between root, keys and quote, event logs, forms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bentoml_secure.attestation.event_log import LogKind, parse_event_log, replay
from bentoml_secure.attestation.evidence import Evidence
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
    MalformedInputError,
    MissingEndorsementError,
)
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
from tests.unit.attestation.tpm import PKI, refused, verify

RESTRICTED = 1 << 16
DECRYPT = 1 << 17


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
