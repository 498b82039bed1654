"""The encoder's plan for the tests of its parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.encoder_case import encoder_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the encoder's plan, tokenizer and whole model."""
    return encoder_models(tmp_path_factory)
