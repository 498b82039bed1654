"""``bentoml build`` with the repository's bentofile.yaml, served from elsewhere.

The package goes into the Bento as a wheel, and what is served here is that wheel's
code, not the checkout's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bentoml_secure import SecureClient
from tests.harness import (
    REPOSITORY,
    Project,
    Served,
    environment,
    make_project,
    sample,
    serve,
)

WHEEL = "bentoml_secure-0.1.0-py3-none-any.whl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A Bento, and what it was built from.

    Attributes:
        project: Where it was built; gone when it is served.
        home: BENTOML_HOME, with the Bento in its store.
        bento: The Bento's folder in the store.
        trust: Trust file, written by the checkout's package.
        package: The wheel, unpacked.
    """

    project: Project
    home: Path
    bento: Path
    trust: Path
    package: Path


def run(*words: str | Path, project: Project, home: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=project.folder,
        env=environment(project, home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("bento")
    project, home = make_project(folder / "project"), folder / "home"
    shutil.copy(REPOSITORY / "bentofile.yaml", project.folder)
    trust = project.trust()
    dist = project.folder / "dist"
    run(
        *("build", "--wheel", "--no-isolation", "--outdir", dist, REPOSITORY),
        project=project,
        home=home,
    )
    run("bentoml", "build", project=project, home=home)
    (bento,) = (home / "bentos" / "diagnosis").glob("*/bento.yaml")
    with zipfile.ZipFile(dist / WHEEL) as wheel:
        wheel.extractall(folder / "package")
    # Elsewhere from now on: nothing may be found by its old place.
    shutil.copytree(project.dev_root, folder / "dev-root")
    shutil.copy(trust, folder / "trust.toml")
    expected_model = shutil.copy(project.model, folder / "diagnosis.onnx")
    shutil.rmtree(project.folder)
    (folder / "elsewhere").mkdir()
    elsewhere = replace(
        project,
        folder=folder / "elsewhere",
        model=Path(expected_model),
        dev_root=folder / "dev-root",
    )
    return Built(
        project=elsewhere,
        home=home,
        bento=bento.parent,
        trust=folder / "trust.toml",
        package=folder / "package",
    )


@pytest.fixture(scope="module")
def served(built: Built) -> Iterator[Served]:
    # In front of the checkout, which is what is installed here.
    env = {"PYTHONPATH": str(built.package)}
    with serve("diagnosis:latest", built.project, built.home, env=env) as running:
        yield running


def test_the_bento_holds_service_plan_and_package(built: Built) -> None:
    files = {
        path.relative_to(built.bento).as_posix()
        for path in built.bento.rglob("*")
        if path.is_file()
    }
    assert {
        "src/services/diagnosis.py",
        "src/services/scenarios.toml",
        "src/models/diagnosis/plan.json",
        "src/models/diagnosis/segment-0.onnx",
        "src/models/diagnosis/segment-1.onnx",
        f"env/python/wheels/{WHEEL}",
        "env/docker/Dockerfile",
    } <= files


def test_the_wheel_is_the_whole_package(built: Built) -> None:
    def code(root: Path) -> set[str]:
        return {
            path.relative_to(root).as_posix()
            for path in (root / "bentoml_secure").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    assert code(built.package) == code(REPOSITORY)


def test_the_bento_serves_answers_with_receipts(built: Built, served: Served) -> None:
    features = sample(3)
    with SecureClient(served.url, built.trust) as client:
        answer = client.call("diagnose", {"features": features.tolist()})
    expected = built.project.expected(features)[:, 0].tolist()
    assert answer.value == {"malignant": expected}
    assert answer.verdict.claims["segments"] == 2
    assert answer.verdict.claims["replicas"] == 3


def test_every_process_finds_the_wheels_code_first(
    built: Built, served: Served
) -> None:
    workers = served.workers()
    assert len(workers) == 7
    for worker in workers.values():
        assert worker.environ()["PYTHONPATH"].split(":")[0] == str(built.package)
