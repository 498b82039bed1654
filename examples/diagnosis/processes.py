"""A ``bentoml serve`` of the demo: started, found ready, hurt, and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

READY_SECONDS = 120.0
STOP_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running deployment.

    Attributes:
        url: Of the entry.
        process: The supervisor; every service is a process below it.
    """

    url: str
    process: psutil.Process

    def worker(self, service: str) -> psutil.Process | None:
        """Return the process of one service, if it runs now."""
        for child in self.process.children(recursive=True):
            with suppress(psutil.Error):
                words = child.cmdline()
                if "--service-name" in words and service in words:
                    return child
        return None

    def metrics(self) -> str:
        """Return the entry's Prometheus text: of all processes on this host."""
        return httpx.get(f"{self.url}/metrics", timeout=10).text

    def is_ready(self) -> bool:
        """Tell whether a quorum of every segment is attested and answers."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=3).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def serve(
    target: str, *, project: Path, environment: Mapping[str, str], log: Path
) -> Iterator[Served]:
    """Run ``bentoml serve`` on a free port of this machine until the context ends.

    Args:
        target: ``module:Class``.
        project: The working folder.
        environment: Added to this process's.
        log: Gets all that it prints.

    Raises:
        RuntimeError: It ended, or was not ready in time.
    """
    port = _free_port()
    command = [sys.executable, "-m", "bentoml", "serve", target]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=project,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own: the end of the demo ends every worker.
            start_new_session=True,
        )
    try:
        served = Served(
            url=f"http://127.0.0.1:{port}", process=psutil.Process(process.pid)
        )
        _wait_until_ready(served, process, log)
        yield served
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(
    served: Served, process: subprocess.Popen[bytes], log: Path
) -> None:
    ends = time.monotonic() + READY_SECONDS
    while not served.is_ready():
        if process.poll() is not None:
            raise RuntimeError(f"the service ended; see {log}")
        if time.monotonic() > ends:
            raise RuntimeError(f"not ready in {READY_SECONDS:.0f} s; see {log}")
        time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
