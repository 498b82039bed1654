"""A prover's start: refused where nobody would verify what it proves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from bentoml_secure.errors import MissingDependencyError
from bentoml_secure.serving.assembly import _desk
from bentoml_secure.serving.deployment import Deployment
from bentoml_secure.serving.prover_start import open_work
from bentoml_secure.serving.settings import ProverSettings
from bentoml_secure.session.identity import Identity
from tests import proven_case


@pytest.fixture
def deployment() -> Deployment:
    """Return one whose set-up was made with a version that is not installed."""
    manifest = proven_case.set_up().altered(backend_version="1.0.0").manifest
    folder = SimpleNamespace(manifest=manifest, is_sealed=False)
    made = SimpleNamespace(proofs=folder, require_proofs=lambda: folder)
    return cast(Deployment, made)


def test_another_version_of_the_backend(deployment: Deployment, tmp_path: Path) -> None:
    settings = ProverSettings(jobs="", folder=tmp_path)
    with pytest.raises(MissingDependencyError, match=r"of version 1\.0\.0"):
        open_work(deployment, "Prover0", 0, cast(Identity, None), settings)
    assert list(tmp_path.iterdir()) == []


def test_an_entry_of_another_version(deployment: Deployment) -> None:
    with pytest.raises(MissingDependencyError, match=r"of version 1\.0\.0"):
        _desk(deployment, [], cast("object", None))  # type: ignore[arg-type]
