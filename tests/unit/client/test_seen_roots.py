"""Which roots an auditor has signed, over its restarts."""

from __future__ import annotations

import stat
from contextlib import closing
from pathlib import Path

import pytest

from bentoml_secure.client.auditing import SeenRoots
from bentoml_secure.digest import Digest
from bentoml_secure.errors import ConfigurationError, VerificationError
from bentoml_secure.receipts.epoch_root import EpochAuditor
from bentoml_secure.testing.epochs import auditor_key, challenging_deployment, gather
from tests import proven_case

ROOT = Digest("sha256-jcs-v1:" + "11" * 32)
PLACE = "sha256:" + "22" * 32, "sha256-jcs-v1:" + "33" * 32, 7


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "seen.jsonl"


def test_what_was_signed_is_known_after_a_restart(path: Path) -> None:
    with closing(SeenRoots(path)) as seen:
        seen[PLACE] = ROOT
    with closing(SeenRoots(path)) as seen:
        assert dict(seen) == {PLACE: ROOT}
        with pytest.raises(ConfigurationError, match="stays signed"):
            del seen[PLACE]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_second_root_is_signed_after_a_restart(path: Path) -> None:
    first, second = (
        gather(challenging_deployment(rate=1.0, set_up=proven_case.set_up()), labels)
        for labels in (["a"], ["b"])
    )
    entry = first.drafts[0].deployment.entry.signing.public
    for gathered, refused in ((first, False), (second, True), (first, True)):
        with closing(SeenRoots(path)) as seen:
            auditor = EpochAuditor(
                auditor_key("one"), draw=lambda: bytes(32), seen=seen
            )
            if refused:
                with pytest.raises(VerificationError, match="want no root after"):
                    auditor.answer(gathered.root, entry)
            else:
                auditor.answer(gathered.root, entry)


def test_a_line_cut_short_was_never_signed(path: Path) -> None:
    with closing(SeenRoots(path)) as seen:
        seen[PLACE] = ROOT
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    with closing(SeenRoots(path)) as seen:
        assert len(seen) == 1
        seen[(*PLACE[:2], 8)] = ROOT
    with closing(SeenRoots(path)) as seen:
        assert [number for _, _, number in seen] == [7, 8]


@pytest.mark.parametrize(
    "line", [b"{}", b"[1]", b'["a","b",-1,"c"]', b'["a","b",1,"c"]', b"\xff"]
)
def test_other_files_are_refused(path: Path, line: bytes) -> None:
    path.write_bytes(line + b"\n")
    with pytest.raises(ConfigurationError, match="Name the file of this auditor"):
        SeenRoots(path)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        SeenRoots(tmp_path / "none" / "seen")
