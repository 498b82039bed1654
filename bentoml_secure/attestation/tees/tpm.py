"""Evidence of a TPM 2.0: measured boot, quoted by a key of a known TPM.

A TPM alone measures what was started; it does not keep memory from the host. Its claim
``class`` says so, and a policy that wants confidential memory allows other kinds.

TPMs have no form of evidence of their own, so this is ours: canonical JSON of at most
``MAX_BLOB_BYTES``, bytes as base64 unless said otherwise:

    version          1
    ek_certificate   DER of the endorsement key's certificate
    ak_public        TPM2B_PUBLIC of the attestation key
    message          TPMS_ATTEST: a quote; its extraData is the first 32 bytes of the
                     report data
    signature        TPMT_SIGNATURE of the attestation key over it
    pcrs             {"0": 64 hex digits, ...}: the SHA-256 registers that it covers
    enrolment        DSSE envelope that links both keys, see tpm_enrolment; or null
    event_log        TCG2 event log that explains the registers; or null

A log says what was extended: it counts only as far as replaying it gives the quoted
registers, and evidence whose log does not is refused. Registers 0 to 7 are compared,
which firmware alone extends; what runs later extends others and logs elsewhere.

Endorsements are the certificates above the endorsement key's, up to a root.

Four links, each checked here: the root signed the endorsement key, an authority saw
the attestation key in its TPM, the attestation key signed the quote, the quote covers
registers and challenge. Which roots, authorities and values count is the policy's:

    [tpm]
    pcr = { 0 = ["<hex>"], 7 = ["<hex>"] }
    ek_roots = ["sha256:<hex of a root's DER>"]
    enrolment = ["sha256:<hex>"]      # key ids of authorities

Without ``enrolment`` nothing shows that a TPM made the quote: whoever judges a file of
known origin may leave it out, and the result says so; evidence that a peer sends of
itself is refused then (``attestation.verification``).

Source: TCG TPM 2.0 Library, Part 1; TCG EK Credential Profile; RFC 9683.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bentoml_secure.attestation.checks import require
from bentoml_secure.attestation.event_log import LogKind, parse_event_log, replay
from bentoml_secure.attestation.evidence import (
    Evidence,
    UncheckedField,
    VerifiedClaims,
)
from bentoml_secure.attestation.reference_values import (
    IndexedReferences,
    References,
    Unchecked,
    compare_reference,
    indexed_to_json,
    read_list,
    read_references,
    references_to_json,
    require_known,
)
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.attestation.tees.tpm_endorsement import (
    MAX_CERTIFICATE_BYTES,
    EndorsementKey,
    verify_endorsement_key,
)
from bentoml_secure.attestation.tees.tpm_enrolment import (
    Enrolment,
    parse_enrolment,
    verify_enrolment,
)
from bentoml_secure.attestation.tees.tpm_keys import (
    MAX_PUBLIC_BYTES,
    AttestationKey,
    parse_attestation_key,
)
from bentoml_secure.attestation.tees.tpm_pcrs import (
    compare_pcrs,
    parse_pcrs,
    pcrs_to_json,
    read_pcr_references,
)
from bentoml_secure.attestation.tees.tpm_quote import (
    MAX_MESSAGE_BYTES,
    MAX_SIGNATURE_BYTES,
    PCR_BYTES,
    Quote,
    parse_quote,
    verify_quote,
)
from bentoml_secure.digest import canonical_json, parse_json, require_fields
from bentoml_secure.errors import (
    AttestationError,
    MalformedInputError,
)
from bentoml_secure.signing import decode_base64

KIND = "tpm"
VERSION = 1
MAX_BLOB_BYTES = 224 * 1024
MAX_EVENT_LOG_BYTES = 128 * 1024
CHALLENGE_BYTES = 32
CLASS = "measured boot"
"""What a TPM alone can say: what was started, not that its memory is kept apart."""

NOT_ENROLLED = NO_EVENT_LOG = "none"
FIRMWARE_PCRS = range(8)
"""Registers that firmware alone extends, as the PC Client profile has it."""


_BOUNDS = {
    "ek_certificate": MAX_CERTIFICATE_BYTES,
    "ak_public": MAX_PUBLIC_BYTES,
    "message": MAX_MESSAGE_BYTES,
    "signature": MAX_SIGNATURE_BYTES,
}
_NO_ENROLMENT = Unchecked(
    "the policy lists no authority: that a TPM made the quote is its sender's word"
)
_BLOB = frozenset({"version", "pcrs", "enrolment", "event_log", *_BOUNDS})
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NO_REVOCATION = UncheckedField(
    field="ek_revocation", reason="no list of revoked endorsement keys is read"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmPolicy:
    """Reference values for evidence of a TPM.

    Attributes:
        pcr: Accepted values by register, or why any are.
        ek_roots: ``sha256:`` digests of the DER of makers' roots; at least one.
        enrolment: Key ids of enrolment authorities, or why none is asked for.
    """

    pcr: IndexedReferences
    ek_roots: tuple[str, ...]
    enrolment: References

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between a TPM's claims and this policy."""
        return (
            compare_reference("ek_root", claims.root, self.ek_roots)
            + compare_reference("enrolment", claims.claims["enrolment"], self.enrolment)
            + compare_pcrs(claims.claims["pcrs"], self.pcr)
            + Comparison(unchecked=(_NO_REVOCATION,))
        )

    def to_json(self) -> dict[str, Any]:
        """Return the table of the policy."""
        return {
            "pcr": indexed_to_json(self.pcr),
            "ek_roots": list(self.ek_roots),
            "enrolment": references_to_json(self.enrolment),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmEvidence:
    """The parts of a blob, parsed and not verified.

    Attributes:
        ek_certificate: DER of the endorsement key's certificate.
        ak_public: ``TPM2B_PUBLIC`` of the attestation key.
        message: ``TPMS_ATTEST``.
        signature: ``TPMT_SIGNATURE`` over it.
        pcrs: Values of the SHA-256 bank by register.
        enrolment: The envelope as JSON, or None.
        event_log: TCG2 event log, or None.
    """

    ek_certificate: bytes
    ak_public: bytes
    message: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]
    enrolment: Any
    event_log: bytes | None

    def to_evidence(self) -> Evidence:
        """Return the evidence in its one spelling.

        Raises:
            MalformedInputError: More than evidence may hold.
        """
        blob: dict[str, Any] = {
            "version": VERSION,
            "pcrs": pcrs_to_json(self.pcrs),
            "enrolment": self.enrolment,
            "event_log": None
            if self.event_log is None
            else base64.b64encode(self.event_log).decode(),
        }
        for name in _BOUNDS:
            blob[name] = base64.b64encode(getattr(self, name)).decode()
        return Evidence(kind=KIND, blob=canonical_json(blob))


def parse_tpm_evidence(evidence: Evidence) -> TpmEvidence:
    """Return the parts of evidence, unverified.

    Raises:
        MalformedInputError: Not of the form above, or another spelling of it.
        AttestationError: Evidence of another kind.
    """
    if evidence.kind != KIND:
        raise AttestationError(f"evidence kind: got {evidence.kind}, want {KIND}")
    what = "TPM evidence"
    document = parse_json(evidence.blob, what=what, max_bytes=MAX_BLOB_BYTES)
    blob: dict[str, Any] = require_fields(document, _BLOB, what=what)
    if canonical_json(blob) != evidence.blob:
        raise MalformedInputError(f"{what}: not canonical JSON")
    if type(blob["version"]) is not int or blob["version"] != VERSION:
        raise MalformedInputError(
            f"{what} version: got {blob['version']!r:.40}, want {VERSION}"
        )
    parts = {
        name: decode_base64(blob[name], what=f"{what} {name}", max_bytes=bound)
        for name, bound in _BOUNDS.items()
    }
    log = blob["event_log"]
    if log is not None:
        log = decode_base64(
            log, what=f"{what} event_log", max_bytes=MAX_EVENT_LOG_BYTES
        )
    return TpmEvidence(
        **parts,
        pcrs=parse_pcrs(blob["pcrs"], what=f"{what} pcrs"),
        enrolment=blob["enrolment"],
        event_log=log,
    )


class Tpm:
    """Verifier of TPM evidence and reader of its policy table."""

    def verify(
        self, evidence: Evidence, endorsements: Sequence[bytes], *, now: datetime
    ) -> VerifiedClaims:
        """Return what a TPM quoted, under whichever root and authority.

        Args:
            evidence: From outside, of kind ``tpm``.
            endorsements: Certificates above the endorsement key's, PEM or DER.
            now: Judges the dates of certificates and enrolment.

        Raises:
            MalformedInputError: Evidence that does not parse.
            MissingEndorsementError: A certificate of the chain is not there.
            AttestationError: A chain, key, enrolment, quote or event log that does not
                hold.
        """
        # 1. Size, form, one spelling.
        parts = parse_tpm_evidence(evidence)
        # 2. Which TPM: a chain up to some root.
        ek = verify_endorsement_key(parts.ek_certificate, endorsements, now=now)
        # 3. A key fit to quote, and who says that it is in that TPM.
        ak = parse_attestation_key(parts.ak_public)
        enrolment = None
        if parts.enrolment is not None:
            enrolment = verify_enrolment(
                parts.enrolment, ek=ek.digest, ak_name=ak.name, now=now
            )
        # 4. A quote by that key, of these registers, over a challenge.
        quote = verify_quote(parts.message, parts.signature, ak.key, parts.pcrs)
        require(
            "quote.extra_data",
            len(quote.extra_data) == CHALLENGE_BYTES,
            got=f"{len(quote.extra_data)} bytes",
            want=CHALLENGE_BYTES,
        )
        # 5. A log, where there is one, that explains what firmware measured.
        if parts.event_log is not None:
            _verify_event_log(parts.event_log, parts.pcrs)
        # 6. Only now what it says.
        return _claims(parts, ek, ak, enrolment, quote)

    def describe(self, evidence: Evidence) -> Mapping[str, Any]:
        """Return what a quote and its enrolment say, unverified.

        Raises:
            MalformedInputError: Evidence that does not parse.
            CheckFailedError: Not a TPM's quote, or a key that is unfit to quote.
        """
        parts = parse_tpm_evidence(evidence)
        quote = parse_quote(parts.message)
        authority = NOT_ENROLLED
        if parts.enrolment is not None:
            authority = parse_enrolment(parts.enrolment)[1].authority.key_id
        return {
            "report_data": quote.extra_data.hex(),
            "enrolment": authority,
            "ak_name": parse_attestation_key(parts.ak_public).name.hex(),
            "pcrs": pcrs_to_json(parts.pcrs),
            "event_log_bytes": len(parts.event_log or b""),
            **_quoted(quote),
        }

    def parse_policy(self, table: Mapping[str, Any]) -> TpmPolicy:
        """Return the reference values that the table ``[tpm]`` spells.

        Raises:
            ConfigurationError: A key unknown, missing or of another type; an empty
                list.
        """
        what = f"appraisal policy [{KIND}]"
        require_known(table, frozenset({"pcr", "ek_roots", "enrolment"}), what=what)
        enrolment: References = _NO_ENROLMENT
        if "enrolment" in table:
            enrolment = read_references(
                table["enrolment"],
                what=f"{what} enrolment",
                pattern=_DIGEST,
                form="key id of an authority, sha256:<hex>",
            )
        return TpmPolicy(
            pcr=read_pcr_references(table.get("pcr"), what=what),
            ek_roots=read_list(
                table.get("ek_roots"),
                what=f"{what} ek_roots",
                pattern=_DIGEST,
                form="digest of a root, sha256:<hex>",
            ),
            enrolment=enrolment,
        )


def _verify_event_log(log: bytes, pcrs: Mapping[int, bytes]) -> None:
    replayed = replay(parse_event_log(log, LogKind.TPM), LogKind.TPM)
    for index in sorted(pcrs.keys() & set(FIRMWARE_PCRS)):
        want = replayed.get(index, bytes(PCR_BYTES))
        require(
            "event_log.replay",
            pcrs[index] == want,
            got=f"PCR {index} {pcrs[index].hex()}",
            want=f"{want.hex()}, by the event log",
        )


def _claims(
    parts: TpmEvidence,
    ek: EndorsementKey,
    ak: AttestationKey,
    enrolment: Enrolment | None,
    quote: Quote,
) -> VerifiedClaims:
    expires_at = ek.expires_at
    if enrolment is not None:
        expires_at = min(expires_at, enrolment.not_after)
    return VerifiedClaims(
        kind=KIND,
        report_data=quote.extra_data,
        claims={
            "class": CLASS,
            "pcrs": pcrs_to_json(parts.pcrs),
            "ak_name": ak.name.hex(),
            "enrolment": enrolment.authority.key_id if enrolment else NOT_ENROLLED,
            "event_log": "replayed" if parts.event_log is not None else NO_EVENT_LOG,
            "manufacturer": ek.manufacturer,
            "model": ek.model,
            **_quoted(quote),
        },
        platform_id=ek.digest,
        vendor=ek.vendor,
        root=ek.root,
        # A TPM's clock counts from when its owner cleared it: no time of day.
        issued_at=None,
        expires_at=expires_at,
        simulated=ek.simulated,
    )


def _quoted(quote: Quote) -> dict[str, Any]:
    return {
        # 64 bits: beyond what JSON can say exactly.
        "clock": f"{quote.clock} ms",
        "reset_count": quote.reset_count,
        "restart_count": quote.restart_count,
        "safe": quote.safe,
        "firmware_version": f"{quote.firmware_version:016x}",
    }
