"""Files of a plan that are not what they were, or not where they should be."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import bentoml
import pytest

import bentoml_secure
from bentoml_secure.digest import digest_file_bytes
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.serving.deployment import Deployment
from bentoml_secure.split import PLAN_FILE, load_plan, run_chain, split_onnx
from tests.harness import Project, make_project, sample, serve, write_model

PATHS = [
    "../secret.onnx",
    "/etc/passwd",
    "a/../../secret.onnx",
    "./segment-0.onnx",
    "a//b.onnx",
    "C:\\secret.onnx",
    "~/secret.onnx",
    "secret.onnx\0",
    "..",
    "",
    "file:///etc/passwd",
    "-rf",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plan whose weights lie beside its segments."""
    write_model(tmp_path / "model.onnx")
    split_onnx(tmp_path / "model.onnx", tmp_path / "plan", segments=2, inline_bytes=0)
    (tmp_path / "secret.onnx").write_bytes(b"not yours")
    return tmp_path / "plan"


def deploy(folder: Path, project: Project) -> Any:
    @bentoml_secure.service(
        plan=folder,
        replicas=3,
        scenarios=project.folder / "services" / "scenarios.toml",
        name="Filed",
    )
    class Filed:
        @bentoml.api  # type: ignore[untyped-decorator]  # bentoml is untyped here
        async def ask(self) -> int:
            return 0

    return Filed


def deployment_of(service: Any) -> Deployment:
    deployment: Deployment = service.all_services()[
        "FiledSegment0Replica0"
    ].inner.deployment
    return deployment


def edit_plan(folder: Path, path: str, *, digest: str | None = None) -> None:
    document = json.loads((folder / PLAN_FILE).read_text())
    segment = document["segments"][0]
    segment["file"] = segment["files"][0]["path"] = path
    if digest is not None:
        segment["files"][0]["digest"] = digest
    (folder / PLAN_FILE).write_text(json.dumps(document))


def test_the_plan_as_it_is_serves(folder: Path, project: Project) -> None:
    assert len(load_plan(folder).segments[0].files) == 2, "weights are external"
    deployment_of(deploy(folder, project)).require_segment(0)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_leaves_the_folder_is_no_plan(
    folder: Path, project: Project, path: str
) -> None:
    edit_plan(folder, path)
    with pytest.raises(MalformedInputError, match="want a plain path inside"):
        deploy(folder, project)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_that_leaves_the_folder_is_not_followed(
    folder: Path, project: Project, kind: str
) -> None:
    secret = folder.parent / "secret.onnx"
    digest = digest_file_bytes(secret.read_bytes())
    if kind == "file":
        os.symlink(secret, folder / "link.onnx")
        edit_plan(folder, "link.onnx", digest=digest)
    else:
        os.symlink(folder.parent, folder / "up")
        edit_plan(folder, "up/secret.onnx", digest=digest)
    service = deploy(folder, project)
    with pytest.raises(VerificationError, match="leads out of the folder"):
        deployment_of(service).require_segment(0)


def external_data(folder: Path, segment: int) -> Path:
    plan = load_plan(folder).segments[segment]
    (path,) = [entry.path for entry in plan.files if entry.path != plan.file]
    return folder / path


@pytest.mark.parametrize("change", ["one bit", "other weights", "shorter", "gone"])
def test_external_data_swapped_after_the_plan_was_made(
    folder: Path, project: Project, change: str
) -> None:
    service = deploy(folder, project)
    path = external_data(folder, 0)
    data = bytearray(path.read_bytes())
    if change == "one bit":
        data[len(data) // 2] ^= 1
    elif change == "other weights":
        data = bytearray(len(data))
    elif change == "shorter":
        data = data[:-4]
    path.write_bytes(data)
    reason = "want sha256-file-v1:"
    if change == "gone":
        path.unlink()
        shutil.copy(external_data(folder, 1), path)
    with pytest.raises(VerificationError, match=reason):
        deployment_of(service).require_segment(0)


def test_swapped_data_would_run_if_nobody_looked(folder: Path) -> None:
    """The swapper writes the digests anew: only the plan's own gives it away."""
    before = run_chain(folder, {"features": sample()})
    trusted = load_plan(folder).digest
    path = external_data(folder, 1)
    swapped = bytes(path.stat().st_size)
    path.write_bytes(swapped)
    document = json.loads((folder / PLAN_FILE).read_text())
    for entry in document["segments"][1]["files"]:
        if entry["path"] == path.name:
            entry["digest"] = digest_file_bytes(swapped)
    (folder / PLAN_FILE).write_text(json.dumps(document))
    after = run_chain(folder, {"features": sample()})
    assert (after["probability"] != before["probability"]).all()
    assert load_plan(folder).digest != trusted


def test_bentoml_does_not_even_start_on_swapped_files(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    plan = load_plan(project.plan)
    path = project.plan / plan.segments[1].file
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with (
        pytest.raises(AssertionError, match="it ended before it was ready") as ended,
        serve("services.diagnosis:Diagnosis", project, tmp_path / "home"),
    ):
        pass
    assert "segment-1.onnx: got sha256-file-v1:" in str(ended.value)
