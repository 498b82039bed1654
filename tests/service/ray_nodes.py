"""A real Ray cluster on loopback: a head without cores, and a node that works.

Also what its workers run: they import it by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from bentoml_secure.proofs.work import Payload, Told, Work
from tests.harness import free_port
from tests.service.farming import RealWork

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
NODE = "BENTOML_SECURE_TEST_NODE"
TOKEN = "RAY_AUTH_TOKEN"
WORKER = "proving"
MEMORY_BYTES = 2_000_000_000
STORE_BYTES = 80_000_000
START_SECONDS = 90


class Telling:
    """Work that tells where and when it ran; or the real one, beside that."""

    def __init__(self, context: Mapping[str, str]) -> None:
        self._folder = Path(context["folder"])
        self._seconds = float(context.get("seconds", "0"))
        self._real = RealWork(self._folder) if "real" in context else None

    def work(self, payload: Payload, executed: Told) -> bytes:
        began = time.time()
        note = {"pid": os.getpid(), "node": os.environ.get(NODE), "began": began}
        (self._folder / f"{payload.key.receipt_id}.{os.getpid()}").write_text(
            json.dumps(note)
        )
        if self._real is not None:
            return self._real.work(payload, executed)
        executed(b"link " + payload.order + (payload.link or b""))
        time.sleep(self._seconds)
        return json.dumps({**note, "ended": time.time()}).encode()


def open_work(context: Mapping[str, str]) -> Work:
    """Open the work of a worker."""
    return Telling(context)


@contextmanager
def cluster() -> Iterator[str]:
    """Run a cluster that asks for a token, which it sets here; yield its address."""
    address = f"127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    # Sockets have short names only, so not in pytest's folder.
    with (
        tempfile.TemporaryDirectory(
            prefix="bsec-ray-", ignore_cleanup_errors=True
        ) as folder,
        contextlib.ExitStack() as ending,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv(TOKEN, secrets.token_hex(32))
        head = ["--head", "--port", port, "--num-cpus", "0", "--temp-dir", folder]
        head += ["--include-dashboard=false"]
        ending.enter_context(_node("head", Path(folder), *head))
        resources = json.dumps({WORKER: 4})
        worker = ["--address", address, "--num-cpus", "2", "--resources", resources]
        ending.enter_context(_node("worker", Path(folder), *worker))
        yield address


@contextmanager
def _node(name: str, folder: Path, *arguments: str) -> Iterator[None]:
    # With --block, so that it is a child of ours: ``ray stop`` ends everyone's.
    command = [
        *(str(RAY), "start", "--block", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--memory", str(MEMORY_BYTES)),
        *("--object-store-memory", str(STORE_BYTES), *arguments),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), NODE: name}
    log = folder / f"{name}.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            command,
            stdout=written,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a node and what it has started, which is all of its session."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
