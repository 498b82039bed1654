"""A folder of structured reference strings, one file for each number of rows.

    kzg<k>.srs   of 2**k rows: imported, or generated here
    srs.json     there where files were generated: their digests, and the one secret
                 that they follow from; such files are unsafe

A file's digest is taken before every use: 16 MiB, the file of 2**17 rows, take 25 ms.
A larger file is never used for fewer rows: ezkl cuts it down at every call, for
minutes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from bentoml_secure.digest import (
    FILE,
    Digest,
    canonical_json,
    equal,
    parse_hex,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from bentoml_secure.proofs.field import FIELD_MODULUS
from bentoml_secure.proofs.manifest_fields import MAX_LOGROWS, file_digest, whole
from bentoml_secure.proofs.srs import (
    LOCAL,
    PERPETUAL,
    PUBLISHED,
    SrsRecord,
    digest_large_file,
    read_logrows,
    verifier_part,
)
from bentoml_secure.proofs.unsafe_srs import write_unsafe_srs

SRS_FILE = "srs.json"
VERSION = 1
_MAX_RECORD_BYTES = 64 * 1024
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SrsFile:
    """A file of the folder that may be used.

    Attributes:
        logrows: Logarithm of its rows.
        path: Where it is.
        digest: Of its bytes, taken just now.
        source: ``PERPETUAL`` or ``LOCAL``.
    """

    logrows: int
    path: Path
    digest: Digest
    source: str

    @property
    def unsafe(self) -> bool:
        """Whether its secret has been known to a machine."""
        return self.source == LOCAL


@dataclass(frozen=True, slots=True, kw_only=True)
class _Generated:
    """What srs.json says; the secret does not belong into any message."""

    secret: int = field(repr=False)
    files: Mapping[int, Digest]

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "version": VERSION,
                "source": LOCAL,
                "unsafe": True,
                "secret": self.secret.to_bytes(_SECRET_BYTES, "big").hex(),
                "files": {str(logrows): self.files[logrows] for logrows in self.files},
            }
        )


def file_name(logrows: int) -> str:
    """Return what the file of 2**logrows rows is called."""
    return f"kzg{logrows}.srs"


class SrsFolder:
    """The files of one folder; the module says how they lie there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def import_file(self, source: Path) -> SrsFile:
        """Copy a published file into the folder; the source stays as it is.

        Args:
            source: Of the perpetual powers of tau, of any number of rows.

        Raises:
            ConfigurationError: It cannot be read or written; the folder has another
                file of these rows.
            MalformedInputError: It is no structured reference string, or cut.
            VerificationError: Its digest is not the published one.
        """
        logrows = read_logrows(source)
        want = PUBLISHED[logrows]
        with self._locked(), self._new_file() as made:
            got = _copy(source, made)
            if not equal(got, want):
                raise VerificationError(
                    f"srs {source}: got {got}, want {want}, the published file of "
                    f"2**{logrows} rows.",
                    remedy="Fetch it anew; with any other its maker can forge proofs.",
                )
            target = self.path / file_name(logrows)
            if target.exists() and not equal(digest_large_file(target), want):
                raise ConfigurationError(
                    f"srs {target}: there is another file.",
                    remedy="Use another folder: strings of two secrets do not mix.",
                )
            _publish(made.name, target)
        return SrsFile(logrows=logrows, path=target, digest=want, source=PERPETUAL)

    def generate(self, logrows: int) -> SrsFile:
        """Make an unsafe file, of the same secret as others that were made here.

        Args:
            logrows: Logarithm of its rows.

        Raises:
            ConfigurationError: Too many rows; the folder cannot be written, or has
                another file of these rows.
            VerificationError: The file that was made here before has changed.
        """
        with self._locked():
            made = self._generated()
            target = self.path / file_name(logrows)
            if target.exists():
                if made is not None and logrows in made.files:
                    return self.require(logrows)
                raise ConfigurationError(f"srs {target}: there is another file.")
            secret = _new_secret() if made is None else made.secret
            with self._new_file() as stream:
                write_unsafe_srs(stream, logrows, secret)
                stream.flush()
                digest = digest_large_file(Path(stream.name))
                # First the record: a file that is not in it would be nobody's.
                self._write_generated(secret, logrows, digest, made)
                _publish(stream.name, target)
        return SrsFile(logrows=logrows, path=target, digest=digest, source=LOCAL)

    def require(self, logrows: int) -> SrsFile:
        """Return the file of just 2**logrows rows, if it is what it should be.

        Raises:
            ConfigurationError: There is none; the remedy says how to get it.
            MalformedInputError: It is no structured reference string, or cut.
            VerificationError: It is neither published nor generated here, or changed.
        """
        path = self.path / file_name(logrows)
        if not 1 <= logrows <= MAX_LOGROWS or not path.exists():
            raise ConfigurationError(
                f"srs: {self.path} has no file of 2**{logrows} rows.",
                remedy=f"Get the one of 2**{logrows} rows of the perpetual powers of "
                f"tau, then: bentoml-secure prove srs import FILE --folder {self.path}",
            )
        if read_logrows(path) != logrows:
            raise VerificationError(f"srs {path}: is not of 2**{logrows} rows")
        digest = digest_large_file(path)
        if equal(digest, PUBLISHED[logrows]):
            source = PERPETUAL
        else:
            made = self._generated()
            source = LOCAL
            if made is None or not equal(made.files.get(logrows, ""), digest):
                raise VerificationError(
                    f"srs {path}: got {digest}, which is neither published nor of a "
                    "file generated here.",
                    remedy="Remove it: with it, proofs can be forged.",
                )
        return SrsFile(logrows=logrows, path=path, digest=digest, source=source)

    def record(self, logrows: Collection[int]) -> SrsRecord:
        """Return which string a set-up uses that takes these numbers of rows.

        Raises:
            ConfigurationError: A file is missing; they are of several secrets.
            MalformedInputError: A file is no structured reference string, or cut.
            VerificationError: A file is neither published nor generated here.
        """
        files = [self.require(each) for each in sorted(set(logrows))]
        parts = {verifier_part(file.path) for file in files}
        sources = {file.source for file in files}
        if len(parts) != 1 or len(sources) != 1:
            raise ConfigurationError(
                f"srs: the files of {self.path} are of {len(parts)} secrets, want one.",
                remedy="One verifier's part must do for all: use a folder for each.",
            )
        return SrsRecord(
            source=sources.pop(),
            unsafe=files[0].unsafe,
            verifier=parts.pop(),
            files={file.logrows: file.digest for file in files},
        )

    def files(self) -> list[SrsFile]:
        """Return all that may be used, the smallest first.

        Raises:
            MalformedInputError: One is no structured reference string, or cut.
            VerificationError: One is neither published nor generated here.
        """
        return [
            self.require(logrows)
            for logrows in range(1, MAX_LOGROWS + 1)
            if (self.path / file_name(logrows)).exists()
        ]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from writing here meanwhile."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigurationError(
                f"srs folder {self.path}: {error.strerror}"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _new_file(self) -> Iterator[BinaryIO]:
        """Give a file of the folder to write; it is removed unless it is renamed."""
        try:
            # Readable to the owner only: srs.json holds a secret.
            descriptor, name = tempfile.mkstemp(dir=self.path, prefix=".srs-")
            os.close(descriptor)
            with _removed_unless_renamed(name), open(name, "wb") as stream:
                yield stream
        except OSError as error:
            raise ConfigurationError(
                f"srs folder {self.path}: cannot be written: {error.strerror}"
            ) from error

    def _generated(self) -> _Generated | None:
        path = self.path / SRS_FILE
        try:
            with path.open("rb") as stream:
                data = stream.read(_MAX_RECORD_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(
                f"{path}: cannot be read: {error.strerror}"
            ) from error
        return _parse_generated(data)

    def _write_generated(
        self, secret: int, logrows: int, digest: Digest, before: _Generated | None
    ) -> None:
        files = {} if before is None else dict(before.files)
        record = _Generated(secret=secret, files={**files, logrows: digest})
        with self._new_file() as stream:
            stream.write(record.to_bytes())
            stream.flush()
            os.replace(stream.name, self.path / SRS_FILE)


@contextlib.contextmanager
def _removed_unless_renamed(name: str) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _publish(name: str, target: Path) -> None:
    # Unlike srs.json, nothing in it is secret.
    os.chmod(name, 0o644)
    os.replace(name, target)


def _new_secret() -> int:
    return 2 + secrets.randbelow(FIELD_MODULUS - 2)


def _copy(source: Path, target: BinaryIO) -> Digest:
    hashed = hashlib.sha256()
    try:
        with source.open("rb") as stream:
            while piece := stream.read(1 << 20):
                hashed.update(piece)
                target.write(piece)
    except OSError as error:
        raise ConfigurationError(
            f"srs {source}: cannot be copied: {error.strerror}"
        ) from error
    target.flush()
    return Digest(f"{FILE}:{hashed.hexdigest()}")


def _parse_generated(data: bytes) -> _Generated:
    document = parse_json(data, what=SRS_FILE, max_bytes=_MAX_RECORD_BYTES)
    names = ("version", "source", "unsafe", "secret", "files")
    got = require_fields(document, names, what=SRS_FILE)
    whole(got["version"], f"{SRS_FILE} version", VERSION, VERSION)
    if not isinstance(got["files"], dict):
        raise MalformedInputError(f"{SRS_FILE} files: want an object")
    secret = parse_hex(got["secret"], what=f"{SRS_FILE} secret", length=_SECRET_BYTES)
    spelled = {str(logrows): logrows for logrows in range(1, MAX_LOGROWS + 1)}
    if not got["files"].keys() <= spelled.keys():
        raise MalformedInputError(f"{SRS_FILE} files: want 1 to {MAX_LOGROWS}")
    record = _Generated(
        secret=int.from_bytes(secret, "big"),
        files={
            spelled[text]: file_digest(digest, f"{SRS_FILE} file")
            for text, digest in got["files"].items()
        },
    )
    if record.to_bytes() != data:
        raise MalformedInputError(f"{SRS_FILE}: is not what is written here")
    return record
