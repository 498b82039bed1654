"""Which runtime a runner is on: told by its environment, permitted by the plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentoml_secure.attestation.attesters import DEV_ROOT
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.serving.deployment import Deployment
from bentoml_secure.serving.settings import RUNTIME, own_environment, read_settings
from bentoml_secure.split import RuntimeChoice
from bentoml_secure.split.runtime_onnx import OnnxEngine
from bentoml_secure.split.runtime_torch import TorchEngine
from tests.harness import Project

RUNNER = "DSegment0Replica1"
PERMITTED = [
    {"name": "torch", "version": ">=2"},
    {"name": "onnxruntime", "version": ">=1", "graph_level": "BASIC"},
]
Read = Callable[..., Deployment]


@pytest.fixture
def read(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Read a deployment of a copy of the plan, which permits this."""
    monkeypatch.setenv(DEV_ROOT, str(project.dev_root))
    monkeypatch.delenv(RUNTIME, raising=False)

    def read(permitted: list[dict[str, str]]) -> Deployment:
        folder = Path(shutil.copytree(project.plan, tmp_path / "plan"))
        document: dict[str, Any] = json.loads((folder / "plan.json").read_text())
        if permitted:
            document["runtime"]["permitted"] = permitted
        (folder / "plan.json").write_text(json.dumps(document))
        return Deployment.read(
            name="D",
            plan=folder,
            replicas=3,
            scenarios=project.folder / "services" / "scenarios.toml",
            threads=1,
            in_process=False,
            max_message_bytes=1 << 20,
            module="nowhere",
        )

    return read


def test_a_runtime_is_the_plans_own_unless_it_is_named(project: Project) -> None:
    environment = {DEV_ROOT: str(project.dev_root)}
    assert read_settings(environment, service="D").runtime == RuntimeChoice()
    environment[f"{RUNTIME}__{RUNNER}"] = "torch"
    for service, name in ((RUNNER, "torch"), ("D", "onnxruntime")):
        own = own_environment(environment, service)
        assert read_settings(own, service=service).runtime.name == name


def test_a_runtime_that_nobody_knows_is_refused_with_the_variable(
    project: Project,
) -> None:
    environment = {DEV_ROOT: str(project.dev_root), RUNTIME: "tensorflow"}
    with pytest.raises(ConfigurationError, match=f"{RUNTIME}: runtime: got 'tensor"):
        read_settings(environment, service="D")


@pytest.mark.parametrize("words", ["torch", "onnxruntime:BASIC"])
def test_a_runner_does_not_start_on_what_the_plan_does_not_permit(
    read: Read, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv(f"{RUNTIME}__{RUNNER}", words)
    deployment = read([])
    with pytest.raises(ConfigurationError, match=f"got {words}, which the plan does"):
        deployment.require_segment(0, RUNNER)
    # The others are on the plan's own.
    deployment.require_segment(0, "DSegment0Replica0")
    deployment.require_segment(0)


@pytest.mark.parametrize(
    ("words", "engine"),
    [
        ("", OnnxEngine),
        ("onnxruntime", OnnxEngine),
        ("onnxruntime:BASIC", OnnxEngine),
        ("torch", TorchEngine),
    ],
)
def test_a_runner_is_on_the_runtime_that_it_was_told(
    read: Read, monkeypatch: pytest.MonkeyPatch, words: str, engine: type
) -> None:
    monkeypatch.setenv(f"{RUNTIME}__{RUNNER}", words)
    deployment = read(PERMITTED)
    deployment.require_segment(0, RUNNER)
    identity = deployment.identify_runner(RUNNER, 0)
    loaded = deployment.load(RUNNER, 0, lambda: identity)
    assert type(loaded._engine) is engine
    feed = {
        spec.name: np.ones(
            [2 if isinstance(size, str) else size for size in spec.shape], spec.dtype
        )
        for spec in loaded.segment.inputs
    }
    assert loaded.run(feed).keys() == {spec.name for spec in loaded.segment.outputs}


def test_a_segment_is_tried_once_on_each_runtime(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = read(PERMITTED)
    deployment.require_segment(0, RUNNER)
    shutil.rmtree(deployment.folder)
    deployment.require_segment(0, RUNNER)
    monkeypatch.setenv(RUNTIME, "torch")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        deployment.require_segment(0, RUNNER)
