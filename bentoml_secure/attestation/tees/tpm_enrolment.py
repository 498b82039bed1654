"""Enrolments: an authority's word that an attestation key lives in a certified TPM.

A quote does not show which TPM made it. The proof is interactive: who knows the
endorsement key encrypts a secret that only its TPM opens, and only while it holds the
named attestation key (credential activation). So an enrolment authority, such as the
model owner's, runs it once per key, see ``tpm_credential``, and signs what it saw; that
anyone can verify, offline, and a policy lists the authorities whose word counts.

An enrolment is a DSSE envelope of type ``ENROLMENT_TYPE`` over canonical JSON:

    version     1
    authority   Ed25519 public key in hex, whose signature the envelope has
    ek          sha256:<hex> of the DER of the endorsement key (SubjectPublicKeyInfo)
    ak_name     name of the attestation key, 68 hex digits
    issued_at   RFC 3339, UTC, whole seconds
    not_after   likewise

Source: TCG TPM 2.0 Library, Part 1, 24 (credential protection); DSSE protocol v1.0.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bentoml_secure.attestation.checks import require, requiring
from bentoml_secure.attestation.evidence import format_seconds, parse_seconds
from bentoml_secure.attestation.tees.tpm_keys import NAME_BYTES
from bentoml_secure.digest import (
    Digest,
    parse_digest,
    parse_hex,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from bentoml_secure.signing import (
    Envelope,
    SigningKey,
    VerificationKey,
    parse_envelope,
    sign,
    verify,
)

ENROLMENT_TYPE = "application/vnd.bentoml-secure.tpm-enrolment.v1+json"
VERSION = 1
MAX_ENROLMENT_BYTES = 4096
MAX_LIFETIME = timedelta(days=366)

_FIELDS = frozenset({"version", "authority", "ek", "ak_name", "issued_at", "not_after"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What an authority says of an attestation key.

    Attributes:
        authority: The key that signed it.
        ek: Digest of the endorsement key.
        ak_name: Name of the attestation key.
        issued_at: When the authority saw the activation.
        not_after: Until when its word holds.
    """

    authority: VerificationKey
    ek: Digest
    ak_name: bytes
    issued_at: datetime
    not_after: datetime


def issue_enrolment(
    key: SigningKey, *, ek: Digest, ak_name: bytes, now: datetime, lifetime: timedelta
) -> Envelope:
    """Sign that an attestation key lives in the TPM of an endorsement key.

    Only ``tpm_credential.conclude_enrolment`` has seen that it does.

    Args:
        key: The authority's.
        ek: ``sha256:`` of the DER of the endorsement key.
        ak_name: Name of the attestation key.
        now: The time, with a time zone.
        lifetime: Up to ``MAX_LIFETIME``.

    Raises:
        ConfigurationError: Another lifetime.
    """
    if not timedelta(0) < lifetime <= MAX_LIFETIME:
        raise ConfigurationError(
            f"lifetime of an enrolment: got {lifetime}, want up to {MAX_LIFETIME}."
        )
    statement = {
        "version": VERSION,
        "authority": key.public.raw.hex(),
        "ek": ek,
        "ak_name": ak_name.hex(),
        "issued_at": format_seconds(now),
        "not_after": format_seconds(now + lifetime),
    }
    return sign(key, ENROLMENT_TYPE, statement)


def parse_enrolment(document: object) -> tuple[Envelope, Enrolment]:
    """Return an enrolment's envelope and what it says, unverified.

    Raises:
        MalformedInputError: No envelope, or of another form.
    """
    what = "enrolment"
    envelope = parse_envelope(document, what=what, max_bytes=MAX_ENROLMENT_BYTES)
    statement = parse_json(envelope.payload, what=what, max_bytes=MAX_ENROLMENT_BYTES)
    return envelope, _read(statement)


def _read(statement: Any) -> Enrolment:
    fields = require_fields(statement, _FIELDS, what="enrolment")
    version = fields["version"]
    if type(version) is not int or version != VERSION:
        raise MalformedInputError(
            f"enrolment version: got {version!r:.40}, want {VERSION}"
        )
    return Enrolment(
        authority=VerificationKey.from_hex(fields["authority"]),
        ek=parse_digest(fields["ek"], what="enrolment ek", algorithm="sha256"),
        ak_name=parse_hex(
            fields["ak_name"], what="enrolment ak_name", length=NAME_BYTES
        ),
        issued_at=parse_seconds(fields["issued_at"], what="enrolment issued_at"),
        not_after=parse_seconds(fields["not_after"], what="enrolment not_after"),
    )


def verify_enrolment(
    document: object, *, ek: Digest, ak_name: bytes, now: datetime
) -> Enrolment:
    """Return an enrolment of these two keys, whichever authority signed it.

    Args:
        document: The envelope, from outside.
        ek: Digest of the endorsement key that a chain was verified for.
        ak_name: Name of the attestation key that signed the quote.
        now: Judges its dates.

    Raises:
        MalformedInputError: Bytes that do not parse.
        CheckFailedError: ``enrolment.signature``, ``enrolment.ek``, ``enrolment.ak`` or
            ``enrolment.validity`` does not hold.
    """
    envelope, enrolment = parse_enrolment(document)
    with requiring(
        "enrolment.signature",
        VerificationError,
        want="a signature of the authority that it names",
    ):
        verify(envelope, enrolment.authority, payload_type=ENROLMENT_TYPE)
    require("enrolment.ek", enrolment.ek == ek, got=enrolment.ek, want=ek)
    require(
        "enrolment.ak",
        hmac.compare_digest(enrolment.ak_name, ak_name),
        got=enrolment.ak_name.hex(),
        want=ak_name.hex(),
    )
    begins, ends = map(format_seconds, (enrolment.issued_at, enrolment.not_after))
    require(
        "enrolment.validity",
        enrolment.issued_at <= now <= enrolment.not_after,
        got=format_seconds(now),
        want=f"from {begins} to {ends}",
    )
    return enrolment
