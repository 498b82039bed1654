"""Credential activation: how an authority learns where an attestation key lives.

    device      EnrolmentRequest: its endorsement key's certificates, attestation key
    authority   challenge_enrolment: a secret that only that TPM opens for that key
    device      activates the credential and returns the secret
    authority   conclude_enrolment: signs the enrolment

The authority runs in one process from challenge to conclusion and keeps the secret.

Source: TCG TPM 2.0 Library, Part 1, 24 (credential protection), 11.4.10.2 (KDFa) and
B.10.4 (secret sharing with RSA); TCG EK Credential Profile, B.3.3 (template L-1).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.hashes import SHA256

from bentoml_secure.attestation.checks import require
from bentoml_secure.attestation.evidence import (
    Endorsements,
    endorsements_from_json,
    endorsements_to_json,
)
from bentoml_secure.attestation.tees.tpm_endorsement import (
    MAX_CERTIFICATE_BYTES,
    verify_endorsement_key,
)
from bentoml_secure.attestation.tees.tpm_enrolment import issue_enrolment
from bentoml_secure.attestation.tees.tpm_keys import (
    MAX_PUBLIC_BYTES,
    parse_attestation_key,
)
from bentoml_secure.digest import Digest, require_fields
from bentoml_secure.errors import AttestationError
from bentoml_secure.signing import Envelope, SigningKey, decode_base64

SECRET_BYTES = 32
"""As long as the name's hash, the longest that an endorsement key takes."""

MAX_CREDENTIAL_BYTES = 1024
"""For an endorsement key of ``EK_BITS``, one has 328."""

MAX_ANSWER_SECONDS = 600
EK_BITS = 2048

_FIELDS = frozenset({"ek_certificate", "ak_public", "endorsements"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentRequest:
    """What a device sends to be enrolled.

    Attributes:
        ek_certificate: DER.
        ak_public: The attestation key's ``TPM2B_PUBLIC``.
        endorsements: Certificates above the endorsement key's.
    """

    ek_certificate: bytes
    ak_public: bytes
    endorsements: Endorsements

    def to_json(self) -> dict[str, Any]:
        """Return the request as it travels."""
        return {
            "ek_certificate": base64.b64encode(self.ek_certificate).decode(),
            "ak_public": base64.b64encode(self.ak_public).decode(),
            "endorsements": endorsements_to_json(self.endorsements),
        }

    @classmethod
    def from_json(cls, document: object) -> EnrolmentRequest:
        """Parse what ``to_json`` wrote.

        Raises:
            MalformedInputError: A field missing, unknown, of another form or too long.
        """
        fields = require_fields(document, _FIELDS, what="enrolment request")
        return cls(
            ek_certificate=decode_base64(
                fields["ek_certificate"],
                what="enrolment request ek_certificate",
                max_bytes=MAX_CERTIFICATE_BYTES,
            ),
            ak_public=decode_base64(
                fields["ak_public"],
                what="enrolment request ak_public",
                max_bytes=MAX_PUBLIC_BYTES,
            ),
            endorsements=endorsements_from_json(fields["endorsements"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingEnrolment:
    """A challenge that the authority waits to be answered.

    Attributes:
        credential: For the device: ``TPM2B_ID_OBJECT`` and ``TPM2B_ENCRYPTED_SECRET``.
        ek: Digest of the endorsement key.
        ak_name: Name of the attestation key.
        secret: What the device must return; never leaves the authority.
        challenged_at: When it was drawn.
    """

    credential: bytes
    ek: Digest
    ak_name: bytes
    secret: bytes = field(repr=False)
    challenged_at: datetime


def challenge_to_json(credential: bytes) -> dict[str, Any]:
    """Return a challenge as it travels to the device."""
    return {"credential": base64.b64encode(credential).decode()}


def challenge_from_json(document: object) -> bytes:
    """Return the credential of what ``challenge_to_json`` wrote.

    Raises:
        MalformedInputError: A field missing, unknown, of another form or too long.
    """
    what = "enrolment challenge"
    fields = require_fields(document, frozenset({"credential"}), what=what)
    return decode_base64(
        fields["credential"], what=f"{what} credential", max_bytes=MAX_CREDENTIAL_BYTES
    )


def answer_to_json(secret: bytes) -> dict[str, Any]:
    """Return an answer as it travels to the authority.

    The secret shows which TPM answered, once, and opens nothing.
    """
    return {"secret": base64.b64encode(secret).decode()}


def answer_from_json(document: object) -> bytes:
    """Return the secret of what ``answer_to_json`` wrote.

    Raises:
        MalformedInputError: A field missing, unknown, of another form or too long.
    """
    what = "enrolment answer"
    fields = require_fields(document, frozenset({"secret"}), what=what)
    return decode_base64(
        fields["secret"], what=f"{what} secret", max_bytes=SECRET_BYTES
    )


def challenge_enrolment(
    request: EnrolmentRequest, *, ek_roots: Collection[str], now: datetime
) -> PendingEnrolment:
    """Make a secret that only the requesting TPM opens, for its attestation key alone.

    Args:
        request: From the device.
        ek_roots: ``sha256:`` digests of the roots of makers that are enrolled.
        now: The time, with a time zone.

    Raises:
        MalformedInputError: Bytes that do not parse.
        MissingEndorsementError: The endorsement key's chain is not whole.
        CheckFailedError: Another root (``enrolment.ek_root``), a chain that does not
            hold, or a key that is unfit to quote.
        AttestationError: An endorsement key of another type than is known here.
    """
    ek = verify_endorsement_key(request.ek_certificate, request.endorsements, now=now)
    require(
        "enrolment.ek_root",
        ek.root in ek_roots,
        got=ek.root,
        want=f"one of {', '.join(sorted(ek_roots))}",
    )
    name = parse_attestation_key(request.ak_public).name
    secret = os.urandom(SECRET_BYTES)
    return PendingEnrolment(
        credential=make_credential(ek.key, name, secret),
        ek=ek.digest,
        ak_name=name,
        secret=secret,
        challenged_at=now,
    )


def conclude_enrolment(
    pending: PendingEnrolment,
    answer: bytes,
    key: SigningKey,
    *,
    now: datetime,
    lifetime: timedelta,
) -> Envelope:
    """Sign the enrolment of a device that opened the secret.

    Args:
        pending: What ``challenge_enrolment`` returned, once.
        answer: What the device opened.
        key: The authority's.
        now: The time, with a time zone.
        lifetime: How long the enrolment holds.

    Raises:
        CheckFailedError: ``enrolment.answer`` or ``enrolment.age`` does not hold.
        ConfigurationError: A lifetime out of its bounds.
    """
    require(
        "enrolment.answer",
        hmac.compare_digest(answer, pending.secret),
        got="another secret",
        want="the one in the credential",
    )
    age = now - pending.challenged_at
    require(
        "enrolment.age",
        timedelta(0) <= age <= timedelta(seconds=MAX_ANSWER_SECONDS),
        got=f"an answer after {age.total_seconds():.0f} s",
        want=f"within {MAX_ANSWER_SECONDS} s",
    )
    return issue_enrolment(
        key, ek=pending.ek, ak_name=pending.ak_name, now=now, lifetime=lifetime
    )


def make_credential(
    ek: RSAPublicKey | EllipticCurvePublicKey, name: bytes, secret: bytes
) -> bytes:
    """Encrypt a secret to a TPM, to be opened only while it holds a named key.

    Args:
        ek: The endorsement key, of template L-1: RSA of 2048 bits, AES-128-CFB.
        name: Of the attestation key.
        secret: At most ``SECRET_BYTES``.

    Raises:
        AttestationError: An endorsement key of another type.

    Source: TCG TPM 2.0 Library, Part 1, 24.4 and 24.5; Part 3, 12.6.
    """
    if not isinstance(ek, RSAPublicKey) or ek.key_size != EK_BITS:
        raise AttestationError(
            f"endorsement key: got {type(ek).__name__} of {ek.key_size} bits,"
            f" want RSA of {EK_BITS}.",
            remedy="Enrol with the TPM's other endorsement key.",
        )
    seed = os.urandom(SHA256.digest_size)
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), b"IDENTITY\0")
    encrypted_seed = ek.encrypt(seed, oaep)
    cipher = Cipher(AES(_derive(seed, b"STORAGE", name, 128)), CFB(bytes(16)))
    encryptor = cipher.encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    mac_key = _derive(seed, b"INTEGRITY", b"", 256)
    mac = hmac.digest(mac_key, identity + name, hashlib.sha256)
    return _sized(_sized(mac) + identity) + _sized(encrypted_seed)


def _derive(seed: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa over SHA-256, of at most 256 bits: one block."""
    block = (1).to_bytes(4, "big") + label + b"\0" + context + bits.to_bytes(4, "big")
    return hmac.digest(seed, block, hashlib.sha256)[: bits // 8]


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
