"""Structured reference strings: files, their digests, folders of them."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bentoml_secure.digest import digest_file_bytes
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    SecureError,
    VerificationError,
)
from bentoml_secure.proofs import srs_folder
from bentoml_secure.proofs.srs import (
    LOCAL,
    PERPETUAL,
    PUBLISHED,
    VERIFIER_BYTES,
    file_bytes,
    read_logrows,
    verifier_part,
)
from bentoml_secure.proofs.srs_folder import SrsFolder

# Small ones suffice for all but proofs.
FEW = 3


@pytest.fixture
def folder(tmp_path: Path) -> SrsFolder:
    return SrsFolder(tmp_path / "srs")


def test_the_published_table_names_every_size() -> None:
    assert list(PUBLISHED) == list(range(1, 27))
    assert len(set(PUBLISHED.values())) == 26


def test_the_verifiers_part_is_the_same_in_files_of_all_sizes(
    folder: SrsFolder,
) -> None:
    few, more = folder.generate(FEW), folder.generate(FEW + 1)
    part = verifier_part(few.path)
    assert part == verifier_part(more.path) == verifier_part(few.path.read_bytes())
    assert len(part) == VERIFIER_BYTES
    assert read_logrows(more.path) == FEW + 1
    record = folder.record([FEW, FEW + 1, FEW])
    assert record.verifier == part
    assert (record.source, record.unsafe) == (LOCAL, True)
    assert record.files == {FEW: few.digest, FEW + 1: more.digest}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "want 1284 for 2"),
        (lambda data: data + b"\0", "want 1284 for 2"),
        (lambda data: b"", "no structured reference string"),
        (lambda data: b"\x03\x00", "no structured reference string"),
        (lambda data: bytes(4) + data[4:], "no structured reference string"),
        (lambda data: b"\x1b\0\0\0" + data[4:], "no structured reference string"),
        (lambda data: b"\xff\xff\xff\xff" + data[4:], "no structured reference"),
    ],
)
def test_damaged_files_have_no_verifiers_part(
    folder: SrsFolder, damage: object, reason: str
) -> None:
    path = folder.generate(FEW).path
    assert callable(damage)
    data = damage(path.read_bytes())
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(MalformedInputError, match=reason):
            verifier_part(source)
    with pytest.raises(SecureError, match=reason):
        folder.require(FEW)


def test_a_file_of_this_machine_is_found_again_and_made_once(
    folder: SrsFolder,
) -> None:
    made = folder.generate(FEW)
    inode = made.path.stat().st_ino
    assert folder.generate(FEW) == made == folder.require(FEW)
    assert made.path.stat().st_ino == inode
    assert made.unsafe
    assert made.path.stat().st_size == file_bytes(FEW)
    assert [file.logrows for file in folder.files()] == [FEW]


def test_what_forges_proofs_is_the_owners_alone_to_read(folder: SrsFolder) -> None:
    made = folder.generate(FEW)
    record = folder.path / srs_folder.SRS_FILE
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o644


def test_a_file_lost_before_it_was_in_place_is_made_again(folder: SrsFolder) -> None:
    made = folder.generate(FEW)
    made.path.unlink()
    assert folder.generate(FEW) == made


def test_processes_that_generate_at_once_share_one_secret(folder: SrsFolder) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda logrows: SrsFolder(folder.path).generate(logrows), [2, 3, 4, 5]
            )
        )
    assert len(folder.record([2, 3, 4, 5]).files) == 4
    assert not [name for name in os.listdir(folder.path) if name.startswith(".")]


def test_a_changed_file_is_refused(folder: SrsFolder) -> None:
    path = folder.generate(FEW).path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for use in (folder.require, folder.generate):
        with pytest.raises(VerificationError, match="neither published nor"):
            use(FEW)
    with pytest.raises(VerificationError, match="neither published nor"):
        folder.record([FEW])


def test_a_file_under_the_name_of_another_size_is_refused(folder: SrsFolder) -> None:
    made = folder.generate(FEW)
    made.path.rename(folder.path / srs_folder.file_name(FEW + 1))
    with pytest.raises(VerificationError, match="is not of 2"):
        folder.require(FEW + 1)


def test_a_missing_file_says_how_to_get_it(folder: SrsFolder) -> None:
    with pytest.raises(ConfigurationError, match=r"no file of 2\*\*12 rows") as caught:
        folder.require(12)
    assert f"prove srs import FILE --folder {folder.path}" in caught.value.remedy


def test_unpublished_files_are_not_imported_and_stay(
    folder: SrsFolder, tmp_path: Path
) -> None:
    own = SrsFolder(tmp_path / "own").generate(FEW).path
    before = own.read_bytes()
    with pytest.raises(VerificationError, match="the published file of"):
        folder.import_file(own)
    assert own.read_bytes() == before
    assert os.listdir(folder.path) == []


def test_a_published_file_is_copied(
    folder: SrsFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SrsFolder(tmp_path / "ceremony").generate(FEW).path
    data = source.read_bytes()
    monkeypatch.setattr(
        srs_folder, "PUBLISHED", {**PUBLISHED, FEW: digest_file_bytes(data)}
    )
    imported = folder.import_file(source)
    assert imported.source == PERPETUAL
    assert not imported.unsafe
    assert imported.path.read_bytes() == source.read_bytes() == data
    assert folder.require(FEW) == imported == folder.import_file(source)
    with pytest.raises(ConfigurationError, match="there is another file"):
        folder.generate(FEW)


def test_strings_of_two_secrets_are_not_used_in_one_set_up(
    folder: SrsFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SrsFolder(tmp_path / "ceremony").generate(FEW).path
    digest = digest_file_bytes(source.read_bytes())
    monkeypatch.setattr(srs_folder, "PUBLISHED", {**PUBLISHED, FEW: digest})
    folder.import_file(source)
    folder.generate(FEW + 1)
    with pytest.raises(ConfigurationError, match="of 2 secrets, want one"):
        folder.record([FEW, FEW + 1])


def test_an_import_does_not_replace_what_is_there(
    folder: SrsFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = folder.generate(FEW)
    source = SrsFolder(tmp_path / "ceremony").generate(FEW).path
    digest = digest_file_bytes(source.read_bytes())
    monkeypatch.setattr(srs_folder, "PUBLISHED", {**PUBLISHED, FEW: digest})
    with pytest.raises(ConfigurationError, match="there is another file"):
        folder.import_file(source)
    assert folder.require(FEW) == mine


@pytest.mark.parametrize("logrows", [0, 21, 26])
def test_large_strings_are_not_generated(folder: SrsFolder, logrows: int) -> None:
    with pytest.raises(ConfigurationError, match="want 1 to 20"):
        folder.generate(logrows)
    assert not folder.files()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{}", "is missing"),
        (b"[" * 100, "srs.json"),
        (b" " * 70_000, "at most"),
    ],
)
def test_a_damaged_record_is_refused(
    folder: SrsFolder, record: bytes, reason: str
) -> None:
    folder.generate(FEW)
    (folder.path / srs_folder.SRS_FILE).write_bytes(record)
    with pytest.raises(MalformedInputError, match=reason):
        folder.require(FEW)


def test_an_edited_record_is_refused(folder: SrsFolder) -> None:
    folder.generate(FEW)
    record = folder.path / srs_folder.SRS_FILE
    record.write_bytes(record.read_bytes().replace(b'"unsafe":true', b'"unsafe":false'))
    with pytest.raises(MalformedInputError, match="is not what is written here"):
        folder.require(FEW)
