"""The secret behind an order key: from a prover key, or from a file of one's own."""

from __future__ import annotations

import logging
import multiprocessing
import os
from pathlib import Path

import pytest

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.keys.order_secret import order_secret, read_or_make_order_secret
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.proofs.sealing import OrderKey


def test_it_follows_from_the_prover_key() -> None:
    key = SegmentKey(bytes(range(32)))
    secret = order_secret(key)
    assert secret == order_secret(SegmentKey(bytes(range(32))))
    assert secret != order_secret(SegmentKey(bytes(32)))
    assert secret.hex() not in (key.reveal().hex(), key.key_id)
    assert OrderKey(secret).public == OrderKey(order_secret(key)).public


def test_a_file_is_made_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "order.key"
    with caplog.at_level(logging.WARNING, "bentoml_secure"):
        secret = read_or_make_order_secret(path)
    assert "whoever is root on this host can read" in caplog.text
    assert secret.hex() not in caplog.text
    assert len(secret) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_or_make_order_secret(path) == secret
    assert os.listdir(tmp_path) == ["order.key"]
    assert read_or_make_order_secret(tmp_path / "other.key") != secret


def _read(path: Path, gate: object, answers: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    answers.put(read_or_make_order_secret(path))  # type: ignore[attr-defined]


def test_processes_that_start_at_once_have_the_same(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(4), context.Queue()
    path = tmp_path / "order.key"
    started = [
        context.Process(target=_read, args=(path, gate, answers)) for _ in range(4)
    ]
    for process in started:
        process.start()
    secrets = {answers.get(timeout=60) for _ in started}
    for process in started:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert secrets == {read_or_make_order_secret(path)}
    assert os.listdir(tmp_path) == ["order.key"]


def test_who_comes_second_takes_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, link = tmp_path / "order.key", os.link
    first = bytes(32)

    def late(draft: Path, target: Path) -> None:
        path.write_text(first.hex())
        path.chmod(0o600)
        link(draft, target)

    monkeypatch.setattr(os, "link", late)
    assert read_or_make_order_secret(path) == first
    assert os.listdir(tmp_path) == ["order.key"]


def test_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(draft: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ConfigurationError, match="cannot be made: Operation not"):
        read_or_make_order_secret(tmp_path / "order.key")
    assert os.listdir(tmp_path) == []


def test_a_file_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "order.key"
    read_or_make_order_secret(path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="got mode 0640, want 0600"):
        read_or_make_order_secret(path)


@pytest.mark.parametrize("text", ["", "5e" * 31, "G" * 64, "5E" * 32, "5e" * 33])
def test_a_file_that_holds_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "order.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="want 64 lower-case hex") as caught:
        read_or_make_order_secret(path)
    assert not text or text not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be made"):
        read_or_make_order_secret(tmp_path / "none" / "order.key")
