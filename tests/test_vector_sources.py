"""The list of evidence is true, and fetching keeps only what it lists."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tests import evidence_vectors
from tests.vectors.fetch import (
    FetchError,
    Source,
    download,
    fetch,
    fetch_all,
    read_sources,
)

SOURCES = read_sources()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_listed_digest_is_the_file_s(source: Source) -> None:
    assert source.fits(evidence_vectors.vector(source.name))


def test_every_vector_that_is_there_is_listed() -> None:
    place = evidence_vectors.folder()
    if place is None:
        pytest.skip("no vectors: run `make vectors`")
    there = {
        path.relative_to(place).as_posix()
        for path in place.rglob("*")
        if path.is_file() and not path.name.startswith(("SOURCES", "."))
    }
    assert there <= {source.name for source in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_source_is_pinned_to_a_commit(source: Source) -> None:
    assert source.licence in {"MIT", "Apache-2.0"}
    if source.path is not None:
        assert re.fullmatch(r"[0-9a-f]{12}|[0-9a-f]{40}", source.commit)
        assert source.url.startswith("https://github.com/")


@pytest.fixture
def small() -> Source:
    return dataclasses.replace(
        SOURCES[0],
        name="folder/small",
        size=3,
        # Of b"abc", FIPS 180-2.
        sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    )


def test_the_file_listed_is_kept(small: Source, tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    def get(url: str, size: int) -> bytes:
        asked.append((url, size))
        return b"abc"

    fetch(small, tmp_path, get)
    assert (tmp_path / "folder" / "small").read_bytes() == b"abc"
    assert asked == [(small.url, 3)]
    assert small.is_in(tmp_path)


@pytest.mark.parametrize("data", [b"", b"abd", b"abcd", b"ab"])
def test_another_file_is_refused_and_not_kept(
    small: Source, tmp_path: Path, data: bytes
) -> None:
    with pytest.raises(FetchError, match="want 3 bytes"):
        fetch(small, tmp_path, lambda url, size: data)
    assert list(tmp_path.rglob("*")) == []


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    asked = []

    def get(url: str, size: int) -> bytes:
        asked.append(url)
        raise FetchError(f"{url}: no network")

    troubles = fetch_all(tmp_path, get)
    assert len(troubles) == len(asked) == sum(s.path is not None for s in SOURCES)
    source = next(source for source in SOURCES if source.path is not None)
    path = tmp_path / source.name
    path.parent.mkdir(parents=True)
    path.write_bytes(evidence_vectors.vector(source.name))
    asked.clear()
    fetch_all(tmp_path, get)
    assert source.url not in asked


def test_no_network_is_said() -> None:
    with pytest.raises(FetchError, match="cannot be fetched"):
        # Port 9 of this machine: nothing listens there.
        download("https://127.0.0.1:9/file", 3)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('name = "../out"', "within the folder"),
        ('name = "/out"', "within the folder"),
        ("bytes = 0", "want 1 to"),
        ("bytes = 99999999", "want 1 to"),
        ('sha256 = "00"', "SHA-256"),
    ],
)
def test_a_list_that_is_wrong_is_refused(tmp_path: Path, line: str, match: str) -> None:
    values = {
        "name": '"a"',
        "repository": '"o/r"',
        "licence": '"MIT"',
        "commit": f'"{"0" * 40}"',
        "path": '"a"',
        "bytes": "1",
        "sha256": f'"{"0" * 64}"',
    }
    key, _, value = line.partition(" = ")
    text = "\n".join(f"{k} = {v}" for k, v in {**values, key: value}.items())
    path = tmp_path / "SOURCES.toml"
    path.write_text(f"[[file]]\n{text}\n")
    with pytest.raises(FetchError, match=match):
        read_sources(path)
    path.write_text(
        "[[file]]\n{0}\n[[file]]\n{0}\n".format(
            "\n".join(f"{k} = {v}" for k, v in values.items())
        )
    )
    with pytest.raises(FetchError, match="twice"):
        read_sources(path)
