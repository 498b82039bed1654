"""The targets of fuzz/: seeds and seeds that were hurt, and a while of real fuzzing."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.__main__ import TARGETS

ROOT = Path(__file__).parents[2]
SECONDS = 20


def target(name: str) -> Any:
    return importlib.import_module(f"fuzz.{name}")


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name: str) -> None:
    for seed in target(name).seeds():
        target(name).one(seed)
    target(name).one(b"")


@pytest.mark.parametrize("name", TARGETS)
def test_hurt_seeds_are_refused_or_read(name: str) -> None:
    fuzzed, seeds = target(name), target(name).seeds()

    @settings(max_examples=30)
    @given(
        st.sampled_from(seeds),
        st.integers(0, 1 << 20),
        st.integers(0, 4),
        st.binary(max_size=4),
    )
    def hurt(seed: bytes, at: int, dropped: int, inserted: bytes) -> None:
        at %= len(seed) + 1
        fuzzed.one(seed[:at] + inserted + seed[at + dropped :])

    hurt()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed"
)
@pytest.mark.parametrize("name", TARGETS)
def test_a_while_of_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    options = [f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", name, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
