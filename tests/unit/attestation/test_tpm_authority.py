"""An authority's key, and the messages between it and a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bentoml_secure.attestation.tees.tpm_authority import (
    generate_authority_key,
    parse_authority_key,
)
from bentoml_secure.attestation.tees.tpm_credential import (
    MAX_CREDENTIAL_BYTES,
    SECRET_BYTES,
    answer_from_json,
    answer_to_json,
    challenge_from_json,
    challenge_to_json,
)
from bentoml_secure.errors import ConfigurationError, MalformedInputError


def pem(key: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    encoded: bytes = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()
    )
    return encoded


ED25519 = Ed25519PrivateKey.generate()
PUBLIC = ED25519.public_key().public_bytes(
    Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
)


def test_a_key_reads_back() -> None:
    key, written = generate_authority_key()
    assert parse_authority_key(written).public.key_id == key.public.key_id


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        PUBLIC,
        pem(ED25519)[:40],
        pem(ED25519, BestAvailableEncryption(b"p")),
    ],
    ids=["nothing", "no text", "public", "cut", "encrypted"],
)
def test_no_key(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="not an unencrypted private key"):
        parse_authority_key(data)


def test_a_key_of_another_kind() -> None:
    other = pem(generate_private_key(SECP256R1()))
    with pytest.raises(ConfigurationError, match="want Ed25519"):
        parse_authority_key(other)


def test_messages_survive_the_trip() -> None:
    credential, secret = bytes(MAX_CREDENTIAL_BYTES), bytes(range(SECRET_BYTES))
    assert challenge_from_json(challenge_to_json(credential)) == credential
    assert answer_from_json(answer_to_json(secret)) == secret


@pytest.mark.parametrize(
    ("parse", "document", "match"),
    [
        (challenge_from_json, [], "enrolment challenge: got list, want an object"),
        (challenge_from_json, {}, "is missing"),
        (challenge_from_json, {"credential": "", "more": 1}, "more"),
        (challenge_from_json, {"credential": 1}, "credential: want base64"),
        (
            challenge_from_json,
            challenge_to_json(bytes(MAX_CREDENTIAL_BYTES + 3)),
            "want base64 of at most 1024 bytes",
        ),
        (answer_from_json, None, "enrolment answer: got NoneType"),
        (answer_from_json, {"secret": "?"}, "secret is not base64"),
        (
            answer_from_json,
            answer_to_json(bytes(SECRET_BYTES + 3)),
            "want base64 of at most 32 bytes",
        ),
    ],
)
def test_messages_of_another_form(
    parse: Callable[[object], bytes], document: object, match: str
) -> None:
    with pytest.raises(MalformedInputError, match=match):
        parse(document)
