from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.serving.serving_parts import Ground, make_ground, split_skips


@pytest.fixture(scope="session")
def skips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the network ``skips.onnx`` and of its plan, ``plan``."""
    folder = tmp_path_factory.mktemp("skips")
    split_skips(folder)
    return folder


@pytest.fixture
def ground(skips: Path) -> Ground:
    return make_ground(skips / "plan")
