"""AWS Nitro Enclaves: the attestation document of the Nitro Security Module.

A COSE_Sign1, ES384, whose payload is a CBOR map:

    module_id    i-<instance>-enc<enclave>
    digest       "SHA384"
    timestamp    milliseconds since 1970
    pcrs         index to value; 0 image, 1 kernel and boot, 2 application, 3 IAM role,
                 4 instance, 8 who signed the image
    certificate  of the key that signed the document
    cabundle     root first
    public_key, user_data, nonce   what the enclave asked to have signed, or null

The challenge is ``user_data``, all of it. A document whose ``user_data`` is absent, or
neither 32 nor 64 bytes long, covers no challenge: it verifies, and equals no report
data. In debug mode PCR 0 to 2 are zero, which no policy accepts.

The leaf certificate lives three hours, so a document verifies within them only.

Source: AWS, "Verifying the root of trust" (aws-nitro-enclaves-nsm-api, docs/
attestation_process.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidSignature

from bentoml_secure.attestation.checks import compare, require, requiring
from bentoml_secure.attestation.evidence import (
    REPORT_DATA_LENGTHS,
    Evidence,
    UncheckedField,
    VerifiedClaims,
    format_seconds,
)
from bentoml_secure.attestation.reference_values import (
    IndexedReferences,
    Unchecked,
    at_index,
    compare_reference,
    indexed_to_json,
    read_indexed,
    require_known,
)
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.attestation.tees.cbor import parse_cbor
from bentoml_secure.attestation.tees.cose import ES384, Sign1, parse_sign1
from bentoml_secure.attestation.tees.ec_chain import (
    development_root,
    read_certificate,
    verify_chain,
)
from bentoml_secure.attestation.tees.simulated import VENDOR as SIMULATED
from bentoml_secure.digest import Digest
from bentoml_secure.errors import (
    AttestationError,
    MalformedInputError,
)

KIND = "nitro"
VENDOR = "aws"

AWS_ROOT = Digest(
    "sha256:641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
)
"""AWS Nitro Enclaves Root G1, 2019 to 2049, as AWS publishes its fingerprint."""

MAX_DOCUMENT_BYTES = 32 * 1024
MAX_CABUNDLE = 8
MAX_PCRS = 32
POLICY_PCRS = range(16)
"""PCRs that a policy may list; the platform locks these before the enclave runs."""

_PCR_LENGTHS = (32, 48, 64)
_MAX_BYTES = {"public_key": 1024, "user_data": 512, "nonce": 512}
_DEBUG_PCRS = (0, 1, 2)
_REQUIRED = frozenset(
    {"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"}
)
_MODULE_ID = re.compile(r"(i-[0-9a-f]{8,32})-enc[0-9a-f]{8,32}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_REVOKED = UncheckedField(
    field="revocation", reason="no revocation list of AWS was consulted"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    module_id: str
    issued_at: datetime
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None

    def claims(self) -> dict[str, Any]:
        optional = ("public_key", "user_data", "nonce")
        values = {name: getattr(self, name) for name in optional}
        return {
            "module_id": self.module_id,
            "pcrs": {str(index): pcr.hex() for index, pcr in self.pcrs.items()},
            **{name: value and value.hex() for name, value in values.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroPolicy:
    """Reference values for an enclave.

    Attributes:
        pcr: Accepted values by index, or why none is compared.
    """

    pcr: IndexedReferences

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between an enclave's claims and this policy."""
        pcrs = claims.claims["pcrs"]
        debugged = [i for i in _DEBUG_PCRS if not int(pcrs[str(i)], 16)]
        return (
            compare(
                "debug",
                not debugged,
                got=f"PCR {', '.join(map(str, debugged))} zero",
                want="an enclave that is not in debug mode",
            )
            + self._compare_pcrs(pcrs)
            + Comparison(unchecked=(_NOT_REVOKED,))
        )

    def _compare_pcrs(self, pcrs: Mapping[str, str]) -> Comparison:
        if isinstance(self.pcr, Unchecked):
            return compare_reference("pcr", "", self.pcr)
        comparison = Comparison()
        for index, references in self.pcr.items():
            got = f"{index}:{pcrs.get(str(index), 'absent')}"
            comparison += compare_reference("pcr", got, at_index(index, references))
        return comparison

    def to_json(self) -> dict[str, Any]:
        """Return the table of the policy."""
        return {"pcr": indexed_to_json(self.pcr)}


class Nitro:
    """Verifier of attestation documents and reader of their policy table.

    Args:
        root: DER of a development root to verify under instead of AWS's; what hangs
            on it is flagged as simulated.

    Raises:
        ConfigurationError: ``root`` does not say that it is one.
    """

    def __init__(self, root: bytes | None = None) -> None:
        self._root = AWS_ROOT if root is None else development_root(root)

    def verify(
        self, evidence: Evidence, endorsements: Sequence[bytes], *, now: datetime
    ) -> VerifiedClaims:
        """Return what an attestation document says, if AWS's root stands behind it.

        Args:
            evidence: From outside, of kind ``nitro``; zero bytes may follow it.
            endorsements: Not read: the chain is in the document.
            now: Judges the dates of the certificates.

        Raises:
            MalformedInputError: A document that does not parse.
            AttestationError: A chain, header or signature that does not hold.
        """
        # 1. Sizes and forms, all of them, before any signature.
        message, document = _parse(evidence)
        # 2. One algorithm, and nothing that nobody signed.
        require(
            "cose.header",
            message.header == {1: ES384},
            got=message.header,
            want="ES384 and nothing else",
        )
        require(
            "cose.unprotected",
            not message.unprotected,
            got=f"{len(message.unprotected)} fields",
            want="none",
        )
        # 3. From the pinned root to the key that signed.
        chain = verify_chain(
            [
                read_certificate(der, what=f"nitro certificate {index}")
                for index, der in enumerate((*document.cabundle, document.certificate))
            ],
            root=self._root,
            now=now,
        )
        # 4. That key signed the payload.
        with requiring("cose.signature", InvalidSignature, want="the leaf's signature"):
            message.verify(chain.leaf.key)
        # 5. Only now what it says.
        simulated = chain.root != AWS_ROOT
        return VerifiedClaims(
            kind=KIND,
            report_data=_challenge(document.user_data),
            claims=document.claims(),
            platform_id=_instance(document),
            vendor=SIMULATED if simulated else VENDOR,
            root=chain.root,
            issued_at=document.issued_at,
            expires_at=chain.expires_at,
            simulated=simulated,
            any_length=True,
        )

    def describe(self, evidence: Evidence) -> Mapping[str, Any]:
        """Return a document's fields, unverified.

        Raises:
            MalformedInputError: A document that does not parse.
        """
        document = _parse(evidence)[1]
        return {
            **document.claims(),
            "issued_at": format_seconds(document.issued_at),
            "certificates": 1 + len(document.cabundle),
        }

    def parse_policy(self, table: Mapping[str, Any]) -> NitroPolicy:
        """Return the reference values that the table ``[nitro]`` spells.

        Raises:
            ConfigurationError: A key unknown or of another form; no PCR.
        """
        what = f"appraisal policy [{KIND}]"
        require_known(table, frozenset({"pcr"}), what=what)
        return NitroPolicy(
            pcr=read_indexed(
                table.get("pcr"),
                what=f"{what} pcr",
                indexes=POLICY_PCRS,
                pattern=re.compile(r"[0-9a-f]{96}"),
                form="SHA-384 value of 96 hex digits",
            )
        )


def _parse(evidence: Evidence) -> tuple[Sign1, _Document]:
    if evidence.kind != KIND:
        raise AttestationError(f"evidence kind: got {evidence.kind}, want {KIND}")
    if len(evidence.blob) > MAX_DOCUMENT_BYTES:
        raise MalformedInputError(
            f"nitro document: got {len(evidence.blob)} bytes,"
            f" want at most {MAX_DOCUMENT_BYTES}"
        )
    message = parse_sign1(evidence.blob, what="nitro document", padded=True)
    return message, _parse_payload(message.payload)


def _parse_payload(payload: bytes) -> _Document:
    what = "nitro payload"
    fields = parse_cbor(payload, what=what)
    if not isinstance(fields, dict):
        raise MalformedInputError(f"{what}: want a map")
    if missing := _REQUIRED - fields.keys():
        raise MalformedInputError(f"{what}: field {min(missing)!r} is missing")
    if unknown := fields.keys() - _REQUIRED - _MAX_BYTES.keys():
        raise MalformedInputError(
            f"{what}: unknown field {min(map(str, unknown))!r:.60}"
        )
    module_id, digest = fields["module_id"], fields["digest"]
    if digest != "SHA384":
        raise MalformedInputError(f"{what} digest: got {digest!r:.40}, want SHA384")
    if not isinstance(module_id, str) or not 0 < len(module_id) <= 256:
        raise MalformedInputError(f"{what} module_id: got {module_id!r:.60}")
    cabundle = fields["cabundle"]
    if not isinstance(cabundle, list) or not 0 < len(cabundle) <= MAX_CABUNDLE:
        raise MalformedInputError(
            f"{what} cabundle: want 1 to {MAX_CABUNDLE} certificates"
        )
    for der in (fields["certificate"], *cabundle):
        if not isinstance(der, bytes):
            raise MalformedInputError(f"{what}: a certificate that is not bytes")
    return _Document(
        module_id=module_id,
        issued_at=_parse_timestamp(fields["timestamp"], what=f"{what} timestamp"),
        pcrs=_parse_pcrs(fields["pcrs"], what=f"{what} pcrs"),
        certificate=fields["certificate"],
        cabundle=tuple(cabundle),
        public_key=_parse_optional(fields, "public_key"),
        user_data=_parse_optional(fields, "user_data"),
        nonce=_parse_optional(fields, "nonce"),
    )


def _parse_timestamp(value: object, *, what: str) -> datetime:
    if type(value) is not int:
        raise MalformedInputError(f"{what}: want milliseconds since 1970")
    try:
        return _EPOCH + timedelta(milliseconds=value)
    except OverflowError as error:
        raise MalformedInputError(f"{what}: {value} is no time") from error


def _parse_pcrs(value: object, *, what: str) -> dict[int, bytes]:
    if not isinstance(value, dict) or not 0 < len(value) <= MAX_PCRS:
        raise MalformedInputError(f"{what}: want 1 to {MAX_PCRS} of them")
    for index, pcr in value.items():
        if type(index) is not int or not 0 <= index < MAX_PCRS:
            raise MalformedInputError(f"{what}: no PCR has index {index!r:.40}")
        if not isinstance(pcr, bytes) or len(pcr) not in _PCR_LENGTHS:
            raise MalformedInputError(f"{what} {index}: want 32, 48 or 64 bytes")
    if missing := set(_DEBUG_PCRS) - value.keys():
        raise MalformedInputError(f"{what}: PCR {min(missing)} is missing")
    return value


def _parse_optional(fields: Mapping[int | str, Any], name: str) -> bytes | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, bytes) or len(value) > _MAX_BYTES[name]:
        raise MalformedInputError(
            f"nitro payload {name}: want null or at most {_MAX_BYTES[name]} bytes"
        )
    return value


def _challenge(user_data: bytes | None) -> bytes | None:
    # Neither cut nor padded: other bytes must not come to equal a challenge.
    if user_data is None or len(user_data) not in REPORT_DATA_LENGTHS:
        return None
    return user_data


def _instance(document: _Document) -> str:
    """Return the EC2 instance; a NitroTPM's documents name no enclave."""
    match = _MODULE_ID.fullmatch(document.module_id)
    require(
        "module_id",
        match is not None,
        got=document.module_id,
        want="an enclave's, i-<hex>-enc<hex>",
    )
    return match.group(1) if match else document.module_id
