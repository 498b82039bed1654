"""Replicas of one segment on three runtimes: calibrated, they agree; unasked, none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bentoml_secure import SecureClient, cli
from bentoml_secure.serving.settings import RUNTIME
from bentoml_secure.split import load_plan
from tests.harness import (
    Project,
    Served,
    environment,
    free_port,
    make_project,
    sample,
    serve,
)
from tests.service.deployments import REPLICAS

TARGET = "services.diagnosis:Diagnosis"
END_SECONDS = 60.0
RUNTIMES = ("onnxruntime", "torch", "onnxruntime:BASIC")
MIXED = {
    f"{RUNTIME}__{name}": RUNTIMES[number % 3] for number, name in enumerate(REPLICAS)
}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = make_project(tmp_path_factory.mktemp("mixed"))
    cli.main(["calibrate", str(project.plan)], standalone_mode=False)
    return project


@pytest.fixture(scope="module")
def mixed(calibrated: Project) -> Iterator[Served]:
    home = calibrated.folder / "home"
    with serve(TARGET, calibrated, home, env=MIXED) as served:
        yield served


def test_honest_replicas_on_three_runtimes_agree(
    calibrated: Project, mixed: Served
) -> None:
    tolerances = [s.tolerance for s in load_plan(calibrated.plan).segments]
    with SecureClient(mixed.url, calibrated.trust()) as client:
        for seed in range(30):
            features = sample(3, seed=seed)
            answer = client.call("diagnose", {"features": features.tolist()})
            assert answer.verdict.claims["dissenters"] == []
            got = np.asarray(answer.value["malignant"], np.float32)
            want = calibrated.expected(features)[:, 0]
            np.testing.assert_allclose(got, want, atol=2 * sum(tolerances))


def test_the_runtimes_are_really_others(mixed: Served) -> None:
    workers = mixed.workers()
    for number, name in enumerate(REPLICAS):
        maps = {Path(entry.path).name for entry in workers[name].memory_maps()}
        has_torch = any(library.startswith("libtorch") for library in maps)
        assert has_torch is (RUNTIMES[number % 3] == "torch"), name


def test_a_runner_on_a_runtime_that_is_not_permitted_does_not_start(
    tmp_path: Path,
) -> None:
    project = make_project(tmp_path)
    command = [sys.executable, "-m", "bentoml", "serve", TARGET]
    done = subprocess.run(
        [*command, "--host", "127.0.0.1", "--port", str(free_port())],
        cwd=project.folder,
        env=environment(
            project, tmp_path / "home", {f"{RUNTIME}__{REPLICAS[1]}": "torch"}
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "runtime: got torch, which the plan does not permit" in done.stdout
    assert "bentoml-secure calibrate" in done.stdout
    assert "initialized" not in done.stdout
