"""Endorsements from a folder: read, read again, kept, refused."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from bentoml_secure.attestation.endorsement_folder import (
    ENDORSEMENTS,
    MAX_BYTES,
    MAX_FILES,
    EndorsementFolder,
    endorsed,
)
from bentoml_secure.attestation.evidence import (
    MAX_ENDORSEMENTS,
    Evidence,
    EvidenceRecord,
)
from bentoml_secure.errors import ConfigurationError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "endorsements"
    made.mkdir()
    (made / "b.json").write_bytes(b"collateral")
    (made / "a.pem").write_bytes(b"certificate")
    return made


def test_files_in_the_order_of_their_names(folder: Path) -> None:
    (folder / "c.pem").write_bytes(b"certificate")
    (folder / ".hidden").write_bytes(b"half of one")
    (folder / "..data").mkdir()
    opened = EndorsementFolder(folder)
    assert opened.endorsements == (b"certificate", b"collateral")


def test_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EndorsementFolder.from_environment({}) is None
    assert EndorsementFolder.from_environment({ENDORSEMENTS: ""}) is None
    monkeypatch.chdir(folder.parent)
    opened = EndorsementFolder.from_environment({ENDORSEMENTS: folder.name})
    monkeypatch.chdir("/")
    assert opened is not None
    assert len(opened.endorsements) == 2


def test_links_to_files_are_followed(folder: Path) -> None:
    """As a volume of Kubernetes has them."""
    held = folder / "..data"
    held.mkdir()
    (held / "z.pem").write_bytes(b"linked")
    (folder / "z.pem").symlink_to(held / "z.pem")
    assert EndorsementFolder(folder).endorsements[-1] == b"linked"


class TestReadingAgain:
    def test_a_file_that_changed(self, folder: Path) -> None:
        opened = EndorsementFolder(folder)
        (folder / "b.json").write_bytes(b"fresher!!!")
        assert opened.endorsements == (b"certificate", b"fresher!!!")

    def test_a_file_that_was_put_in_its_place_with_an_old_time(
        self, folder: Path
    ) -> None:
        opened = EndorsementFolder(folder)
        before = (folder / "b.json").stat()
        (folder / ".new").write_bytes(b"fresher!!!")
        os.utime(folder / ".new", ns=(before.st_atime_ns, before.st_mtime_ns))
        (folder / ".new").replace(folder / "b.json")
        assert opened.endorsements == (b"certificate", b"fresher!!!")

    def test_files_that_came_and_went(self, folder: Path) -> None:
        opened = EndorsementFolder(folder)
        (folder / "c").write_bytes(b"more")
        assert len(opened.endorsements) == 3
        (folder / "a.pem").unlink()
        assert list(opened.endorsements) == [b"collateral", b"more"]

    def test_not_while_nothing_changes(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = EndorsementFolder(folder)
        (folder / "b.json").write_bytes(b"fresher!!!")
        assert opened.endorsements == (b"certificate", b"fresher!!!")
        monkeypatch.setattr(Path, "open", None)
        assert opened.endorsements == (b"certificate", b"fresher!!!")

    def test_what_no_longer_reads_keeps_what_did(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        opened = EndorsementFolder(folder)
        (folder / "b.json").write_bytes(b"")
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert opened.endorsements == (b"certificate", b"collateral")
        assert len(caplog.records) == 1
        assert "earlier endorsements are kept" in caplog.text
        assert "b.json is empty" in caplog.text
        (folder / "b.json").write_bytes(b"whole again")
        assert opened.endorsements == (b"certificate", b"whole again")
        (folder / "b.json").write_bytes(b"")
        with caplog.at_level(logging.WARNING):
            assert opened.endorsements[1] == b"whole again"
        assert len(caplog.records) == 2

    def test_a_folder_that_is_gone(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        opened = EndorsementFolder(folder)
        folder.rename(folder.parent / "elsewhere")
        with caplog.at_level(logging.WARNING):
            assert opened.endorsements == (b"certificate", b"collateral")
        assert "No such file" in caplog.text


class TestRefusedStarts:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"endorsements: .*No such file"):
            EndorsementFolder(tmp_path / "none")

    def test_a_file(self, folder: Path) -> None:
        with pytest.raises(ConfigurationError, match="Not a directory"):
            EndorsementFolder(folder / "a.pem")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="has no files"):
            EndorsementFolder(tmp_path)

    def test_too_many_files(self, folder: Path) -> None:
        for index in range(MAX_FILES - 2):
            (folder / f"{index}").write_bytes(b"one")
        EndorsementFolder(folder)
        (folder / "more").write_bytes(b"one")
        with pytest.raises(ConfigurationError, match="has more than 16 files"):
            EndorsementFolder(folder)

    def test_too_much_in_all(self, folder: Path) -> None:
        left = MAX_BYTES - len(b"certificate" + b"collateral")
        (folder / "c").write_bytes(bytes(left))
        EndorsementFolder(folder)
        (folder / "d").write_bytes(b"1")
        with pytest.raises(ConfigurationError, match=r"up to .*/d have more than"):
            EndorsementFolder(folder)

    def test_an_empty_file(self, folder: Path) -> None:
        (folder / "c").touch()
        with pytest.raises(ConfigurationError, match="/c is empty"):
            EndorsementFolder(folder)

    @pytest.mark.parametrize("kind", ["folder", "pipe"])
    def test_what_is_no_file(self, folder: Path, kind: str) -> None:
        if kind == "folder":
            (folder / "c").mkdir()
        else:
            os.mkfifo(folder / "c")
        with pytest.raises(ConfigurationError, match="/c is no file"):
            EndorsementFolder(folder)

    def test_a_link_to_nowhere(self, folder: Path) -> None:
        (folder / "c").symlink_to(folder / "none")
        with pytest.raises(ConfigurationError, match="/c: No such file"):
            EndorsementFolder(folder)

    def test_a_file_that_may_not_be_read(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(ConfigurationError, match=r"a\.pem cannot be read: Perm"):
            EndorsementFolder(folder)


class TestEndorsed:
    def record(self, *endorsements: bytes) -> EvidenceRecord:
        evidence = Evidence(kind="tdx", blob=b"quote")
        return EvidenceRecord(evidence=evidence, endorsements=endorsements)

    def test_own_come_first_and_each_once(self) -> None:
        record = self.record(b"theirs", b"both")
        joined = endorsed(record, (b"own", b"both"))
        assert joined.endorsements == (b"own", b"both", b"theirs")
        assert joined.digest == record.digest

    def test_none_of_ones_own(self) -> None:
        assert endorsed(self.record(b"theirs"), ()) == self.record(b"theirs")

    def test_no_more_than_a_record_holds(self) -> None:
        theirs = [bytes([index]) for index in range(MAX_ENDORSEMENTS)]
        joined = endorsed(self.record(*theirs), (b"own", b"another"))
        assert len(joined.endorsements) == MAX_ENDORSEMENTS
        assert joined.endorsements[:3] == (b"own", b"another", theirs[0])
        assert EvidenceRecord.from_json(joined.to_json()) == joined
