"""tensors-v1 byte strings: a byte string has one meaning, a content one byte string."""

from __future__ import annotations

import numpy as np

from bentoml_secure.errors import SecureError
from bentoml_secure.tensors import commit, decode, encode
from fuzz._same import require_same


def seeds() -> list[bytes]:
    """Return byte strings of every dtype kind, of no and of empty tensors."""
    tensors = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "m": np.ones(2, bool)}
    return [encode({}), encode(tensors), encode({"e": np.zeros((0, 2), np.int64)})]


def one(data: bytes) -> None:
    """Read bytes as tensors."""
    try:
        tensors = decode(data)
    except SecureError:
        return
    require_same(encode(tensors), data)
    commit(tensors, dict.fromkeys(tensors, bytes(32)))
