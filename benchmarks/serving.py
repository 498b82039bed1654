"""Starts one ``bentoml serve`` for a benchmark and stops it with all its workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 90.0


def free_port() -> int:
    """Return a TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A running service."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log

    def call(
        self,
        path: str,
        document: Any,
        *,
        timeout: float = 1200,
        scenario: str | None = None,
    ) -> Any:
        """Return the JSON answer to a JSON body, under a scenario or the minimum."""
        headers = {"content-type": "application/json"}
        if scenario is not None:
            headers["bsec-scenario"] = scenario
        request = urllib.request.Request(  # noqa: S310 - our own http URL
            f"{self.url}/{path}",
            json.dumps(document).encode(),
            headers,
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            log = self.log.read_text()[-3000:]
            raise SystemExit(f"{error}: {error.read()[:500]!r}\n{log}") from error


@contextlib.contextmanager
def serve(identifier: str, environment: Mapping[str, str]) -> Iterator[Server]:
    """Serve ``module:Service`` on loopback with a BENTOML_HOME of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        port = free_port()
        log = Path(home) / "serve.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "bentoml", "serve", identifier),
                    *("--host", "127.0.0.1", "--port", str(port)),
                ],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "BENTOML_DO_NOT_TRACK": "True",
                    "BENTOML_HOME": home,
                    **environment,
                },
            )
        try:
            server = Server(f"http://127.0.0.1:{port}", log)
            _wait_ready(server, process)
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


def _wait_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{server.url}/readyz", timeout=2):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit(f"not ready: {server.log.read_text()[-3000:]}")
