"""Tests in forked processes: once as things are, once for each check without it."""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.disabling import EVERYWHERE, Key, watch
from tests.mutation.groups import ROOT, Group, calls_in

_OPTIONS = ("-q", "-p", "no:randomly", "-p", "no:cacheprovider")
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of disabling a check: the first test that failed, or why none did."""

    name: str
    noticed_by: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a group; ``trouble`` where its tests do not even run."""

    group: Group
    results: tuple[Result, ...] = ()
    passed: int = 0
    skipped: int = 0
    trouble: str = ""

    @property
    def exit_code(self) -> int:
        if self.trouble:
            return 2
        return 0 if all(result.noticed_by for result in self.results) else 1


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run of tests sends back."""

    code: int
    passed: int
    skipped: int
    failed: tuple[str, ...]
    reached: frozenset[Key]
    refused: dict[Key, set[str]]


class Recorder:
    """A plugin of pytest: says which test runs, runs only some, counts outcomes."""

    def __init__(self, only: frozenset[str] | None) -> None:
        self._only = only
        self.passed = 0
        self.skipped = 0
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._only is not None:
            items[:] = [item for item in items if item.nodeid in self._only]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        watch.test = item.nodeid
        try:
            return (yield)
        finally:
            watch.test = EVERYWHERE

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.skipped:
            self.skipped += 1
        elif report.when == "call":
            self.passed += 1


def run_tests(tests: Sequence[Path], only: frozenset[str] | None) -> Ran:
    """Run tests in this process, quietly, up to the first failure."""
    recorder = Recorder(only)
    code = pytest.main([*_OPTIONS, "-x", *map(str, tests)], plugins=[recorder])
    return Ran(
        code=int(code),
        passed=recorder.passed,
        skipped=recorder.skipped,
        failed=tuple(recorder.failed),
        reached=frozenset(watch.reached),
        refused=watch.refused,
    )


def _in_child(answer: Connection, task: Callable[[], Ran], log: Path) -> None:
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        answer.send(task())


def _run_all(
    tasks: Sequence[Callable[[], Ran]], jobs: int, folder: Path
) -> list[Ran | None]:
    """Run each task in a process of its own; None for one that died."""
    answers: list[Ran | None] = [None] * len(tasks)
    waiting = list(enumerate(tasks))
    running: dict[Connection, tuple[int, Any]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            index, task = waiting.pop(0)
            here, there = _fork.Pipe(duplex=False)
            log = folder / f"{index}.log"
            child = _fork.Process(target=_in_child, args=(there, task, log))
            child.start()
            there.close()
            running[here] = (index, child)
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            index, child = running.pop(ready)
            try:
                answers[index] = ready.recv()
            except EOFError:
                answers[index] = None
            ready.close()
            child.join()
    return answers


def examine(group: Group, *, jobs: int, each_call: bool, folder: Path) -> Verdict:
    """Disable each check of a group in turn and run the tests that it concerns.

    Args:
        group: Whose checks, whose tests.
        jobs: Processes at a time.
        each_call: Disable calls with one name one by one.
        folder: For what the tests print.
    """
    if not group.tests:
        return Verdict(group, trouble="no tests are named after it")
    watch.files = frozenset(str(path) for path in group.sources)
    watch.each_call = each_call
    results: dict[Key, Result] = {}
    passed = skipped = 0
    for tests in filter(None, (group.tests, group.more)):
        _warm(group.sources, tests)
        (plain,) = _run_all([partial(run_tests, tests, None)], 1, folder)
        if plain is None or plain.code != 0:
            return Verdict(group, trouble=_trouble(plain, folder))
        passed, skipped = passed + plain.passed, skipped + plain.skipped
        left = [
            key
            for key in plain.reached | _spelled_keys(group) | results.keys()
            if key not in results or not results[key].noticed_by
        ]
        results |= _disable_each(left, plain, tests, jobs, folder)
        if all(result.noticed_by for result in results.values()):
            break
    ordered = tuple(result for _, result in sorted(results.items()))
    return Verdict(group, ordered, passed, skipped)


def _disable_each(
    keys: Sequence[Key], plain: Ran, tests: Sequence[Path], jobs: int, folder: Path
) -> dict[Key, Result]:
    """Disable checks one by one where they refused; say of the others why not."""
    tasks = {
        key: partial(_without, key, tests, _concerned(plain.refused[key]))
        for key in keys
        if key in plain.refused
    }
    ran = _run_all(list(tasks.values()), jobs, folder)
    results = {key: _result(key, one) for key, one in zip(tasks, ran, strict=True)}
    for key in keys:
        if key not in results:
            remark = "never refuses" if key in plain.reached else "is never made"
            name = " ".join(key).strip()
            results[key] = Result(name, "", f"{remark} in these tests")
    return results


def _warm(sources: Sequence[Path], tests: Sequence[Path]) -> None:
    """Import sources, tests and plugins before processes are forked: once for all."""
    for path in sources:
        if path.is_relative_to(ROOT):
            parts = path.relative_to(ROOT).with_suffix("").parts
            importlib.import_module(".".join(parts))
    # What goes wrong here goes wrong again, and is told, where the tests run.
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*_OPTIONS, "--collect-only", *map(str, tests)])


def _trouble(plain: Ran | None, folder: Path) -> str:
    why = plain.failed[0] if plain and plain.failed else ""
    why = why or (folder / "0.log").read_text(errors="replace")[-2000:]
    return f"its tests do not pass as they are: {why}"


def _spelled_keys(group: Group) -> set[Key]:
    """Return the checks whose names are spelled out in the group's files."""
    return {
        watch.key(call.name, str(call.path), call.line)
        for path in group.sources
        for call in calls_in(path)
        if call.name is not None
    }


def _concerned(tests: set[str]) -> frozenset[str] | None:
    """Return the tests in which a check refused; None for all, if it was elsewhere."""
    return None if EVERYWHERE in tests else frozenset(tests)


def _without(key: Key, tests: Sequence[Path], only: frozenset[str] | None) -> Ran:
    watch.disabled = key
    if only is not None:
        files = {Path(test.partition("::")[0]).name for test in only}
        tests = [path for path in tests if path.name in files]
    return run_tests(tests, only)


def _result(key: Key, ran: Ran | None) -> Result:
    name = " ".join(key).strip()
    if ran is None:
        return Result(name, "(the process died)")
    if ran.code == 0:
        return Result(name, "", f"{ran.passed} tests pass without it")
    return Result(name, ran.failed[0] if ran.failed else f"(exit code {ran.code})")
