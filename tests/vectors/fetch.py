"""Fetch the evidence that ``SOURCES.toml`` lists: ``python -m tests.vectors.fetch``.

Each file comes from its repository at the commit named, and is kept only if it has
the size and the SHA-256 digest named. Files that are there already are left alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath

HERE = Path(__file__).parent
SOURCES = HERE / "SOURCES.toml"
FILES = HERE / "files"
TIMEOUT_SECONDS = 30
MAX_BYTES = 1 << 20

Download = Callable[[str, int], bytes]
"""From an address and a size to at most that many bytes and one more."""


class FetchError(Exception):
    """A file that cannot be had, or is not the one that is listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file and where it comes from; ``path`` is None where it is not fetched."""

    name: str
    repository: str
    commit: str
    path: str | None
    size: int
    sha256: str
    licence: str

    @property
    def url(self) -> str:
        return f"https://github.com/{self.repository}/raw/{self.commit}/{self.path}"

    def is_in(self, folder: Path) -> bool:
        path = folder / self.name
        return path.is_file() and self.fits(path.read_bytes())

    def fits(self, data: bytes) -> bool:
        return (
            len(data) == self.size and hashlib.sha256(data).hexdigest() == self.sha256
        )


def read_sources(path: Path = SOURCES) -> list[Source]:
    """Return what is listed, each name once and within the folder."""
    sources = [_source(entry) for entry in tomllib.loads(path.read_text())["file"]]
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise FetchError(f"{path}: a name stands there twice")
    return sources


def _source(entry: dict[str, object]) -> Source:
    name, size = str(entry["name"]), entry["bytes"]
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise FetchError(f"{name}: not a path within the folder")
    if not isinstance(size, int) or not 0 < size <= MAX_BYTES:
        raise FetchError(f"{name}: {size} bytes, want 1 to {MAX_BYTES}")
    if not re.fullmatch(r"[0-9a-f]{64}", str(entry["sha256"])):
        raise FetchError(f"{name}: want a SHA-256 digest in hex")
    fetched = "not_fetched" not in entry
    return Source(
        name=name,
        repository=str(entry["repository"]),
        commit=str(entry["commit"]) if fetched else "",
        path=str(entry["path"]) if fetched else None,
        size=size,
        sha256=str(entry["sha256"]),
        licence=str(entry["licence"]),
    )


def download(url: str, size: int) -> bytes:
    try:
        # The address is https, and what comes must have the digest listed.
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            data: bytes = answer.read(size + 1)
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise FetchError(f"{url}: cannot be fetched: {error}") from error
    return data


def fetch(source: Source, folder: Path, get: Download = download) -> None:
    """Put a file into the folder, whole or not at all.

    Raises:
        FetchError: It cannot be had, or differs from the one listed.
    """
    data = get(source.url, source.size)
    if not source.fits(data):
        raise FetchError(
            f"{source.url}: got {len(data)} bytes with SHA-256"
            f" {hashlib.sha256(data).hexdigest()}, want {source.size} bytes with"
            f" {source.sha256}"
        )
    path = folder / source.name
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def fetch_all(folder: Path, get: Download = download) -> list[str]:
    """Fetch what is missing; return what went wrong, a line each."""
    troubles = []
    for source in read_sources():
        if source.path is None or source.is_in(folder):
            continue
        try:
            fetch(source, folder, get)
        except FetchError as error:
            troubles.append(str(error))
    return troubles


def main() -> int:
    troubles = fetch_all(FILES)
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    there = sum(source.is_in(FILES) for source in read_sources())
    print(f"{there} of {len(read_sources())} files in {FILES}")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
