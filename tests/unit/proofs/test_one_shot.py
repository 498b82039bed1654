"""What a child process of one task may do, and what its parent makes of its end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.errors import ProofError, SecureError, UnavailableError
from bentoml_secure.proofs.backends.one_shot import Event, Task, run
from bentoml_secure.proofs.proof import Limits

LIMITS = Limits(memory_bytes=256 << 20, seconds=60)


def task(name: str, *, is_secret: bool = False, **arguments: Any) -> Task:
    files: Mapping[str, bytes] = {"in": b"witness"} if name == "copy" else {}
    return Task(
        module="tests.one_shot_child",
        name=name,
        arguments=arguments,
        files=files,
        outputs=("out",) if name == "copy" else (),
        is_secret=is_secret,
    )


def told(limits: Limits = LIMITS) -> Event:
    events: list[Event] = []
    run(task("tell"), limits, events.append)
    (event,) = events
    return event


def test_files_go_in_and_come_out() -> None:
    assert run(task("copy"), LIMITS) == {"out": b"witness"}


def test_a_child_is_bounded_and_knows_no_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_SECRET", "42")
    said = told()
    assert said["data"] == LIMITS.memory_bytes
    assert said["policy"] == os.SCHED_OTHER
    assert said["secrets"] == []
    assert said["session"] is True
    assert said["home"] != os.environ["HOME"]
    assert not Path(said["home"]).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(said["process"], 0)


def test_a_child_in_the_background_runs_where_nothing_else_does() -> None:
    groups: list[str] = []

    def look(event: Event) -> None:
        assert event["policy"] == os.SCHED_IDLE
        group = Path(f"/proc/{event['process']}/autogroup")
        groups.append(group.read_text() if group.exists() else "nice 19")

    limits = Limits(memory_bytes=256 << 20, seconds=60, background=True)
    run(task("tell", wait=0.2), limits, look)
    # Kernels that group by session would weigh it like the services' whole session.
    assert [group.split()[-2:] for group in groups] == [["nice", "19"]]


def test_several_may_begin_in_the_background_at_once() -> None:
    """The kernel takes the group's nice value from ordinary users at intervals."""
    limits = Limits(memory_bytes=256 << 20, seconds=60, background=True)
    assert {told(limits)["policy"] for _ in range(3)} == {os.SCHED_IDLE}


def test_memory_ends_at_the_limit() -> None:
    with pytest.raises(SecureError, match=r"grow: MemoryError"):
        run(task("grow"), LIMITS)


def test_time_ends_at_the_limit() -> None:
    limits = Limits(memory_bytes=256 << 20, seconds=1.5)
    with pytest.raises(UnavailableError, match=r"tell: not done within 1.5 s"):
        run(task("tell", wait=600), limits)


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("panic", UnavailableError, "fail: Panic: native code"),
        ("proof", ProofError, "fail: no such proof"),
        ("abort", UnavailableError, "fail: ended by SIGABRT after .*, with at most"),
        ("silence", UnavailableError, "fail: ended by exit code 0"),
        ("noise", UnavailableError, "fail: ended by"),
    ],
)
def test_every_end_is_told(how: str, kind: type[SecureError], words: str) -> None:
    with pytest.raises(kind, match=words):
        run(task("fail", how=how), LIMITS)


@pytest.mark.parametrize("is_secret", [True, False])
def test_last_words_are_told_where_they_are_no_secret(is_secret: bool) -> None:
    with pytest.raises(UnavailableError) as caught:
        run(task("fail", how="abort", is_secret=is_secret), LIMITS)
    assert ("the witness is 42" in str(caught.value)) is not is_secret
