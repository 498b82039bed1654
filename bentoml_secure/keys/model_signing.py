"""OpenSSF model signatures under an elliptic-curve key: who made this model.

A signature is a Sigstore bundle (v0.3) with one DSSE envelope over an in-toto
statement that lists every file of the folder with its SHA-256. The ``model-signing``
package makes it, and compares a whole folder with it. What is loaded later is read
again, so the signature is read here as well, strictly, and compared with those very
bytes: plan.json must be the signed one, and pins every other file of the plan.

Signatures that the ``model_signing`` command makes with a key are read too.

Source: OpenSSF Model Signing v1.0; Sigstore bundle v0.3; DSSE protocol v1.0.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from bentoml_secure.attestation.checks import require, requiring
from bentoml_secure.digest import Digest, digest_bytes, parse_hex, parse_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    MissingDependencyError,
)
from bentoml_secure.signing import decode_base64
from bentoml_secure.split.files import read_bytes
from bentoml_secure.split.plan import MAX_PLAN_BYTES, PLAN_FILE, Plan, parse_plan
from bentoml_secure.statements import INTOTO_TYPE, parse_intoto

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MAX_SIGNATURE_BYTES = 16 << 20
MAX_KEY_BYTES = 16 * 1024
MAX_FILES = 100_000

_MAX_ECDSA_BYTES = 160
_MAX_TOLD = 5
_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
# What the library lets through where a folder does not fit its signature.
_LIBRARY_ERRORS = (ValueError, KeyError, TypeError, IndexError, InvalidSignature)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSignature:
    """A signature that verified under the key that was demanded.

    Attributes:
        data: The bundle as read.
        files: SHA-256 of each signed file, in hex, by its path in the folder.
    """

    data: bytes
    files: Mapping[str, str]

    def require_signed(self, path: str, contents: bytes) -> None:
        """Refuse bytes that are not those of the signed file of that path.

        Raises:
            CheckFailedError: Not among the signed files, or other bytes.
        """
        got, want = hashlib.sha256(contents).hexdigest(), self.files.get(path)
        require("signed_file", got == want, got=f"{path} {got}", want=want or "signed")


def parse_signing_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the model owner's public key.

    Args:
        pem: One's own: SubjectPublicKeyInfo on P-256, P-384 or P-521.

    Raises:
        ConfigurationError: Not such a key.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"model signer's key: {error}.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise ConfigurationError(
            "model signer's key: want an elliptic-curve key on P-256, P-384 or P-521."
        )
    return key


def signer_digest(key: ec.EllipticCurvePublicKey) -> Digest:
    """Return how a deployment's configuration names the signer that it demands."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return digest_bytes(der)


def parse_signature(data: bytes, key: ec.EllipticCurvePublicKey) -> ModelSignature:
    """Verify a model signature and return what it signs.

    Args:
        data: The bundle, from outside.
        key: The only key accepted.

    Raises:
        MalformedInputError: Not a bundle of this form; files hashed otherwise than
            whole, by SHA-256.
        CheckFailedError: Another key, or the signature does not fit.
    """
    what = "model signature"
    bundle = parse_json(data, what=what, max_bytes=MAX_SIGNATURE_BYTES)
    media_type = _member(bundle, "mediaType", what)
    if media_type != BUNDLE_TYPE:
        raise MalformedInputError(
            f"{what} mediaType: got {media_type!r:.80}, want {BUNDLE_TYPE}"
        )
    material = _member(bundle, "verificationMaterial", what)
    hint = _member(_member(material, "publicKey", what), "hint", what)
    own = public_key_hint(key)
    require("key", hint == own, got=f"{hint!r:.80}", want=own)
    payload = _verified_payload(_member(bundle, "dsseEnvelope", what), key)
    document = parse_json(payload, what=what, max_bytes=MAX_SIGNATURE_BYTES)
    _, predicate = parse_intoto(document, predicate_type=PREDICATE_TYPE, what=what)
    return ModelSignature(data=data, files=_signed_files(predicate))


def _member(document: object, name: str, what: str) -> Any:
    # Bundles may carry more than is read here, so other members are let be.
    if not isinstance(document, dict) or name not in document:
        raise MalformedInputError(f"{what}: field {name!r} is missing")
    return document[name]


def public_key_hint(key: ec.EllipticCurvePublicKey) -> str:
    """Return how a bundle names its key: SHA-256 of the PEM, in hex."""
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _verified_payload(envelope: object, key: ec.EllipticCurvePublicKey) -> bytes:
    what = "model signature envelope"
    signatures = _member(envelope, "signatures", what)
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise MalformedInputError(f"{what} signatures: want exactly one")
    signature = decode_base64(
        _member(signatures[0], "sig", what), what=what, max_bytes=_MAX_ECDSA_BYTES
    )
    payload = decode_base64(
        _member(envelope, "payload", what), what=what, max_bytes=MAX_SIGNATURE_BYTES
    )
    got = _member(envelope, "payloadType", what)
    if not isinstance(got, str) or not got.isascii():
        raise MalformedInputError(f"{what} payloadType: want text")
    signed = b"DSSEv1 %d %b %d %b" % (len(got), got.encode(), len(payload), payload)
    with requiring("signature", InvalidSignature, want="the model owner's"):
        key.verify(signature, signed, ec.ECDSA(_HASHES[key.curve.name]))
    require("payload_type", got == INTOTO_TYPE, got=f"{got:.80}", want=INTOTO_TYPE)
    return payload


def _signed_files(predicate: Mapping[str, Any]) -> dict[str, str]:
    what = "model signature resources"
    serialization = _member(predicate, "serialization", what)
    method = _member(serialization, "method", what)
    if method != "files":
        raise MalformedInputError(
            f"{what}: hashed by {method!r:.40}, want whole files.",
            remedy="Sign the model without shards.",
        )
    resources = _member(predicate, "resources", what)
    if not isinstance(resources, list) or not 0 < len(resources) <= MAX_FILES:
        raise MalformedInputError(f"{what}: want a list of 1 to {MAX_FILES}")
    files: dict[str, str] = {}
    for resource in resources:
        name, algorithm = (_member(resource, n, what) for n in ("name", "algorithm"))
        if not isinstance(name, str) or name in files:
            raise MalformedInputError(
                f"{what}: {name!r:.80} is no name, or twice there"
            )
        if algorithm != "sha256":
            raise MalformedInputError(
                f"{what} {name:.80}: hashed by {algorithm!r:.40}, want sha256"
            )
        digest = _member(resource, "digest", what)
        files[name] = parse_hex(digest, what=f"{what} {name:.80}", length=32).hex()
    return files


def require_signed_plan(
    folder: Path, signature: bytes, key: ec.EllipticCurvePublicKey
) -> Plan:
    """Return the plan of a folder, plain or sealed, if the model's owner signed it.

    Every file that is loaded for it is compared with the plan's digests, so nothing
    that was not signed is run. Files that lie beside are not looked at.

    Args:
        folder: The plan's.
        signature: Of the plain folder, from outside.
        key: The owner's.

    Raises:
        ConfigurationError: plan.json is missing or cannot be read.
        MalformedInputError: The signature or the plan is not of its form.
        CheckFailedError: Another key, or another plan than was signed.
    """
    verified = parse_signature(signature, key)
    document = read_bytes(folder, PLAN_FILE, max_bytes=MAX_PLAN_BYTES)
    verified.require_signed(PLAN_FILE, document)
    return parse_plan(document)


def sign_model(folder: Path, private_key: Path, signature: Path) -> ModelSignature:
    """Sign every file of a folder.

    Args:
        folder: The model's.
        private_key: PEM, elliptic-curve, without a passphrase.
        signature: Where the bundle goes; new, and outside the folder.

    Returns:
        The signature, verified.

    Raises:
        ConfigurationError: A key of another kind; a folder or file that cannot be
            used.
        MissingDependencyError: The ``signing`` extra is not installed.
    """
    hashing, signing, _ = _library()
    public = _public_of(private_key)
    _require_folder(folder)
    if signature.resolve().is_relative_to(folder.resolve()):
        raise ConfigurationError(
            f"{signature}: lies in the folder that it would sign.",
            remedy="Name a file outside it.",
        )
    if signature.exists():
        raise ConfigurationError(f"{signature}: exists; nothing is overwritten.")
    signer = signing.Config().use_elliptic_key_signer(private_key=private_key)
    try:
        signer.set_hashing_config(_whole(hashing)).sign(folder, signature)
        return parse_signature(signature.read_bytes(), public)
    except (OSError, *_LIBRARY_ERRORS) as error:
        raise ConfigurationError(f"{folder}: cannot be signed: {error}.") from error


def verify_model(
    folder: Path, signature: bytes, key: ec.EllipticCurvePublicKey
) -> ModelSignature:
    """Verify that a folder holds exactly the files that the model's owner signed.

    Args:
        folder: The model's, from outside.
        signature: The bundle, from outside.
        key: The owner's.

    Raises:
        MalformedInputError: The signature is not of its form.
        CheckFailedError: Another key; a file changed, missing or added.
        ConfigurationError: The folder cannot be read.
        MissingDependencyError: The ``signing`` extra is not installed.
    """
    hashing, _, verifying = _library()
    _require_folder(folder)
    verified = parse_signature(signature, key)
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    # The library reads paths: it gets copies of the very bytes that were verified.
    with tempfile.TemporaryDirectory(prefix="bentoml-secure-") as copies:
        bundle, public = Path(copies) / "model.sig", Path(copies) / "key.pem"
        bundle.write_bytes(signature)
        public.write_bytes(pem)
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public)
        verifier.set_hashing_config(_whole(hashing))
        try:
            try:
                verifier.verify(folder, bundle)
            except _LIBRARY_ERRORS as error:
                got = _difference(folder, verified.files) or str(error)
                require("folder", False, got=got, want="exactly what was signed")
        except OSError as error:
            raise ConfigurationError(f"{folder}: cannot be read: {error}.") from error
    return verified


def _difference(folder: Path, files: Mapping[str, str]) -> str:
    """Say what the library found, in fewer words: its own show digests as bytes."""
    there = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    told = [f"{name} is missing" for name in sorted(files.keys() - there.keys())]
    for name, path in sorted(there.items()):
        if name not in files:
            told.append(f"{name} was added")
        elif path.is_symlink() or not path.is_file():
            told.append(f"{name} is no file")
        elif _sha256(path) != files[name]:
            told.append(f"{name} was changed")
    more = [f"{len(told) - _MAX_TOLD} more"] if len(told) > _MAX_TOLD else []
    return "; ".join([*told[:_MAX_TOLD], *more])


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _whole(hashing: ModuleType) -> object:
    # Left to itself the library leaves out .git and its like, on both sides. Here only
    # what the signature itself leaves out is.
    return hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)


def _public_of(private_key: Path) -> ec.EllipticCurvePublicKey:
    what = f"signing key {private_key}"
    try:
        with private_key.open("rb") as stream:
            key = load_pem_private_key(stream.read(MAX_KEY_BYTES), None)
    except OSError as error:
        raise ConfigurationError(f"{what}: {error.strerror}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"{what}: {error}.",
            remedy="Want a PEM key without a passphrase, such as `openssl ecparam -name"
            " prime256v1 -genkey -noout` writes.",
        ) from error
    public = key.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise ConfigurationError(f"{what}: want an elliptic-curve key.")
    return parse_signing_key(
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: is no folder.")


def _library() -> tuple[ModuleType, ModuleType, ModuleType]:
    try:
        # model-signing needs pyOpenSSL and does not say so.
        import OpenSSL  # noqa: F401
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise MissingDependencyError(
            f"model signatures need {error.name}, which is not installed.",
            remedy="pip install 'bentoml-secure[signing]'",
        ) from error
    return hashing, signing, verifying
