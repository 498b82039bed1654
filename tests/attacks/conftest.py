"""Two deployments for all attacks: one of BentoML's own, one with rogue replicas."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bentoml_secure.statements import utc_now
from bentoml_secure.testing.dcap_pki import EVALUATION
from bentoml_secure.testing.simulated_tdx import mr_td, root_digest
from tests.attacks.targets import (
    PEAKS,
    SERVICE,
    TARGET,
    Rogues,
    Target,
    target_of,
)
from tests.harness import (
    Project,
    free_port,
    has_ended,
    make_project,
    running,
    serve,
    start_http_server,
)

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def attacked_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of its own: its development root is trusted by nobody else."""
    project = make_project(tmp_path_factory.mktemp("attacked"))
    project.add(HERE / "attacked.py")
    shutil.copyfile(HERE / "attacked.toml", project.folder / "attacked.toml")
    allow_more(project)
    return project


def allow_more(project: Project) -> None:
    """Let the policy accept TDX quotes of its development root, and any H100."""
    path = project.dev_root / "policy.toml"
    text = path.read_text().replace(
        'allow = ["simulated"]', 'allow = ["simulated", "simulated-tdx", "nvidia-gpu"]'
    )
    root = root_digest(project.dev_root, now=utc_now())
    path.write_text(
        f"""{text}
[simulated-tdx]
roots = ["{root}"]
mr_td = ["{mr_td()}"]
min_tcb_evaluation = {EVALUATION}

[nvidia-gpu]
firmware = {{ unchecked = "whose it is, is what is tried" }}
"""
    )


@pytest.fixture(scope="session")
def trust(attacked_project: Project) -> Path:
    """The trust file of both deployments: they differ in URLs and keys only."""
    return attacked_project.trust(service=SERVICE, scenarios="attacked.toml")


@pytest.fixture(scope="session")
def target(attacked_project: Project, trust: Path) -> Iterator[Target]:
    """``bentoml serve``: entry and runners as a user has them."""
    home = attacked_project.folder / "home"
    with (
        serve(TARGET, attacked_project, home) as served,
        target_of(served, attacked_project, trust) as target,
    ):
        yield target


@pytest.fixture(scope="session")
def rogues(attacked_project: Project) -> Iterator[Rogues]:
    """A host of replicas that do what a test says."""
    port = free_port()
    marker = attacked_project.folder / "unpickled-in-entry"
    command = [sys.executable, "-m", "bentoml_secure.testing.rogue", TARGET]
    command += ["--port", str(port), "--marker", str(marker)]
    control = f"http://127.0.0.1:{port}"
    with (
        running(
            command,
            attacked_project,
            url=control,
            home=attacked_project.folder / "home-rogue",
            ready_seconds=None,
        ) as host,
        httpx.Client(base_url=control) as client,
    ):
        rogues = Rogues(control=client, marker=marker, host=host)
        wait_for_control(rogues)
        yield rogues


@pytest.fixture(scope="session")
def besieged(
    attacked_project: Project, trust: Path, rogues: Rogues
) -> Iterator[Target]:
    """A real entry whose replicas are all on the rogue host."""
    with (
        start_http_server(
            TARGET,
            attacked_project,
            attacked_project.folder / "home-entry",
            service_name=SERVICE,
            depends=rogues.state()["replicas"],
        ) as served,
        target_of(served, attacked_project, trust) as target,
    ):
        yield target


def wait_for_control(rogues: Rogues, seconds: float = 60.0) -> None:
    """Wait until the rogue host listens."""
    ends = time.monotonic() + seconds
    while True:
        try:
            rogues.state()
            return
        except httpx.HTTPError:
            if has_ended(rogues.host.process) or time.monotonic() > ends:
                raise AssertionError(rogues.host.log()) from None
            time.sleep(0.1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if PEAKS:
        grown = max(PEAKS) / (1 << 20)
        terminalreporter.write_line(
            f"attacks: resident memory grew by {grown:.1f} MiB at most, "
            f"of {len(PEAKS)} watched"
        )
