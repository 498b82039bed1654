"""Starts that are refused: the process ends, and says what was wrong and what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bentoml_secure.split.plan import PLAN_FILE
from tests.harness import Project, environment, free_port
from tests.service.deployments import ENTRY, REPLICAS

HERE = Path(__file__).parent
VARIED = "varied:Diagnosis"
END_SECONDS = 60.0

SERVE = ("bentoml", "serve")
ALONE = ("bentoml_cli._internal.start", "start-http-server")
IN_THE_ENTRY = (
    "BentoML would build these segments inside the entry",
    "Start with `bentoml serve`, or name each replica with --depends NAME=URL",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A start that must fail.

    Attributes:
        says: What its output must contain: the thing, got and want, the remedy.
        command: Module and its first words.
        arguments: The rest of the command line.
        options: Of the decorator.
        env: Further variables.
    """

    says: Sequence[str]
    command: Sequence[str] = SERVE
    arguments: Sequence[str] = ()
    options: Mapping[str, object] | None = None
    env: Mapping[str, str] | None = None


def runner_urls(names: Sequence[str]) -> list[str]:
    """Return ``--depends`` for each name; nobody listens there."""
    return [word for name in names for word in ("--depends", f"{name}=http://[::1]:9")]


STARTS = {
    "an entry alone, of no replica": Start(
        command=ALONE,
        arguments=("--service-name", ENTRY),
        says=(f"Diagnosis: no URL for {', '.join(REPLICAS)}", *IN_THE_ENTRY),
    ),
    "an entry alone, of all replicas but one": Start(
        command=ALONE,
        arguments=("--service-name", ENTRY, *runner_urls(REPLICAS[:-1])),
        says=(f"Diagnosis: no URL for {REPLICAS[-1]};", *IN_THE_ENTRY),
    ),
    "development mode": Start(
        arguments=("--development",),
        says=(f"Diagnosis: no URL for {', '.join(REPLICAS)}", *IN_THE_ENTRY),
    ),
    "two workers of the entry": Start(
        options={"workers": 2},
        says=("entry workers: got 2, want 1", "scale by replicas"),
    ),
    "two workers of a runner": Start(
        options={"runner": {"workers": 2}},
        says=("runner workers: got 2, want 1", "scale by replicas"),
    ),
    "two workers of the entry, by the operator's configuration": Start(
        env={"BENTOML_CONFIG_OPTIONS": f"services.{ENTRY}.workers=2"},
        says=("entry workers: got 2, want 1", "scale by replicas"),
    ),
    "two workers of every service, by the operator's configuration": Start(
        env={"BENTOML_CONFIG_OPTIONS": "services.workers=2"},
        says=("workers: got 2, want 1", "scale by replicas"),
    ),
    "two workers of a runner, by the operator's configuration": Start(
        env={"BENTOML_CONFIG_OPTIONS": f"services.{REPLICAS[1]}.workers=2"},
        says=(f"{REPLICAS[1]} workers: got 2, want 1", "scale by replicas"),
    ),
    "no plan": Start(
        options={"plan": "models/nowhere"},
        says=("models/nowhere: not found in", "Make it, correct the path"),
    ),
    "an altered segment": Start(
        options={"plan": "models/altered"},
        says=("segment-1.onnx", "got sha256-file-v1:", "want sha256-file-v1:"),
    ),
    "another runtime": Start(
        options={"plan": "models/elsewhere"},
        says=("onnxruntime: got", "the plan wants >=1.0,<1.1", "Install a version"),
    ),
    "no attester": Start(
        env={"BENTOML_SECURE_DEV_ROOT": ""},
        says=("no attester is configured", "set BENTOML_SECURE_DEV_ROOT=DIR"),
    ),
    "a development root that is not there": Start(
        env={"BENTOML_SECURE_DEV_ROOT": "nowhere"},
        says=("development root:", "nowhere does not exist", "dev-root DIR"),
    ),
    "endorsements that are not there": Start(
        env={"BENTOML_SECURE_ENDORSEMENTS": "nowhere"},
        says=("endorsements:", "nowhere: No such file or directory"),
    ),
    "endorsements of one runner that are not there": Start(
        env={f"BENTOML_SECURE_ENDORSEMENTS__{REPLICAS[1]}": "nowhere"},
        says=("endorsements:", "nowhere: No such file or directory"),
    ),
    "a runner alone, of an altered segment": Start(
        command=ALONE,
        arguments=("--service-name", REPLICAS[-1]),
        options={"plan": "models/altered"},
        says=("segment-1.onnx", "got sha256-file-v1:", "want sha256-file-v1:"),
    ),
}


@pytest.fixture(scope="module")
def varied(project: Project) -> Project:
    """The project, with plans that must not be served."""
    project.add(HERE / "varied.py")
    altered = project.plan.parent / "altered"
    shutil.copytree(project.plan, altered)
    segment = altered / "segment-1.onnx"
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    elsewhere = project.plan.parent / "elsewhere"
    shutil.copytree(project.plan, elsewhere)
    plan = json.loads((elsewhere / PLAN_FILE).read_bytes())
    plan["runtime"]["version"] = ">=1.0,<1.1"
    (elsewhere / PLAN_FILE).write_text(json.dumps(plan))
    return project


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_a_start_that_cannot_be_secure_ends_with_the_reason(
    varied: Project, tmp_path: Path, start: Start
) -> None:
    command = [sys.executable, "-m", *start.command, VARIED, *start.arguments]
    env = {"VARIED": json.dumps(start.options or {}), **(start.env or {})}
    # Its own errors only: no worker may have started, so nothing is left running.
    done = subprocess.run(
        [*command, "--host", "127.0.0.1", "--port", str(free_port())],
        cwd=varied.folder,
        env=environment(varied, tmp_path, env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    for words in start.says:
        assert words in done.stdout
    assert "initialized" not in done.stdout
