"""Structured reference strings: whoever knows the secret of one can forge proofs.

    u32 little-endian k, 2**k points of G1, the same in Lagrange's basis, G2, s times G2

A file is trusted for its digest alone: it is one of the perpetual powers of tau, whose
digests stand here, or it was generated on this machine and is *unsafe*: for tests and
benchmarks. Nothing is ever fetched. Nobody's file is moved, changed or removed.

A verifier needs 320 bytes of it, which are the same in a ceremony's files of all sizes.

Source: halo2_proofs, ParamsKZG::write_custom; github.com/zkonduit/ezkl,
src/srs_sha.rs for the published digests.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from bentoml_secure.digest import FILE, Digest, require_fields
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.proofs.manifest_fields import MAX_LOGROWS, file_digest
from bentoml_secure.signing import decode_base64

VERIFIER_BYTES = 320
VERIFIER = "sha256-srs-v1"
PERPETUAL = "perpetual-powers-of-tau"
LOCAL = "local"

_POINT_BYTES = 64
_HEADER_BYTES = 4
_TAIL_BYTES = 256

_PERPETUAL_SHA256 = (
    "cafb2aa72c200ddc4e28aacabb8066e829207e2484b8d17059a566232f8a297b",
    "8194ec51da5d332d2e17283ade34920644774452c2fadf33742e8c739e275d8e",
    "0729e815bce2ac4dfad7819982c6479c3b22c32b71f64dca05e8fdd90e8535ef",
    "2c0785da20217fcafd3b12cc363a95eb2529037cc8a9bddf8fb15025cbc8cdc9",
    "5b950e3b76e7a9923d69f6d6585ce6b5f9458e5ec57a71c9de5005d32d544692",
    "85030b2924111fc60acaf4fb8a7bad89531fbe0271aeab0c21e545f71eee273d",
    "e65f95150519fe01c2bedf8f832f5249822ef84c9c017307419e10374ff9eeb1",
    "446092fd1d6030e5bb2f2a8368267d5ed0fbdb6a766f6c5e4a4841827ad3106f",
    "493d088951882ad81af11e08c791a38a37c0ffff14578cf2c7fb9b7bca654d8b",
    "9705d450e5dfd06adb673705f7bc34418ec86339203198beceb2ae7f1ffefedb",
    "257fa566ed9bc0767d3e63e92b5e966829fa3347d320a32055dc31ee7d33f8a4",
    "28b151069f41abc121baa6d2eaa8f9e4c4d8326ddbefee2bd9c0776b80ac6fad",
    "d5d94bb25bdc024f649213593027d861042ee807cafd94b49b54f1663f8f267d",
    "c09129f064c08ecb07ea3689a2247dcc177de6837e7d2f5f946e30453abbccef",
    "90807800a1c3b248a452e1732c45ee5099f38b737356f5542c0584ec9c3ebb45",
    "2a1a494630e71bc026dd5c0eab4c1b9a5dbc656228c1f0d48f5dbd3909b161d3",
    "41509f380362a8d14401c5ae92073154922fe23e45459ce6f696f58607655db7",
    "d0148475717a2ba269784a178cb0ab617bc77f16c58d4a3cbdfe785b591c7034",
    "d1a1655b4366a766d1578beb257849a92bf91cb1358c1a2c37ab180c5d3a204d",
    "54ef75911da76d7a6b7ea341998aaf66cb06c679c53e0a88a4fe070dd3add963",
    "486e044cf98704e07f41137d2b89698dc03d1fbf34d13b60902fea19a6013b4b",
    "1ee9b4396db3e4e2516ac5016626ab6ba967f091d5d23afbdb7df122a0bb9d0c",
    "748e48b9b6d06f9c82d26bf551d0af43ee2e801e4be56d7ccb20312e267fd1d6",
    "f94fa4afa2f5147680f907d4dd96a8826206c26bd3328cd379feaed614b234de",
    "dec49a69893fbcd66cd06296b2d936a6aceb431c130b2e52675fe4274b504f57",
    "b198a51d48b88181508d8e4ea9dea39db285e4585663b29b7e4ded0c22a94875",
)
PUBLISHED: Mapping[int, Digest] = MappingProxyType(
    {
        logrows: Digest(f"{FILE}:{digits}")
        for logrows, digits in enumerate(_PERPETUAL_SHA256, start=1)
    }
)
"""Digests of the files of the perpetual powers of tau as ezkl publishes them."""


def verifier_digest(verifier: bytes) -> Digest:
    """Return the digest by which manifests and trust files name a string.

    Args:
        verifier: The verifier's part.
    """
    return Digest(f"{VERIFIER}:{hashlib.sha256(verifier).hexdigest()}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SrsRecord:
    """Which structured reference string a set-up was made with.

    Attributes:
        source: ``PERPETUAL`` or ``LOCAL``.
        unsafe: Whether this or another machine has known its secret.
        verifier: The verifier's part.
        files: Digest of the file of each number of rows used, by its logarithm.
    """

    source: str
    unsafe: bool
    verifier: bytes
    files: Mapping[int, Digest]

    def __post_init__(self) -> None:
        if self.source not in (PERPETUAL, LOCAL):
            raise MalformedInputError(
                f"srs source: got {self.source!r:.60}, want {PERPETUAL} or {LOCAL}"
            )
        if self.unsafe is not (self.source == LOCAL):
            raise MalformedInputError(
                f"srs unsafe: got {self.unsafe}, of a string from {self.source}"
            )
        if len(self.verifier) != VERIFIER_BYTES:
            raise MalformedInputError(
                f"srs verifier: got {len(self.verifier)} bytes, want {VERIFIER_BYTES}"
            )
        if not self.files:
            raise MalformedInputError("srs files: want at least one")
        for logrows, digest in self.files.items():
            if self.source == PERPETUAL and PUBLISHED.get(logrows) != digest:
                raise MalformedInputError(
                    f"srs file of {logrows}: got {digest:.100}, which is not of the "
                    "perpetual powers of tau"
                )

    @property
    def digest(self) -> Digest:
        """By which trust files name it."""
        return verifier_digest(self.verifier)

    def to_json(self) -> dict[str, Any]:
        """Return the document of a manifest."""
        return {
            "source": self.source,
            "unsafe": self.unsafe,
            "verifier": base64.b64encode(self.verifier).decode(),
            "files": {str(logrows): self.files[logrows] for logrows in self.files},
        }

    @classmethod
    def from_json(cls, document: object, *, what: str = "srs") -> SrsRecord:
        """Parse a manifest's.

        Raises:
            MalformedInputError: A field missing, unknown or of another form; a string
                of this machine that is not called unsafe; a digest that is not
                published, of one that is said to be.
        """
        names = ("source", "unsafe", "verifier", "files")
        got = require_fields(document, names, what=what)
        files = got["files"]
        if not isinstance(got["unsafe"], bool) or not isinstance(files, dict):
            raise MalformedInputError(
                f"{what}: want unsafe true or false, and files an object"
            )
        if not isinstance(got["source"], str) or len(files) > MAX_LOGROWS:
            raise MalformedInputError(f"{what}: want a source, and files by logrows")
        return cls(
            source=got["source"],
            unsafe=got["unsafe"],
            verifier=decode_base64(
                got["verifier"], what=f"{what} verifier", max_bytes=VERIFIER_BYTES
            ),
            files={
                _logrows(text, what): file_digest(digest, f"{what} file")
                for text, digest in files.items()
            },
        )


def _logrows(text: str, what: str) -> int:
    # A spelling of each number only: these are keys of an object.
    if text not in _SPELLINGS:
        raise MalformedInputError(
            f"{what} files: got {text!r:.40}, want 1 to {MAX_LOGROWS}"
        )
    return int(text)


_SPELLINGS = frozenset(map(str, range(1, MAX_LOGROWS + 1)))


def file_bytes(logrows: int) -> int:
    """Return how large a file of 2**logrows rows is."""
    return _HEADER_BYTES + (2 * _POINT_BYTES << logrows) + _TAIL_BYTES


def read_logrows(path: Path) -> int:
    """Return the logarithm of a file's rows; its size must fit.

    Raises:
        ConfigurationError: It cannot be read.
        MalformedInputError: It is no structured reference string, or cut.
    """
    with _opened(path) as stream:
        return _read_logrows(stream, path.name)


def verifier_part(source: bytes | Path) -> bytes:
    """Return what verifiers need of a structured reference string: 320 bytes.

    Args:
        source: The whole file, or where it is.

    Raises:
        ConfigurationError: It cannot be read.
        MalformedInputError: It is no structured reference string, or cut.
    """
    if isinstance(source, bytes):
        logrows = _require_size(source[:_HEADER_BYTES], len(source), "srs")
        g1 = source[_HEADER_BYTES : _HEADER_BYTES + _POINT_BYTES]
        return g1 + source[file_bytes(logrows) - _TAIL_BYTES :]
    with _opened(source) as stream:
        _read_logrows(stream, source.name)
        g1 = stream.read(_POINT_BYTES)
        stream.seek(-_TAIL_BYTES, os.SEEK_END)
        part = g1 + stream.read(_TAIL_BYTES)
    if len(part) != VERIFIER_BYTES:
        raise MalformedInputError(f"{source.name}: changed while it was read")
    return part


def digest_large_file(path: Path) -> Digest:
    """Return the digest of a file that need not fit into memory.

    Raises:
        ConfigurationError: It cannot be read.
    """
    with _opened(path) as stream:
        hashed = hashlib.file_digest(stream, "sha256")
    return Digest(f"{FILE}:{hashed.hexdigest()}")


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigurationError(
            f"srs {path}: cannot be read: {error.strerror}"
        ) from error


def _read_logrows(stream: BinaryIO, what: str) -> int:
    size = os.fstat(stream.fileno()).st_size
    return _require_size(stream.read(_HEADER_BYTES), size, what)


def _require_size(header: bytes, size: int, what: str) -> int:
    logrows = int.from_bytes(header, "little")
    if len(header) != _HEADER_BYTES or not 1 <= logrows <= MAX_LOGROWS:
        raise MalformedInputError(
            f"{what}: is no structured reference string of 2**1 to 2**{MAX_LOGROWS} "
            "rows"
        )
    if size != file_bytes(logrows):
        raise MalformedInputError(
            f"{what}: got {size} bytes, want {file_bytes(logrows)} for 2**{logrows} "
            "rows"
        )
    return logrows
