"""Real evidence, read from where it lies; a test without it skips and says why.

The files are their vendors' and projects' and are not kept here:
``tests/vectors/SOURCES.toml`` says what they are, ``make vectors`` fetches them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "BENTOML_SECURE_VECTORS"
_ROOT = Path(__file__).parents[1]
_PLACES = (_ROOT / "tests" / "vectors" / "files", _ROOT.parent / "shared" / "vectors")


def folder() -> Path | None:
    """Return the folder of vectors: the variable's, the fetched one, or none."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    return next((place for place in _PLACES if place.is_dir()), None)


def vector(name: str) -> bytes:
    """Return a vector's bytes, such as ``vector("nitro/ok.cose")``; skip without it."""
    place = folder()
    if place is None:
        pytest.skip(f"no vectors: set {VARIABLE}, or run `make vectors`")
    path = place / name
    if not path.is_file():
        pytest.skip(f"no vector {name} in {place}")
    return path.read_bytes()
