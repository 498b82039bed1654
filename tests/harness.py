"""Real deployments for tests: a project folder, ``bentoml serve``, single services.

Everything a deployment touches lies in its own folders: plan, development root,
BENTOML_HOME, log. Every wait is bounded, and no process outlives its context.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import psutil
from onnx import TensorProto, helper, numpy_helper

from bentoml_secure.attestation.dev_root import POLICY, create_dev_root
from bentoml_secure.cli import main as cli
from bentoml_secure.split import split_onnx
from bentoml_secure.tensors import Array

REPOSITORY = Path(__file__).resolve().parents[1]
FEATURES = 30
READY_SECONDS = 90.0
STOP_SECONDS = 20.0

_LAYERS = (FEATURES, 64, 32, 1)
_FOREIGN = ("BENTOML", "BENTO_", "PROMETHEUS", "COVERAGE", "PYTEST")
_WORKER = "_bentoml_impl.worker.service"


def write_model(path: Path) -> None:
    """Write an ONNX MLP, ``features`` [batch, 30] to ``probability`` [batch, 1].

    Random weights from a fixed seed: what diagnosis serves, without its training.
    """
    rng = np.random.default_rng(7)
    nodes, weights, value = [], [], "features"
    for index, (before, after) in enumerate(itertools.pairwise(_LAYERS)):
        weight = rng.normal(0, before**-0.5, (before, after)).astype(np.float32)
        bias = rng.normal(0, 0.1, after).astype(np.float32)
        weights += [
            numpy_helper.from_array(weight, f"weight{index}"),
            numpy_helper.from_array(bias, f"bias{index}"),
        ]
        last = index == len(_LAYERS) - 2
        made = "probability" if last else f"hidden{index}"
        nodes += [
            helper.make_node(
                "Gemm", [value, f"weight{index}", f"bias{index}"], [f"sum{index}"]
            ),
            helper.make_node("Sigmoid" if last else "Relu", [f"sum{index}"], [made]),
        ]
        value = made
    graph = helper.make_graph(
        nodes,
        "diagnosis",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 30])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A folder to serve from: ``services/``, ``models/diagnosis``, a dev root.

    Attributes:
        folder: Working folder of every process.
        model: The whole model.
        plan: Folder of its plan, two segments.
        dev_root: Of the deployment.
    """

    folder: Path
    model: Path
    plan: Path
    dev_root: Path

    def add(self, source: Path, name: str | None = None) -> str:
        """Copy a module into the folder; return the name to import it by."""
        target = self.folder / f"{name or source.stem}.py"
        shutil.copyfile(source, target)
        return target.stem

    @contextlib.contextmanager
    def switched(self, *names: str) -> Iterator[None]:
        """Make files that processes of this folder look for, and remove them."""
        folder = self.folder / "switches"
        folder.mkdir(exist_ok=True)
        try:
            for name in names:
                (folder / name).touch()
            yield
        finally:
            for name in names:
                (folder / name).unlink(missing_ok=True)

    def trust(
        self,
        *,
        service: str = "Diagnosis",
        replicas: int = 3,
        scenarios: str = "services/scenarios.toml",
    ) -> Path:
        """Write the trust file of a deployment, as its owner would."""
        path = self.folder / f"trust-{service}.toml"
        arguments = ["trust", str(self.plan), "--service", service, "--out", str(path)]
        arguments += ["--scenarios", str(self.folder / scenarios)]
        arguments += ["--policy", str(self.dev_root / POLICY)]
        arguments += ["--replicas", str(replicas)]
        cli.main(arguments, standalone_mode=False)
        return path

    def expected(self, features: Array) -> Array:
        """Return what the whole model says, float32[batch, 1]."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        )
        session = onnxruntime.InferenceSession(
            self.model, options, providers=["CPUExecutionProvider"]
        )
        (probability,) = session.run(["probability"], {"features": features})
        return np.asarray(probability)


def make_project(folder: Path) -> Project:
    """Make a project: model, plan, development root, the repository's services."""
    folder.mkdir(parents=True, exist_ok=True)
    project = Project(
        folder=folder,
        model=folder / "diagnosis.onnx",
        plan=folder / "models" / "diagnosis",
        dev_root=folder / "dev-root",
    )
    write_model(project.model)
    split_onnx(project.model, project.plan, segments=2)
    create_dev_root(project.dev_root, now=datetime.now(UTC))
    shutil.copytree(
        REPOSITORY / "services",
        folder / "services",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return project


def sample(count: int = 2, *, seed: int = 1) -> Array:
    """Return features to ask with, float32[count, 30]."""
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """A running deployment or service, and what a test may look at.

    Attributes:
        url: Where it answers.
        home: Its BENTOML_HOME.
        process: The one that was started; workers are its children.
    """

    def __init__(self, url: str, home: Path, process: psutil.Process) -> None:
        self.url = url
        self.home = home
        self.process = process

    def log(self) -> str:
        """Return what all its processes have written so far."""
        return (self.home / "log").read_text(errors="replace")

    def workers(self) -> dict[str, psutil.Process]:
        """Return the worker process of each service by name."""
        found = {}
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if _WORKER in words and "--service-name" in words:
                    found[words[words.index("--service-name") + 1]] = process
        return found

    def resident_bytes(self) -> dict[str, int]:
        """Return the resident memory of each service's worker."""
        resident = {}
        for name, process in self.workers().items():
            with contextlib.suppress(psutil.NoSuchProcess):
                resident[name] = process.memory_info().rss
        return resident

    def replica_urls(self) -> dict[str, str]:
        """Return each service's URL as the supervisor told its workers."""
        for process in self.workers().values():
            urls: dict[str, str] = json.loads(process.environ()["BENTOML_RUNNER_MAP"])
            return urls
        raise AssertionError("no worker runs")

    def metrics(self) -> str:
        """Return the Prometheus text of the service at ``url``."""
        return httpx.get(f"{self.url}/metrics", timeout=10).text


def client_of(url: str, **settings: Any) -> httpx.Client:
    """Return an HTTP client for a URL as BentoML writes it: http:// or file://."""
    if url.startswith("file://"):
        transport = httpx.HTTPTransport(uds=url.removeprefix("file://"))
        return httpx.Client(transport=transport, base_url="http://runner", **settings)
    return httpx.Client(base_url=url.replace("tcp://", "http://"), **settings)


def is_ready(client: httpx.Client) -> bool:
    """Tell whether ``/readyz`` says so, within two seconds."""
    try:
        return client.get("/readyz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until_ready(served: Served, seconds: float = READY_SECONDS) -> None:
    """Wait for ``/readyz``; fail with the log where the time is over or it ended."""
    ends = time.monotonic() + seconds
    # One client: making one costs 0.1 s of the processor that the start needs.
    with httpx.Client(base_url=served.url) as client:
        while not is_ready(client):
            if has_ended(served.process):
                raise AssertionError(f"it ended before it was ready:\n{served.log()}")
            if time.monotonic() > ends:
                raise AssertionError(f"not ready in {seconds:g} s:\n{served.log()}")
            time.sleep(0.1)


def has_ended(process: psutil.Process) -> bool:
    """Tell whether a process has ended, waited for or not."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def environment(
    project: Project, home: Path, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment of a deployment's processes: nobody else's settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN)
    }
    return {
        **kept,
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_SECURE_DEV_ROOT": str(project.dev_root),
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }


@contextlib.contextmanager
def running(
    command: Sequence[str],
    project: Project,
    *,
    url: str,
    home: Path,
    env: Mapping[str, str] | None = None,
    ready_seconds: float | None = READY_SECONDS,
) -> Iterator[Served]:
    """Run a command in the project's folder until the context ends.

    Args:
        command: What to run.
        project: Its working folder and development root.
        url: Where it will answer.
        home: Its BENTOML_HOME; the log goes there.
        env: Further variables.
        ready_seconds: Bound on the wait for ``/readyz``; None does not wait.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(
            list(command),
            cwd=project.folder,
            env=environment(project, home, env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    served = Served(url, home, psutil.Process(process.pid))
    try:
        if ready_seconds is not None:
            wait_until_ready(served, ready_seconds)
        yield served
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for left in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    process.wait()


@contextlib.contextmanager
def serve(
    target: str,
    project: Project,
    home: Path,
    *,
    env: Mapping[str, str] | None = None,
    ready_seconds: float | None = READY_SECONDS,
) -> Iterator[Served]:
    """Run ``bentoml serve module:Class``, with all its runners, until the end."""
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", target]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with running(
        command,
        project,
        url=f"http://127.0.0.1:{port}",
        home=home,
        env=env,
        ready_seconds=ready_seconds,
    ) as served:
        yield served


@contextlib.contextmanager
def start_http_server(
    target: str,
    project: Project,
    home: Path,
    *,
    service_name: str,
    host: str = "127.0.0.1",
    port: int | None = None,
    depends: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    ready_seconds: float | None = READY_SECONDS,
) -> Iterator[Served]:
    """Run one service of a deployment alone, as on a machine of its own.

    Args:
        target: ``module:Class`` of the deployment.
        project: Its folder.
        home: BENTOML_HOME of this one service.
        service_name: Which service: the entry or a replica.
        host: Address where it answers.
        port: Where it answers; a free one by default.
        depends: URL of each service that it depends on, by name.
        prefix: Command that runs it, such as one that enters a network namespace.
        env: Further variables.
        ready_seconds: As ``running``.
    """
    port = port or free_port()
    command = [*prefix, sys.executable, "-m", "bentoml_cli._internal.start"]
    command += ["start-http-server", target, "--service-name", service_name]
    command += ["--host", host, "--port", str(port)]
    for name, url in (depends or {}).items():
        command += ["--depends", f"{name}={url}"]
    with running(
        command,
        project,
        url=f"http://{host}:{port}",
        home=home,
        env=env,
        ready_seconds=ready_seconds,
    ) as served:
        yield served
