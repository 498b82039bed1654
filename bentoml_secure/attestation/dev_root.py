"""A development root's folder: the key that simulated evidence hangs on.

root.key      Ed25519, PKCS 8 PEM, mode 0600: who reads it can claim anything
root.pem      its certificate, see ``dev_chain``
policy.toml   an appraisal policy that accepts this root and no other
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificate

from bentoml_secure.attestation.dev_chain import (
    MARK,
    make_leaf,
    make_root,
    verify_chain,
)
from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.errors import AttestationError, ConfigurationError, SecureError

ROOT_KEY = "root.key"
ROOT_CERTIFICATE = "root.pem"
POLICY = "policy.toml"

_POLICY_TEXT = """\
# {mark}: accepts whoever can read the key beside this file.
version = 1
max_age_seconds = 300
allow = ["simulated"]

[simulated]
roots = ["{root}"]
measurement = {{ unchecked = "the code changes while it is developed" }}
"""


def create_dev_root(folder: Path, *, now: datetime) -> Digest:
    """Make a development root: its key, its certificate, a policy that accepts it.

    Args:
        folder: New, or empty; gets mode 0700.
        now: Start of the root's year, with a time zone.

    Returns:
        The digest of the root's certificate, as policies list it.

    Raises:
        ConfigurationError: The folder is not empty or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    root = make_root(key, now=now)
    digest = digest_bytes(root)
    policy = _POLICY_TEXT.format(mark=MARK, root=digest)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigurationError(
                f"development root: {folder} is not empty.",
                remedy="Name a new folder; nothing is overwritten.",
            )
        folder.chmod(0o700)
        _write_new(
            folder / ROOT_KEY,
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            mode=0o600,
        )
        _write_new(
            folder / ROOT_CERTIFICATE,
            load_der_x509_certificate(root).public_bytes(Encoding.PEM),
            mode=0o644,
        )
        _write_new(folder / POLICY, policy.encode(), mode=0o644)
    except OSError as error:
        raise ConfigurationError(f"development root in {folder}: {error}.") from error
    return digest


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    # O_EXCL: a file or link that appeared meanwhile is not followed or overwritten.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def load_dev_root(folder: Path, *, now: datetime) -> tuple[Ed25519PrivateKey, bytes]:
    """Return the key and the DER of the certificate of a development root.

    Args:
        folder: What ``create_dev_root`` made.
        now: The root must be within its dates.

    Raises:
        ConfigurationError: A file missing or damaged, a key and a certificate that do
            not fit, a root that has ended.
    """
    try:
        key = load_pem_private_key((folder / ROOT_KEY).read_bytes(), None)
        root = load_pem_x509_certificate(
            (folder / ROOT_CERTIFICATE).read_bytes()
        ).public_bytes(Encoding.DER)
        if not isinstance(key, Ed25519PrivateKey):
            raise AttestationError("the root's key is not an Ed25519 key")
        # A leaf that verifies shows that key and certificate fit, and are in date.
        verify_chain(make_leaf(key.public_key(), key, root, now=now), root, now=now)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm, SecureError) as error:
        raise ConfigurationError(
            f"development root in {folder}: {error}.",
            remedy="Make one with `bentoml-secure dev-root DIR`.",
        ) from error
    return key, root
