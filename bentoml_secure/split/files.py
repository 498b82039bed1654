"""Reading a plan's files: inside the folder, once, and only the bytes that it names.

A file is opened part by part below the folder, so that nothing renamed or linked
meanwhile leads elsewhere; its size is bounded before it is read; and the digest is
taken over the bytes handed back, so a file swapped afterwards is not the one in use.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from bentoml_secure.digest import Digest, digest_file_bytes, equal
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)

MAX_PATH_CHARACTERS = 240

# Plain names only: what no file system, shell or archive reads as anything else.
_PATH = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*/)*[A-Za-z0-9_][A-Za-z0-9._-]*")


def require_path(path: object, *, what: str) -> str:
    """Return a path that can only mean a file below the plan's folder.

    Letters, digits, ``_ . -`` in parts that do not begin with a dot or dash, joined
    by single slashes: no root, no parent, no NUL, no drive, no backslash.

    Raises:
        MalformedInputError: Anything else.
    """
    if (
        not isinstance(path, str)
        or len(path) > MAX_PATH_CHARACTERS
        or not _PATH.fullmatch(path)
    ):
        raise MalformedInputError(
            f"{what}: got {path!r:.100}, want a plain path inside the folder"
        )
    return path


def read_file(folder: Path, path: str, digest: Digest, *, max_bytes: int) -> bytes:
    """Read one file of a plan once, and return the bytes that have its digest.

    Args:
        folder: The plan's folder.
        path: Of the file, as in the plan.
        digest: What its bytes must have.
        max_bytes: A larger file is refused before it is read.

    Raises:
        ConfigurationError: The file is missing or cannot be read.
        MalformedInputError: The path or the file's size is out of bounds.
        VerificationError: Another digest, a link out of the folder, not a file.
    """
    data = read_bytes(folder, path, max_bytes=max_bytes)
    require_digest(path, data, digest)
    return data


def require_digest(path: str, data: bytes, digest: Digest) -> None:
    """Refuse bytes of a file that do not have its digest.

    Raises:
        VerificationError: They have another.
    """
    got = digest_file_bytes(data)
    if not equal(got, digest):
        raise VerificationError(
            f"{path}: got {got}, want {digest}.",
            remedy="The file is not the one that the plan was made with.",
        )


def read_bytes(folder: Path, path: str, *, max_bytes: int) -> bytes:
    """Read one file below ``folder`` whose digest nobody knows yet.

    Raises:
        ConfigurationError: The file is missing or cannot be read.
        MalformedInputError: The path or the file's size is out of bounds.
        VerificationError: A link out of the folder, not a file.
    """
    require_path(path, what="file")
    descriptor = open_below(folder, path)
    try:
        state = os.fstat(descriptor)
        if state.st_size > max_bytes:
            raise MalformedInputError(
                f"{path}: got {state.st_size} bytes, want at most {max_bytes}"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(state.st_size + 1)
    except OSError as error:
        raise _unreadable(folder, path, error) from error
    finally:
        os.close(descriptor)
    if len(data) != state.st_size:
        raise VerificationError(f"{path}: changed while it was read")
    return data


def _unreadable(folder: Path, path: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"{path!r:.100}: cannot be read from {folder}: {error}")


def open_below(folder: Path, path: str) -> int:
    """Open a regular file below ``folder``, whatever is renamed or linked meanwhile.

    Args:
        folder: Where to look.
        path: Relative to it; one that leads elsewhere is refused.

    Returns:
        A file descriptor, the caller's to close.

    Raises:
        ConfigurationError: The file is missing or cannot be opened.
        VerificationError: It is outside the folder, or not a regular file.
    """
    try:
        descriptor = _descend(folder, path)
    except (OSError, ValueError) as error:
        raise _unreadable(folder, path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise VerificationError(f"{path}: is not a regular file")
    return descriptor


def _descend(folder: Path, path: str) -> int:
    """Open what ``path`` resolves to, part by part.

    Links inside the folder are followed (mounted volumes are made of them), by name:
    then each part of the resolved path is opened as what it is, never as a link.
    """
    root = os.path.realpath(folder)
    target = os.path.realpath(os.path.join(root, path), strict=True)
    if os.path.commonpath((root, target)) != root:
        raise VerificationError(f"{path}: leads out of the folder")
    *parents, name = os.path.relpath(target, root).split(os.sep)
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for parent in parents:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(parent, flags, dir_fd=here)
            os.close(here)
            here = below
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=here)
    finally:
        os.close(here)
