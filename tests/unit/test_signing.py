"""Envelopes: DSSE as others write it, read strictly, verified under one key."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bentoml_secure.digest import digest_bytes, digest_json
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.signing import (
    Envelope,
    SigningKey,
    VerificationKey,
    decode_base64,
    parse_envelope,
    sign,
    verify,
)

TYPE = "application/vnd.test+json"
KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(b"k" * 32))
OTHER = SigningKey(Ed25519PrivateKey.from_private_bytes(b"o" * 32))
DOCUMENT = {"b": [1, 2], "a": "ä"}
ENVELOPE = sign(KEY, TYPE, DOCUMENT)


def raw(payload: bytes, key: SigningKey = KEY, payload_type: str = TYPE) -> Envelope:
    """Sign bytes as they are, by the words of DSSE and not by our code."""
    head = b"DSSEv1 %d %s " % (len(payload_type.encode()), payload_type.encode())
    signature = key.sign(head + b"%d %s" % (len(payload), payload))
    return Envelope(payload_type, payload, key.public.key_id, signature)


def test_an_envelope_is_what_dsse_says() -> None:
    assert raw('{"a":"ä","b":[1,2]}'.encode()) == ENVELOPE
    assert ENVELOPE.to_json() == {
        "payload": base64.b64encode(ENVELOPE.payload).decode(),
        "payloadType": TYPE,
        "signatures": [
            {
                "keyid": digest_bytes(KEY.public.raw),
                "sig": base64.b64encode(ENVELOPE.signature).decode(),
            }
        ],
    }
    assert ENVELOPE.payload_digest == digest_json(DOCUMENT)


def test_what_was_signed_comes_back() -> None:
    again = parse_envelope(json.loads(json.dumps(ENVELOPE.to_json())), what="it")
    assert again == ENVELOPE
    assert verify(again, KEY.public, payload_type=TYPE) == DOCUMENT


def test_keys_are_what_they_are_parsed_from() -> None:
    key = VerificationKey.from_hex(KEY.public.raw.hex())
    assert (key.raw, key.key_id) == (KEY.public.raw, KEY.public.key_id)
    key.verify(KEY.sign(b"m"), b"m")
    assert SigningKey.generate().public.raw != SigningKey.generate().public.raw


@pytest.mark.parametrize("text", [None, "", "00" * 31, "00" * 33, "AA" * 32, b"0" * 64])
def test_what_is_no_key(text: object) -> None:
    with pytest.raises(MalformedInputError, match="Ed25519 key: got"):
        VerificationKey.from_hex(text)
    with pytest.raises(MalformedInputError, match="got 31 bytes, want 32"):
        VerificationKey(bytes(31))


@pytest.mark.parametrize(
    "signature",
    [b"", bytes(63), bytes(64), bytes(65), OTHER.sign(b"m"), KEY.sign(b"n")],
)
def test_a_signature_that_is_not_this_keys(signature: bytes) -> None:
    with pytest.raises(VerificationError, match="does not verify under key sha256:"):
        KEY.public.verify(signature, b"m")


def test_bytes_that_are_no_point_verify_nothing() -> None:
    for point in (bytes(32), b"\xff" * 32, (1).to_bytes(32, "little")):
        key = VerificationKey(point)
        with pytest.raises(VerificationError, match="does not verify"):
            key.verify(KEY.sign(b"m"), b"m")


@pytest.mark.parametrize(
    ("envelope", "why"),
    [
        (sign(KEY, "another", DOCUMENT), "payloadType: got 'another'"),
        (sign(OTHER, TYPE, DOCUMENT), "keyid: got sha256:"),
        (
            Envelope(TYPE, ENVELOPE.payload, KEY.public.key_id, OTHER.sign(b"")),
            "does not verify",
        ),
        (
            Envelope(TYPE, b"{}", KEY.public.key_id, ENVELOPE.signature),
            "does not verify",
        ),
        (
            # The type is signed too: a signature moves to no other.
            Envelope(
                TYPE,
                ENVELOPE.payload,
                KEY.public.key_id,
                sign(KEY, "another", DOCUMENT).signature,
            ),
            "does not verify",
        ),
    ],
)
def test_an_envelope_of_anything_else_is_refused(envelope: Envelope, why: str) -> None:
    with pytest.raises(VerificationError, match=why):
        verify(envelope, KEY.public, payload_type=TYPE)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b'{"a": 1}', "payload is not canonical JSON"),
        (b'{"b":1,"a":2}', "payload is not canonical JSON"),
        (b"1.0", "payload is not canonical JSON"),
        (b'{"a":1,"a":1}', "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"", "is not valid JSON"),
    ],
)
def test_signed_bytes_that_have_another_spelling_are_refused(
    payload: bytes, why: str
) -> None:
    with pytest.raises(MalformedInputError, match=why):
        verify(raw(payload), KEY.public, payload_type=TYPE)


def test_what_has_no_canonical_form_is_not_signed() -> None:
    with pytest.raises(MalformedInputError, match="canonical JSON"):
        sign(KEY, TYPE, float("nan"))


def changed(**changes: Any) -> dict[str, Any]:
    return {**ENVELOPE.to_json(), **changes}


SIGNATURE: dict[str, Any] = ENVELOPE.to_json()["signatures"][0]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (None, "want exactly payload, payloadType and signatures"),
        ([], "want exactly payload"),
        (changed(more=1), "want exactly payload"),
        ({"payload": "", "payloadType": ""}, "want exactly payload"),
        (changed(payloadType=1), "payloadType: want a string"),
        (changed(signatures={}), "signatures: want exactly one"),
        (changed(signatures=[]), "signatures: want exactly one"),
        (changed(signatures=[SIGNATURE] * 2), "signatures: want exactly one"),
        (changed(signatures=[None]), "signature: want exactly keyid and sig"),
        (changed(signatures=[{**SIGNATURE, "cert": ""}]), "exactly keyid and sig"),
        (changed(signatures=[{"sig": SIGNATURE["sig"]}]), "exactly keyid and sig"),
        (changed(signatures=[{**SIGNATURE, "keyid": 1}]), "keyid: want a string"),
        (changed(signatures=[{**SIGNATURE, "sig": 1}]), "sig: want base64"),
        (changed(signatures=[{**SIGNATURE, "sig": "AAAA"}]), "got 3 bytes, want 64"),
        (changed(signatures=[{**SIGNATURE, "sig": "A" * 100}]), "at most 64 bytes"),
        (changed(payload=None), "payload: want base64"),
        (changed(payload="A"), "payload is not base64"),
    ],
)
def test_what_is_no_envelope(document: object, why: str) -> None:
    with pytest.raises(MalformedInputError, match=f"it.*{why}"):
        parse_envelope(document, what="it")


def test_a_payload_over_its_cap_is_not_decoded() -> None:
    document = changed(payload=base64.b64encode(bytes(101)).decode())
    with pytest.raises(MalformedInputError, match="payload: want base64 of at most 9"):
        parse_envelope(document, what="it", max_bytes=90)


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AA",
        "AA=",
        "AA= =",
        "AB==",
        "AA==\n",
        " AA==",
        "A-==",
        "A_==",
        "AA==AA==",
        "Ä",
    ],
)
def test_base64_has_one_spelling(text: str) -> None:
    with pytest.raises(MalformedInputError, match=r"it.*base64"):
        decode_base64(text, what="it", max_bytes=100)


def test_base64_within_its_cap() -> None:
    assert decode_base64("", what="it", max_bytes=0) == b""
    assert decode_base64("AAE=", what="it", max_bytes=2) == b"\x00\x01"
    with pytest.raises(MalformedInputError, match="at most 2 bytes"):
        decode_base64("AAECAwQF", what="it", max_bytes=2)
