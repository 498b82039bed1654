"""Running the command line in this process, on files of a real deployment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest
from click.testing import CliRunner, Result

from bentoml_secure.cli import main
from bentoml_secure.digest import digest_json
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.trust import write_trust
from bentoml_secure.testing.deployment import Deployment, build_deployment


class Run(Protocol):
    def __call__(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> Result: ...


@pytest.fixture
def run() -> Run:
    def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
        return CliRunner(env=env).invoke(
            main, [str(argument) for argument in arguments], prog_name="bentoml-secure"
        )

    return run


@pytest.fixture
def deployment() -> Deployment:
    # The command line judges deadlines by the machine's clock.
    return build_deployment(
        now=datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=2)
    )


@pytest.fixture
def trust_file(deployment: Deployment, tmp_path: Path) -> Path:
    path = tmp_path / "trust.toml"
    path.write_text(
        write_trust(
            plan_digests=[deployment.plan.digest],
            config_digests=[deployment.config_digest],
            package_digests=[digest_json("a release")],
            scenarios={deployment.scenario.name: deployment.scenario.digest},
            policy=deployment.policy,
            minimum_quorum=deployment.scenario.quorum,
        )
    )
    return path


Write = Callable[[Bundle], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(bundle: Bundle) -> Path:
        path = tmp_path / "receipt.json"
        path.write_text(json.dumps(bundle.to_json()))
        return path

    return write
