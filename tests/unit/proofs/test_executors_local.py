"""Attempts on this machine: their children end with them."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path

import psutil
import pytest

from bentoml_secure.proofs.backends.ezkl import Ezkl
from bentoml_secure.proofs.backends.one_shot import Children
from bentoml_secure.proofs.executors.local import Local
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.proofs.owner import is_known_dead, own_name
from bentoml_secure.proofs.proof import Limits
from bentoml_secure.proofs.work import Event, Executed, Failed, Payload, Told

PAYLOAD = Payload(key=JobKey("0" * 32, 0, 0), order=b"o", link=None, memory_bytes=1)
LIMITS = Limits(memory_bytes=4 << 30, seconds=100)


class NativeWork:
    """Runs native code for longer than any test waits."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "srs"
        self.file.touch()
        self.begin = threading.Event()

    def work(self, payload: Payload, executed: Told) -> bytes:
        executed(None)
        self.begin.wait(20)
        Ezkl().generate_srs(22, self.file, LIMITS)
        return b"never"


def children() -> list[psutil.Process]:
    return [
        each
        for each in psutil.Process().children()
        if "bentoml_secure.proofs.backends.ezkl_child" in each.cmdline()
    ]


@pytest.mark.parametrize("when", ["running", "before it starts"])
def test_ending_an_attempt_kills_its_child(tmp_path: Path, when: str) -> None:
    work, told = NativeWork(tmp_path), queue.SimpleQueue[Event]()
    end = Local(work).start(PAYLOAD, told.put)
    assert told.get(timeout=10) == Executed(None)
    if when == "running":
        work.begin.set()
        while not children():
            time.sleep(0.02)
        time.sleep(0.5)
    started = time.monotonic()
    end()
    work.begin.set()
    last = told.get(timeout=20)
    assert isinstance(last, Failed)
    assert last.retry
    assert "SIGKILL" in last.reason
    assert time.monotonic() - started < 10
    assert children() == []


def test_a_thread_knows_only_its_own_children(tmp_path: Path) -> None:
    path = tmp_path / "srs"
    path.touch()
    others = Children()
    with Children().of_this_thread():
        others.kill()
        Ezkl().generate_srs(4, path, LIMITS)
    assert path.stat().st_size > 0


def test_owners_that_cannot_be_seen_are_not_known_dead() -> None:
    place, process, started = own_name().rsplit("/", 2)
    assert not is_known_dead(own_name())
    assert is_known_dead(f"{place}/{process}/1")
    assert is_known_dead(f"{place}/4194304/{started}")
    for name in (f"other/{process}/1", "", "/", "a/b/c", f"{place}/x/{started}"):
        assert not is_known_dead(name)
