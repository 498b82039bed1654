"""Where cheats are tried: a folder to serve the encoder from, and how it is served.

``serve_cheating`` is one ``bentoml serve``, with twelve replicas that can cheat.
``serve_mixed`` is every service alone, as on hosts of their own: that alone lets
replicas differ in the version of ONNX Runtime, each of an environment of its own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from bentoml_secure.attestation.dev_root import POLICY, create_dev_root
from bentoml_secure.cli import main as command_line
from bentoml_secure.split import Plan, load_plan
from examples.diagnosis.commands import printed
from examples.diagnosis.processes import serve
from examples.encoder.prepare import PLAN

ROOT = Path(__file__).resolve().parents[1]
SERVICE = "Encoder"
REPLICAS = 3
CHEATING = "examples.encoder.cheating:Encoder"
CHEATS_FOLDER = "ENCODER_CHEATS"
"""As that module has it, which cannot be imported before there is a plan."""
START_SECONDS = 180.0
STOP_SECONDS = 20.0
HOME = "home"
FORGETTING_SECONDS = 1.5
"""Within which a running entry follows its ledger, which it reads twice a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One replica of one segment."""

    segment: int
    replica: int

    @property
    def name(self) -> str:
        """Of the replica's service."""
        return f"{SERVICE}Segment{self.segment}Replica{self.replica}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A folder to serve from.

    Attributes:
        folder: Working folder of every process.
        plan: In its models.
        trust: The caller's trust file.
    """

    folder: Path
    plan: Plan
    trust: Path

    @property
    def models(self) -> Path:
        """Folder of the plan and its companions."""
        return self.folder / "models"

    @property
    def seats(self) -> tuple[Seat, ...]:
        """Every replica, from segment to segment first."""
        segments = range(len(self.plan.segments))
        return tuple(
            Seat(segment=segment, replica=replica)
            for replica in range(REPLICAS)
            for segment in segments
        )

    @contextmanager
    def cheating(self, seat: Seat, cheat: str) -> Iterator[None]:
        """Let one replica cheat until the end."""
        file = self.folder / "cheats" / seat.name
        # Whole or not at all: the replica may look at any time.
        written = file.with_suffix(".new")
        written.write_text(cheat)
        written.rename(file)
        try:
            yield
        finally:
            file.unlink()

    def forget(self) -> None:
        """Make every replica of ``serve_cheating`` a newcomer again.

        Eight dissents in a row end a replica's vote: who cheats over and over would be
        asked no more, and neither would those who took turns with it.
        """
        store = self.folder / HOME / "bentoml_secure" / "encoder.reputation.sqlite"
        code, output = printed("reputation", "reset", "--all", "--store", store)
        if code:
            raise RuntimeError(output)
        time.sleep(FORGETTING_SECONDS)

    def environment(self, home: str) -> dict[str, str]:
        """Return what a process's environment has beside this one's."""
        return {
            CHEATS_FOLDER: str(self.folder / "cheats"),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(self.folder / home),
            "BENTOML_SECURE_DEV_ROOT": str(self.folder / "dev-root"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(
                part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part
            ),
            "TOKENIZERS_PARALLELISM": "false",
        }


def make_stage(folder: Path, models: Path) -> Stage:
    """Make a folder to serve the encoder from.

    Args:
        folder: New, or without any of what is made.
        models: What ``examples.encoder.prepare`` made; copied.
    """
    folder = folder.resolve()
    own = folder / "models"
    shutil.copytree(models, own)
    (folder / "cheats").mkdir()
    create_dev_root(folder / "dev-root", now=datetime.now(UTC))
    trust = folder / "trust.toml"
    arguments = ["trust", str(own / PLAN), "--service", SERVICE, "--out", str(trust)]
    arguments += ["--scenarios", str(ROOT / "services" / "encoder.toml")]
    arguments += ["--policy", str(folder / "dev-root" / POLICY)]
    arguments += ["--replicas", str(REPLICAS)]
    command_line.main(arguments, standalone_mode=False)
    return Stage(folder=folder, plan=load_plan(own / PLAN), trust=trust)


@contextmanager
def serve_cheating(stage: Stage) -> Iterator[str]:
    """Run ``bentoml serve``: an entry and twelve runners; yield the entry's URL."""
    environment = stage.environment(HOME)
    (stage.folder / HOME).mkdir()
    log = stage.folder / "serve.log"
    with serve(
        CHEATING, project=stage.folder, environment=environment, log=log
    ) as served:
        yield served.url


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What one replica runs on.

    Attributes:
        python: Of its environment.
        runtime: Of its segment, as ``BENTOML_SECURE_RUNTIME`` has it.
        version: Of the runtime in that environment.
    """

    python: Path
    runtime: str
    version: str

    def __str__(self) -> str:
        name, _, level = self.runtime.partition(":")
        return f"{name} {self.version} {level}".strip()


@contextmanager
def serve_mixed(
    stage: Stage, hosts: Mapping[Seat, Host], round_name: str
) -> Iterator[str]:
    """Run every service alone; yield the entry's URL.

    Args:
        stage: The folder.
        hosts: What each replica runs on.
        round_name: Names the folders of this round's logs.
    """
    with ExitStack() as running:
        urls: dict[str, str] = {}
        for seat, host in hosts.items():
            own = {"BENTOML_SECURE_RUNTIME": host.runtime}
            urls[seat.name] = running.enter_context(
                _alone(stage, seat.name, host.python, f"{round_name}-{seat.name}", own)
            )
        depends = [f"{name}={url}" for name, url in urls.items()]
        entry = running.enter_context(
            _alone(
                stage,
                SERVICE,
                Path(sys.executable),
                f"{round_name}-entry",
                {},
                depends,
            )
        )
        _wait_until_ready(entry)
        yield entry


@contextmanager
def _alone(
    stage: Stage,
    service: str,
    python: Path,
    home: str,
    own: Mapping[str, str],
    depends: list[str] | None = None,
) -> Iterator[str]:
    """Run one service on a free port; yield its URL. It need not be ready yet."""
    port = _free_port()
    command = [str(python), "-m", "bentoml_cli._internal.start", "start-http-server"]
    command += [CHEATING, "--service-name", service]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    for one in depends or ():
        command += ["--depends", one]
    (stage.folder / home).mkdir()
    with (stage.folder / f"{home}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=stage.folder,
            env={**os.environ, **stage.environment(home), **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(url: str) -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=3).status_code == 200:
                return
        time.sleep(0.3)
    raise RuntimeError(f"{url}: not ready in {START_SECONDS:.0f} s")
