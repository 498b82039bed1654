"""One task in a process of its own: bounded, killable, its files in memory.

Native provers hold the interpreter's lock for seconds, abort, and panic past every
``except Exception``. So each task gets a fresh process and nothing else of ours:

1. its files are memory files, inherited as descriptors: plaintext never reaches a disk
2. HOME and its cache are a private folder that ends with it
3. it limits its own memory before it imports anything, and is the first to go when the
   machine runs out of it
4. it dies with its parent
5. what it says comes over a pipe of its own, a JSON object per line, bounded
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    MissingDependencyError,
    ProofError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.proofs.owner import is_known_dead, own_name
from bentoml_secure.proofs.proof import Contents, Limits

MAX_LINE_BYTES = 256 << 20
_MAX_TOLD = 2000
_FOLDERS = "bsec-proof-"
_TICK_SECONDS = 0.05

# What a child may raise, by name.
_ERRORS: Mapping[str, type[SecureError]] = {
    "configuration": ConfigurationError,
    "malformed": MalformedInputError,
    "proof": ProofError,
    "unavailable": UnavailableError,
}

Event = dict[str, Any]


class Children:
    """The children that a thread starts, for another thread to end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._killed = False

    @contextlib.contextmanager
    def of_this_thread(self) -> Iterator[None]:
        """Collect what the block starts."""
        token = _CHILDREN.set(self)
        try:
            yield
        finally:
            _CHILDREN.reset(token)

    def add(self, child: subprocess.Popen[bytes]) -> None:
        """Know of one more; it is killed at once if the others were."""
        with self._lock:
            self._running.add(child)
            if self._killed:
                _kill(child)

    def remove(self, child: subprocess.Popen[bytes]) -> None:
        """Know that one has ended: its process id may be another's soon."""
        with self._lock:
            self._running.discard(child)

    def kill(self) -> None:
        """End those that run, and those that the thread will start."""
        with self._lock:
            self._killed = True
            for child in self._running:
                _kill(child)


_CHILDREN: ContextVar[Children | None] = ContextVar("children", default=None)


def remove_abandoned() -> None:
    """Remove the private folders of children whose parents were killed.

    Nothing in them is secret, but the tables that native code keeps there are large.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        owner = path.name.removeprefix(_FOLDERS).rpartition("-")[0].replace("_", "/")
        # Another one that starts now may be faster.
        with contextlib.suppress(FileNotFoundError):
            if is_known_dead(owner) and path.lstat().st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)


def _spelled(owner: str) -> str:
    return owner.replace("/", "_")


def memory_file(name: str, data: bytes = b"") -> int:
    """Return a descriptor of a new file in memory; whoever has it closes it."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def read_file(descriptor: int) -> bytes:
    """Return all of a memory file."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a child is to do.

    Attributes:
        module: Of the child, run as ``python -m``.
        name: Of the task, for the child and for errors.
        arguments: JSON-able.
        files: To read, by name.
        outputs: Names of files that the child writes.
        is_secret: What it works on must not be told: neither must its last words.
        missing: The extra that is to be installed where the child lacks a package.
        environment: Variables of the child, beside the few that every child has.
    """

    module: str
    name: str
    arguments: Mapping[str, Any]
    files: Mapping[str, Contents]
    outputs: Sequence[str] = ()
    is_secret: bool = False
    missing: str = "proofs"
    environment: Mapping[str, str] = field(default_factory=dict)


def run(
    task: Task, limits: Limits, said: Callable[[Event], None] = lambda event: None
) -> dict[str, bytes]:
    """Run a task to its end and return its outputs by name.

    Args:
        task: What to do.
        limits: Of its process.
        said: Called with each event but the last, while it runs.

    Raises:
        SecureError: What the child raised.
        UnavailableError: It was killed, timed out, or ended without a word.
    """
    with contextlib.ExitStack() as closing:
        paths, passed = dict[str, str](), list[int]()
        for name, contents in task.files.items():
            if isinstance(contents, Path):
                paths[name] = str(contents)
                continue
            if isinstance(contents, bytes):
                contents = memory_file(name, contents)
                closing.callback(os.close, contents)
            paths[name] = f"/proc/self/fd/{contents}"
            passed.append(contents)
        outputs = {name: memory_file(name) for name in task.outputs}
        for name, descriptor in outputs.items():
            closing.callback(os.close, descriptor)
            paths[name] = f"/proc/self/fd/{descriptor}"
            passed.append(descriptor)
        _run(task, limits, paths, passed, said)
        return {name: read_file(descriptor) for name, descriptor in outputs.items()}


def _run(
    task: Task,
    limits: Limits,
    paths: Mapping[str, str],
    passed: Sequence[int],
    said: Callable[[Event], None],
) -> None:
    document = {
        "task": task.name,
        "arguments": dict(task.arguments),
        "paths": dict(paths),
        "memory_bytes": limits.memory_bytes,
        "background": limits.background,
        "parent": os.getpid(),
    }
    with contextlib.ExitStack() as closing:
        folder = closing.enter_context(
            tempfile.TemporaryDirectory(prefix=f"{_FOLDERS}{_spelled(own_name())}-")
        )
        asked = memory_file("task", json.dumps(document).encode())
        closing.callback(os.close, asked)
        telling, told = os.pipe2(os.O_CLOEXEC)
        events = closing.enter_context(os.fdopen(telling, "rb", buffering=0))
        errors = closing.enter_context(tempfile.TemporaryFile())
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", task.module, str(asked), str(told)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**task.environment, **_environment(folder, limits.threads)},
                pass_fds=[*passed, asked, told],
                start_new_session=True,
            )
        finally:
            os.close(told)
        children = _CHILDREN.get()
        timer = threading.Timer(limits.seconds, _kill, [child])
        started = time.monotonic()
        try:
            if children is not None:
                children.add(child)
            timer.start()
            last = _listen(events, said)
            child.wait()
        finally:
            timer.cancel()
            if children is not None:
                children.remove(child)
            _kill(child)
            child.wait()
        if last is not None and "done" in last:
            return
        if last is not None and "error" in last:
            raise _error(task, last)
        ending = _ending(task, limits, child.returncode, time.monotonic() - started)
        errors.seek(0)
        # What native code says of a witness is not for logs and job stores.
        words = "" if task.is_secret else _tail(errors.read())
        raise UnavailableError(ending + words)


def _environment(folder: str, threads: int) -> dict[str, str]:
    # Nothing of ours: secrets of the service are in its environment.
    kept = {
        name: value
        for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG")
        if (value := os.environ.get(name)) is not None
    }
    return {
        **kept,
        "HOME": folder,
        "TMPDIR": folder,
        "EZKL_REPO_PATH": folder,
        "PYTHONDONTWRITEBYTECODE": "1",
        # Read when native code is first used.
        "RAYON_NUM_THREADS": str(threads),
        # No heap for each thread that only waits: a quarter fewer pages are touched.
        "MALLOC_ARENA_MAX": str(threads),
    }


def _listen(events: Any, said: Callable[[Event], None]) -> Event | None:
    """Hand on each event as it comes; return the last one, which ends the task."""
    for line in _lines(events):
        try:
            event = json.loads(line)
        except ValueError:
            return None
        if not isinstance(event, dict):
            return None
        if "done" in event or "error" in event:
            return event
        said(event)
    return None


def _lines(events: Any) -> Iterator[bytes]:
    held = bytearray()
    while piece := events.read(1 << 16):
        held += piece
        while (end := held.find(b"\n")) >= 0:
            yield bytes(held[:end])
            del held[: end + 1]
        if len(held) > MAX_LINE_BYTES:
            return


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    # Its session's: native code may have started others.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _error(task: Task, event: Event) -> SecureError:
    message = f"{task.name}: {str(event.get('message'))[:_MAX_TOLD]}"
    kind = event["error"]
    if kind == "missing":
        return MissingDependencyError(
            message, remedy=f"pip install 'bentoml-secure[{task.missing}]'"
        )
    return _ERRORS.get(kind, UnavailableError)(message)


def _ending(task: Task, limits: Limits, code: int, seconds: float) -> str:
    if seconds >= limits.seconds:
        return f"{task.name}: not done within {limits.seconds:g} s"
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return (
        f"{task.name}: ended by {name} after {seconds:.1f} s, with at most "
        f"{limits.memory_bytes >> 20} MiB"
    )


def _tail(errors: bytes) -> str:
    text = errors[-_MAX_TOLD:].decode("utf-8", "replace").strip()
    return f": {text}" if text else ""
