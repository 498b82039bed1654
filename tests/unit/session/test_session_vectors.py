"""The vectors of docs/session.md: from the document alone, then by the package.

Everything down to ``TestPackage`` is another implementation, on hashes, AES-GCM, X25519
and ML-KEM; it shares no code with ``bentoml_secure.session``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.session.handshake import Offered, accept
from bentoml_secure.session.identity import Keys
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Secrets, Shown
from bentoml_secure.session.messages import Finish, Hello, Offer
from bentoml_secure.session.records import open_whole, seal
from bentoml_secure.session.suites import HpkeKeys
from bentoml_secure.signing import SigningKey

VECTORS = json.loads(
    (Path(__file__).parents[3] / "docs" / "session-vectors.json").read_text()
)
HYBRID = "MLKEM768-X25519/HKDF-SHA256/AES-256-GCM"
CLASSIC = "X25519/HKDF-SHA256/AES-256-GCM"
LABEL = b"bentoml-secure/session/v1/"

Vector = dict[str, Any]
each = pytest.mark.parametrize(
    "vector",
    VECTORS["handshakes"],
    ids=["hybrid", "classic", "client"],
)


def jcs(document: object) -> bytes:
    # RFC 8785 for what stands in these messages: ASCII names, no fractions.
    return json.dumps(
        document, ensure_ascii=False, separators=(",", ":"), sort_keys=True
    ).encode()


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def transcript(*messages: object) -> bytes:
    hashes = b"".join(sha256(jcs(message)) for message in messages)
    return sha256(LABEL + b"transcript" + hashes)


def without(message: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name not in names}


def expand(key: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-Expand, RFC 5869."""
    made, block, counter = b"", b"", 0
    while len(made) < length:
        counter += 1
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        made += block
    return made[:length]


class Hpke:
    """RFC 9180, base mode, HKDF-SHA256, AES-256-GCM, one message."""

    def __init__(self, kem: int) -> None:
        self.suite_id = b"HPKE" + struct.pack(">HHH", kem, 1, 2)

    @staticmethod
    def extract(suite_id: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
        labelled = b"HPKE-v1" + suite_id + label + key
        return hmac.digest(salt or bytes(32), labelled, "sha256")

    @staticmethod
    def expand(
        suite_id: bytes, prk: bytes, label: bytes, info: bytes, length: int
    ) -> bytes:
        labelled = struct.pack(">H", length) + b"HPKE-v1" + suite_id + label + info
        return expand(prk, labelled, length)

    def open(self, shared: bytes, info: bytes, ciphertext: bytes) -> bytes:
        suite = self.suite_id
        context = b"\0" + b"".join(
            self.extract(suite, b"", label, value)
            for label, value in ((b"psk_id_hash", b""), (b"info_hash", info))
        )
        secret = self.extract(suite, shared, b"secret", b"")
        key = self.expand(suite, secret, b"key", context, 32)
        nonce = self.expand(suite, secret, b"base_nonce", context, 12)
        return AESGCM(key).decrypt(nonce, ciphertext, b"")


def open_classic(private: X25519PrivateKey, sealed: bytes, info: bytes) -> bytes:
    encapsulated, ciphertext = sealed[:32], sealed[32:]
    suite = b"KEM" + struct.pack(">H", 0x0020)
    shared = private.exchange(X25519PublicKey.from_public_bytes(encapsulated))
    prk = Hpke.extract(suite, b"", b"eae_prk", shared)
    both = encapsulated + private.public_key().public_bytes_raw()
    secret = Hpke.expand(suite, prk, b"shared_secret", both, 32)
    return Hpke(0x0020).open(secret, info, ciphertext)


def open_hybrid(
    mlkem: MLKEM768PrivateKey, private: X25519PrivateKey, sealed: bytes, info: bytes
) -> bytes:
    encapsulated, point, ciphertext = sealed[:1088], sealed[1088:1120], sealed[1120:]
    shared = private.exchange(X25519PublicKey.from_public_bytes(point))
    secret = hashlib.sha3_256(
        mlkem.decapsulate(encapsulated)
        + shared
        + point
        + private.public_key().public_bytes_raw()
        + rb"\.//^"
        + b"\\"
    ).digest()
    return Hpke(0x647A).open(secret, info, ciphertext)


def private_x25519(vector: Vector, name: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(
        bytes.fromhex(vector["responder_private"][name])
    )


def private_mlkem(vector: Vector) -> MLKEM768PrivateKey:
    seed = bytes.fromhex(vector["responder_private"]["mlkem768_seed"])
    return MLKEM768PrivateKey.from_seed_bytes(seed)


def digest(document: object) -> str:
    return f"sha256-jcs-v1:{sha256(jcs(document)).hex()}"


@each
def test_evidence_covers_nonce_and_document(vector: Vector) -> None:
    for message, nonce, wanted in (
        ("offer", vector["hello"]["nonce"], vector["responder_report_data"]),
        ("finish", vector["offer"]["nonce"], vector["caller_report_data"]),
    ):
        if wanted is None:
            assert vector[message]["attestation"] is None
            continue
        covered = hashlib.sha512(
            b"bentoml-secure/report-data/v1"
            + bytes.fromhex(nonce)
            + sha256(jcs(vector[message]["key_document"]))
            + bytes(32)
        ).hexdigest()
        blob = base64.b64decode(vector[message]["attestation"]["evidence"]["blob"])
        assert covered == wanted == json.loads(blob)["report"]["report_data"]


@each
def test_the_info_binds_what_was_said(vector: Vector) -> None:
    document, caller = vector["offer"]["key_document"], vector["finish"]["key_document"]
    info = (
        LABEL
        + b"info"
        + jcs(
            {
                "caller": digest(caller),
                "caller_nonce": vector["hello"]["nonce"],
                "caller_role": caller["role"],
                "responder": digest(document),
                "responder_nonce": vector["offer"]["nonce"],
                "responder_role": document["role"],
                "suite": vector["suite"],
                "suites": sorted(document["hpke"]),
            }
        )
    )
    assert info.decode() == vector["info"]


@each
def test_the_master_secret_opens(vector: Vector) -> None:
    sealed = base64.b64decode(vector["finish"]["sealed"])
    info = vector["info"].encode()
    public = bytes.fromhex(vector["offer"]["key_document"]["hpke"][vector["suite"]])
    if vector["suite"] == HYBRID:
        mlkem = private_mlkem(vector)
        x25519 = private_x25519(vector, "mlkem768_x25519")
        keys = (mlkem.public_key(), x25519.public_key())
        assert public == b"".join(key.public_bytes_raw() for key in keys)
        master = open_hybrid(mlkem, x25519, sealed, info)
    else:
        x25519 = private_x25519(vector, "x25519")
        assert public == x25519.public_key().public_bytes_raw()
        master = open_classic(x25519, sealed, info)
    assert master.hex() == vector["master"]


@each
def test_signatures_cover_the_transcript(vector: Vector) -> None:
    a, b, c, d = (vector[name] for name in ("hello", "offer", "finish", "confirm"))
    for role, said, signed, document in (
        ("caller", (a, b, without(c, "signature")), c, c),
        ("responder", (a, b, c, without(d, "mac", "signature")), d, b),
    ):
        assert transcript(*said).hex() == vector[f"transcript_{role}"]
        key = Ed25519PrivateKey.from_private_bytes(
            bytes.fromhex(vector[f"{role}_private"]["ed25519"])
        )
        public = key.public_key().public_bytes_raw().hex()
        assert public == document["key_document"]["ed25519"]
        # Ed25519 signatures are the same each time.
        made = key.sign(LABEL + role.encode() + transcript(*said))
        assert made.hex() == signed["signature"]


@each
def test_the_draw_is_committed_to(vector: Vector) -> None:
    envelope, responder = vector["confirm"]["draw"], vector["offer"]["key_document"]
    assert (envelope is None) is (vector["r"] is None) is (responder["role"] != "entry")
    if envelope is None:
        return
    said = {
        "version": 1,
        "commitment": "sha256:" + sha256(bytes.fromhex(vector["r"])).hex(),
        "key_document": "sha256-jcs-v1:" + sha256(jcs(responder)).hex(),
        "evidence_nonce": vector["hello"]["nonce"],
    }
    payload, kind = jcs(said), b"application/vnd.bentoml-secure.draw.v1+json"
    encoded = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    secret = bytes.fromhex(vector["responder_private"]["ed25519"])
    key = Ed25519PrivateKey.from_private_bytes(secret)
    key_id = sha256(key.public_key().public_bytes_raw()).hex()
    assert envelope == {
        "payloadType": kind.decode(),
        "payload": base64.b64encode(payload).decode(),
        "signatures": [
            {
                "keyid": f"sha256:{key_id}",
                "sig": base64.b64encode(key.sign(encoded)).decode(),
            }
        ],
    }


@each
def test_the_key_schedule(vector: Vector) -> None:
    said = transcript(*(vector[name] for name in ("hello", "offer", "finish")))
    assert said.hex() == vector["transcript_session"]
    prk = hmac.digest(said, bytes.fromhex(vector["master"]), "sha256")
    assert expand(prk, LABEL + b"id", 16).hex() == vector["session_id"]
    confirm = expand(prk, LABEL + b"confirm")
    records = expand(prk, LABEL + b"records")
    assert confirm.hex() == vector["confirm_key"]
    assert records.hex() == vector["records_key"]
    mac = hmac.digest(confirm, bytes.fromhex(vector["transcript_responder"]), "sha256")
    assert mac.hex() == vector["confirm"]["mac"]
    for made in vector["exchanges"]:
        exchange = bytes.fromhex(made["exchange_id"])
        nonce = bytes.fromhex(made["answer"]["nonce"])
        assert made["request"]["key"] == (
            expand(records, LABEL + b"request" + exchange).hex()
        )
        assert made["answer"]["key"] == (
            expand(records, LABEL + b"response" + exchange + nonce).hex()
        )


def sealed_body(head: bytes, half: Vector, context: bytes) -> bytes:
    chunks = [bytes.fromhex(chunk) for chunk in half["chunks"]]
    body = head + struct.pack(">Q", sum(map(len, chunks)))
    for index, chunk in enumerate(chunks):
        last = index == len(chunks) - 1
        nonce = index.to_bytes(11, "big") + bytes([last])
        sealed = AESGCM(bytes.fromhex(half["key"])).encrypt(nonce, chunk, context)
        body += struct.pack(">I", len(sealed)) + sealed
    return body


@each
def test_the_bodies_of_exchanges(vector: Vector) -> None:
    document = vector["offer"]["key_document"]
    assert vector["exchanges"]
    for made in vector["exchanges"]:
        for direction, half, status in (
            ("request", made["request"], None),
            ("response", made["answer"], made["answer"].get("status")),
        ):
            context = jcs(
                {
                    "direction": direction,
                    "operation": made["operation"],
                    "request_id": made["request_id"],
                    "role": document["role"],
                    "segment": document["segment"],
                    "service": document["service"],
                    "status": status,
                }
            )
            assert context.decode() == half["context"]
            ids = vector["session_id"] + made["exchange_id"] + made["request_id"]
            head = ids if direction == "request" else half["nonce"]
            # AES-GCM is the same each time: sealing again gives the very bytes.
            assert sealed_body(bytes.fromhex(head), half, context).hex() == half["body"]


class TestPackage:
    """The package reads the same vectors."""

    def keys(self, vector: Vector) -> Keys:
        offer = Offer.from_json(vector["offer"])
        private = vector["responder_private"]
        hpke = HpkeKeys(
            _mlkem=private_mlkem(vector),
            _hybrid_x25519=private_x25519(vector, "mlkem768_x25519"),
            _x25519=private_x25519(vector, "x25519"),
            public=offer.key_document.hpke,
        )
        seed = bytes.fromhex(private["ed25519"])
        signing = SigningKey(Ed25519PrivateKey.from_private_bytes(seed))
        return Keys(signing, hpke, offer.key_document, offer.key_document.digest)

    @each
    def test_a_responder_confirms_them(self, vector: Vector) -> None:
        at = datetime.fromisoformat(VECTORS["at"])
        policy = AppraisalPolicy.from_table(VECTORS["policy"])

        def judged(shown: Shown) -> Any:
            return shown.record and judge(shown, policy, now=at)

        offered = Offered(
            hello=Hello.from_json(vector["hello"]),
            offer=Offer.from_json(vector["offer"]),
            keys=self.keys(vector),
            offered_at=at,
        )
        draw = vector["confirm"]["draw"]
        session, confirm = accept(
            offered,
            Finish.from_json(vector["finish"]),
            judged,
            max_age_seconds=300,
            now=at,
            draw=None if draw is None else lambda _: draw,
        )
        assert confirm == vector["confirm"]
        assert session.secrets.session_id.hex() == vector["session_id"]
        judged(session.own)
        for made in vector["exchanges"]:
            request_id = bytes.fromhex(made["request_id"])
            for direction, half in (
                ("request", made["request"]),
                ("response", made["answer"]),
            ):
                context = session.context(
                    direction,
                    operation=made["operation"],
                    request_id=request_id,
                    status=half.get("status"),
                )
                assert context.decode() == half["context"]

    @each
    def test_its_records_are_these(self, vector: Vector) -> None:
        secrets = Secrets.derive(
            bytes.fromhex(vector["master"]), bytes.fromhex(vector["transcript_session"])
        )
        assert secrets.session_id.hex() == vector["session_id"]
        for made in vector["exchanges"]:
            for half, head in ((made["request"], 56), (made["answer"], 24)):
                key, context = bytes.fromhex(half["key"]), half["context"].encode()
                chunks = [bytes.fromhex(chunk) for chunk in half["chunks"]]
                sealed = bytes.fromhex(half["body"])[head:]
                assert b"".join(seal(key, context, chunks)) == sealed
                assert open_whole(key, context, sealed) == b"".join(chunks)
