"""Types of options, and reading the files that options name."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bentoml_secure.errors import ConfigurationError, MalformedInputError

if TYPE_CHECKING:
    from bentoml_secure.signing import SigningKey

FILE = click.Path(path_type=Path)
_MAX_KEY_BYTES = 16 * 1024

as_json = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output."
)

_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)"
)


def instant(text: str) -> datetime:
    """Return the moment that RFC 3339 with its offset names, in UTC.

    Raises:
        click.BadParameter: Anything else, times without an offset included.
    """
    if not _RFC3339.fullmatch(text):
        raise click.BadParameter(
            f"got {text!r:.60}, want RFC 3339 such as 2026-01-31T23:59:59Z"
        )
    # fromisoformat reads at most six digits; finer is cut, not rounded.
    cut = re.sub(r"(\.\d{6})\d+", r"\1", text.upper())
    try:
        return datetime.fromisoformat(cut).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text} is no time: {error}") from error


def hex_bytes(*lengths: int) -> Callable[[str], bytes]:
    """Return a reader of hex digits that spell one of so many bytes."""

    def convert(text: str) -> bytes:
        # The text may be a secret: an error does not repeat it.
        if not re.fullmatch(r"[0-9A-Fa-f]*", text):
            raise click.BadParameter("want hex digits")
        if len(text) not in [2 * length for length in lengths]:
            wanted = " or ".join(map(str, lengths))
            if len(lengths) > 2:
                wanted = f"{lengths[0]} to {lengths[-1]}"
            raise click.BadParameter(f"got {len(text)} hex digits, want {wanted} bytes")
        return bytes.fromhex(text)

    return convert


def read(path: Path, *, what: str, max_bytes: int) -> bytes:
    """Read a file or pipe that the caller names, once and bounded.

    Raises:
        ConfigurationError: It cannot be read.
        MalformedInputError: It is larger than ``max_bytes``.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{what} {path}: cannot be read: {error.strerror}"
        ) from error
    if len(data) > max_bytes:
        raise MalformedInputError(f"{what} {path}: got more than {max_bytes} bytes")
    return data


def read_private_key(path: Path) -> SigningKey:
    """Read an Ed25519 private key in PEM.

    Raises:
        ConfigurationError: The file cannot be read, or holds no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from bentoml_secure.signing import SigningKey

    pem = read(path, what="key", max_bytes=_MAX_KEY_BYTES)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"key {path}: want an Ed25519 private key in PEM, without a passphrase.",
            remedy=f"openssl genpkey -algorithm ed25519 -out {path}",
        )
    return SigningKey(key)


def read_evidence(path: Path) -> bytes:
    """Read evidence as its vendor's bytes, or as the hex digits of them.

    Raises:
        ConfigurationError: The file cannot be read.
        MalformedInputError: It is larger than any evidence.
    """
    from bentoml_secure.attestation.evidence import MAX_EVIDENCE_BYTES

    # Three a byte: two hex digits, and what separates or ends lines of them.
    data = read(path, what="evidence", max_bytes=3 * MAX_EVIDENCE_BYTES)
    # No blank is left for the pattern: two stars over the same blanks take a time that
    # is the square of their number.
    digits = b"".join(data.split())
    text = re.fullmatch(rb"(?:0[xX])?((?:[0-9A-Fa-f]{2})+)", digits)
    return data if text is None else bytes.fromhex(text[1].decode("ascii"))
