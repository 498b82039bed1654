"""OpenSSF model signatures: made, verified, and compared with what is loaded."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    MissingDependencyError,
)
from bentoml_secure.keys.model_signing import (
    parse_signature,
    parse_signing_key,
    require_signed_plan,
    sign_model,
    verify_model,
)
from bentoml_secure.keys.seal_model import seal_plan
from bentoml_secure.split.plan import Plan
from tests.unit.keys.conftest import Signer, make_signer


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(CheckFailedError) as caught:
        call()
    (finding,) = caught.value.findings
    return finding.field


@pytest.fixture
def signature(plain: Path, signer: Signer, tmp_path: Path) -> bytes:
    path = tmp_path / "model.sig"
    sign_model(plain, signer.path, path)
    return path.read_bytes()


def resigned(
    data: bytes, signer: Signer, edit: Callable[[Any], Any], **fields: Any
) -> bytes:
    """Edit what is signed, and sign that with the same key."""
    bundle = json.loads(data)
    envelope = bundle["dsseEnvelope"] | fields
    statement = json.loads(base64.b64decode(envelope["payload"]))
    payload = json.dumps(edit(statement)).encode()
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    raw = signer.key.sign(signed, ec.ECDSA(hashes.SHA256()))
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"] = [{"sig": base64.b64encode(raw).decode(), "keyid": ""}]
    return json.dumps(bundle | {"dsseEnvelope": envelope}).encode()


def test_a_signed_folder_verifies(
    plain: Path, signer: Signer, signature: bytes, plan: Plan
) -> None:
    key = signer.key.public_key()
    verified = verify_model(plain, signature, key)
    assert set(verified.files) == {"plan.json", "segment-0.onnx", "segment-1.onnx"}
    verified.require_signed("segment-0.onnx", b"segment-0.onnx")
    assert require_signed_plan(plain, signature, key) == plan


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_the_other_curves(plain: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    signer = make_signer(tmp_path / "key.pem", curve)
    made = sign_model(plain, signer.path, tmp_path / "sig")
    verified = verify_model(plain, made.data, signer.key.public_key())
    assert verified.files == made.files


def _swap_for_link(folder: Path) -> None:
    (folder / "segment-0.onnx").rename(folder.parent / "elsewhere")
    (folder / "segment-0.onnx").symlink_to(folder.parent / "elsewhere")


def _add_many(folder: Path) -> None:
    for number in range(8):
        (folder / f"a{number}").touch()


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda f: (f / "plan.json").write_bytes(b"{}"), "plan.json was changed"),
        (lambda f: (f / "plan.json").unlink(), "plan.json is missing"),
        (lambda f: (f / "more.onnx").touch(), "more.onnx was added"),
        (lambda f: (f / ".gitignore").touch(), ".gitignore was added"),
        (lambda f: (f / "link").symlink_to("plan.json"), "link was added"),
        (_swap_for_link, "segment-0.onnx is no file"),
        (_add_many, "a4 was added; 3 more"),
    ],
    ids=["changed", "missing", "added", "added-for-git", "linked", "swapped", "many"],
)
def test_an_altered_folder(
    plain: Path,
    signer: Signer,
    signature: bytes,
    alter: Callable[[Path], object],
    said: str,
) -> None:
    alter(plain)
    key = signer.key.public_key()
    assert refused(lambda: verify_model(plain, signature, key)) == "folder"
    with pytest.raises(CheckFailedError, match=said):
        verify_model(plain, signature, key)


def test_another_key(
    plain: Path, signature: bytes, tmp_path: Path, signer: Signer
) -> None:
    other = make_signer(tmp_path / "other.pem").key.public_key()
    assert refused(lambda: verify_model(plain, signature, other)) == "key"
    bundle = json.loads(signature)
    own = make_signer(tmp_path / "own.pem")
    own_path = tmp_path / "own.sig"
    bundle["verificationMaterial"]["publicKey"] = json.loads(
        sign_model(plain, own.path, own_path).data
    )["verificationMaterial"]["publicKey"]
    named = json.dumps(bundle).encode()
    # The signature still fits: only the name of the key is another's.
    assert refused(lambda: parse_signature(named, signer.key.public_key())) == "key"
    # And the other way: the right name, another's signature.
    key = own.key.public_key()
    assert refused(lambda: parse_signature(named, key)) == "signature"


def test_an_edited_signature(signature: bytes, signer: Signer) -> None:
    bundle = json.loads(signature)
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    edited = payload.replace(b"segment-0", b"segment-9")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(edited).decode()
    data = json.dumps(bundle).encode()
    key = signer.key.public_key()
    assert refused(lambda: parse_signature(data, key)) == "signature"


def test_something_else_that_the_owner_signed(signature: bytes, signer: Signer) -> None:
    key = signer.key.public_key()
    other = resigned(signature, signer, lambda s: s, payloadType="text/plain")
    assert refused(lambda: parse_signature(other, key)) == "payload_type"
    other = resigned(signature, signer, lambda s: s | {"predicateType": "https://x"})
    with pytest.raises(MalformedInputError, match="predicateType: got 'https://x'"):
        parse_signature(other, key)


def test_a_file_that_was_not_signed(signature: bytes, signer: Signer) -> None:
    verified = parse_signature(signature, signer.key.public_key())
    assert refused(lambda: verified.require_signed("more.onnx", b"")) == "signed_file"
    assert refused(lambda: verified.require_signed("plan.json", b"{}")) == "signed_file"


def test_a_plan_swapped_after_the_folder_was_verified(
    plain: Path, signature: bytes, signer: Signer
) -> None:
    key = signer.key.public_key()
    verified = verify_model(plain, signature, key)
    document = (plain / "plan.json").read_bytes()
    (plain / "plan.json").write_bytes(document.replace(b"testing", b"tasting"))
    for call in (
        lambda: seal_plan(plain, plain.parent / "out", signature=verified),
        lambda: require_signed_plan(plain, signature, key),
    ):
        assert refused(call) == "signed_file"
    assert not (plain.parent / "out").exists()


def test_a_sealed_folder_is_judged_by_the_same_signature(
    plain: Path, signature: bytes, signer: Signer, tmp_path: Path, plan: Plan
) -> None:
    key = signer.key.public_key()
    out = tmp_path / "out"
    seal_plan(plain, out, signature=verify_model(plain, signature, key))
    carried = (out / "model.sig").read_bytes()
    assert carried == signature
    assert require_signed_plan(out, carried, key) == plan


def test_what_the_librarys_command_signs_is_read(
    plain: Path, signer: Signer, tmp_path: Path
) -> None:
    path = tmp_path / "cli.sig"
    command = [sys.executable, "-m", "model_signing", "sign", "key", str(plain)]
    command += ["--private_key", str(signer.path), "--signature", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    key = signer.key.public_key()
    assert verify_model(plain, path.read_bytes(), key).files.keys() >= {"plan.json"}


def test_signatures_over_shards_are_refused_by_name(
    plain: Path, signer: Signer, signature: bytes
) -> None:
    def edit(statement: Any) -> Any:
        statement["predicate"]["serialization"]["method"] = "shards"
        return statement

    data = resigned(signature, signer, edit)
    with pytest.raises(MalformedInputError, match="want whole files"):
        parse_signature(data, signer.key.public_key())


def _resource(**fields: object) -> Callable[[Any], Any]:
    def edit(statement: Any) -> Any:
        statement["predicate"]["resources"][0].update(fields)
        return statement

    return edit


def _predicate(**fields: object) -> Callable[[Any], Any]:
    def edit(statement: Any) -> Any:
        statement["predicate"].update(fields)
        return statement

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_resource(algorithm="blake2"), "want sha256"),
        (_resource(digest="00"), "want 64"),
        (_resource(name=7), "7 is no name"),
        (_resource(name="segment-1.onnx"), "or twice there"),
        (_predicate(resources=[]), "want a list of 1"),
        (_predicate(resources=[3]), "'name' is missing"),
        (_predicate(serialization=None), "'method' is missing"),
        (lambda s: s | {"more": 1}, "want exactly"),
    ],
)
def test_signed_but_not_of_the_form(
    signature: bytes, signer: Signer, edit: Callable[[Any], Any], said: str
) -> None:
    data = resigned(signature, signer, edit)
    with pytest.raises(MalformedInputError, match=said):
        parse_signature(data, signer.key.public_key())


def test_predicates_may_grow(signature: bytes, signer: Signer) -> None:
    data = resigned(signature, signer, _predicate(card="a model card"))
    assert parse_signature(data, signer.key.public_key()).files


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda b: [], "'mediaType' is missing"),
        (lambda b: b | {"mediaType": "x"}, "mediaType: got 'x'"),
        (lambda b: b | {"verificationMaterial": None}, "'publicKey' is missing"),
        (lambda b: b | {"verificationMaterial": {"publicKey": 1}}, "'hint'"),
        (lambda b: b | {"dsseEnvelope": {}}, "'signatures' is missing"),
        (lambda b: b["dsseEnvelope"].update(signatures=[]) or b, "exactly one"),
        (lambda b: b["dsseEnvelope"].update(signatures=[{}]) or b, "'sig'"),
        (lambda b: b["dsseEnvelope"].update(payload="?") or b, "not base64"),
        (lambda b: b["dsseEnvelope"].update(payloadType="\xe9") or b, "want text"),
    ],
)
def test_what_is_no_bundle(
    signature: bytes, signer: Signer, edit: Callable[[Any], Any], said: str
) -> None:
    data = json.dumps(edit(json.loads(signature))).encode()
    with pytest.raises(MalformedInputError, match=said):
        parse_signature(data, signer.key.public_key())


def test_a_payload_that_is_signed_twice_over_is_read_once(
    signature: bytes, signer: Signer
) -> None:
    data = signature.replace(b'"mediaType"', b'"mediaType":"x","mediaType"', 1)
    with pytest.raises(MalformedInputError, match="a key stands twice"):
        parse_signature(data, signer.key.public_key())


def _pem(key: Any) -> bytes:
    pem: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        _pem(ed25519.Ed25519PrivateKey.generate().public_key()),
        _pem(rsa.generate_private_key(65537, 2048).public_key()),
        _pem(ec.generate_private_key(ec.SECP256K1()).public_key()),
    ],
    ids=["empty", "hollow", "ed25519", "rsa", "secp256k1"],
)
def test_what_is_no_owners_key(pem: bytes) -> None:
    with pytest.raises(ConfigurationError, match="model signer's key"):
        parse_signing_key(pem)


def test_keys_that_cannot_sign(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    sealed = BestAvailableEncryption(b"secret")
    for data, said in (
        (b"nothing", "PEM"),
        (key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed), "passphrase"),
        (
            ed25519.Ed25519PrivateKey.generate().private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            ),
            "elliptic-curve",
        ),
    ):
        path.write_bytes(data)
        with pytest.raises(ConfigurationError, match=said):
            sign_model(plain, path, tmp_path / "sig")
    with pytest.raises(ConfigurationError, match="No such file"):
        sign_model(plain, tmp_path / "none", tmp_path / "sig")
    assert not (tmp_path / "sig").exists()


def test_where_a_signature_may_not_go(
    plain: Path, signer: Signer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="lies in the folder"):
        sign_model(plain, signer.path, plain / "model.sig")
    (tmp_path / "sig").write_text("mine")
    with pytest.raises(ConfigurationError, match="exists"):
        sign_model(plain, signer.path, tmp_path / "sig")
    with pytest.raises(ConfigurationError, match="cannot be signed"):
        sign_model(plain, signer.path, tmp_path / "none" / "sig")


def test_what_is_no_folder(signer: Signer, signature: bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no folder"):
        verify_model(tmp_path / "none", signature, signer.key.public_key())
    with pytest.raises(ConfigurationError, match="is no folder"):
        sign_model(signer.path, signer.path, tmp_path / "sig")


@pytest.mark.parametrize("missing", ["model_signing", "OpenSSL"])
def test_without_the_extra(
    plain: Path,
    signer: Signer,
    signature: bytes,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=r"bentoml-secure\[signing\]"):
        verify_model(plain, signature, signer.key.public_key())
    # Reading a signature needs no extra.
    assert replace(parse_signature(signature, signer.key.public_key())).files
