"""Replicas that cheat to save work or to do harm, and sign what they made of it.

    fp16 ... scaled   an altered copy of the segment; see ``split.alterations``
    stale             the first answer that it ever gave, again
    anothers          the answer to the request before, whoever's that was
    noise-F           noise added, whose largest element is F times what the segment's
                      tolerance allows: a distance of F tolerances from the honest one

Keys and evidence are real, as in ``faults``: only other replicas can tell. A process
that can cheat does so when its file says how, so that one deployment shows them all:

    # cheating.py, served as `bentoml serve cheating:Encoder`
    from services.encoder import Encoder

    cheat_by_file(Encoder, Path("cheats"))   # cheats/<replica> holds the cheat's name
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.serving.runner import RunSegment
from bentoml_secure.split.alterations import ALTERATIONS, alter
from bentoml_secure.split.inlining import inline_segment
from bentoml_secure.split.plan import Plan, read_file
from bentoml_secure.split.runtime import MAX_FILE_BYTES
from bentoml_secure.split.runtime_onnx import OnnxEngine
from bentoml_secure.split.runtimes import GraphLevel
from bentoml_secure.tensors import Array

STALE = "stale"
ANOTHERS = "anothers"
NOISE = "noise-"
CHEATS = (*ALTERATIONS, STALE, ANOTHERS, f"{NOISE}4")
"""What is tried by name; noise may be of any size."""

Outputs = dict[str, Array]


def cheat_by_file(service: Any, folder: Path) -> None:
    """Let every replica of a service cheat while a file says how.

    Args:
        service: What ``bentoml_secure.service`` made of the class; its plan lies open.
        folder: A file of a replica's name holds a cheat's. Without it the replica is
            honest.
    """
    for name, replica in service.all_services().items():
        if name != service.name:
            _switch(replica.inner, folder / name)


def _switch(runner: Any, file: Path) -> None:
    load_run = runner.load_run

    def load_cheating_run(self: Any) -> RunSegment:
        deployment = self.deployment
        replica = CheatingReplica(
            deployment.folder,
            deployment.plan,
            self.segment_index,
            load_run(self),
            seed=zlib.crc32(self.name.encode()),
        )

        def run(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
            """Look at the file and do as it says."""
            return replica.run(tensors, read_cheat(file))

        return run

    runner.load_run = load_cheating_run


def read_cheat(file: Path) -> str | None:
    """Return the cheat that a file names; None where there is no file."""
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return None


class CheatingReplica:
    """One replica that may cheat.

    Args:
        folder: The plan's, unsealed.
        plan: The plan.
        index: Of its segment.
        run: What runs the segment honestly.
        seed: Of its noise: two replicas of other seeds do not agree.
    """

    def __init__(
        self, folder: Path, plan: Plan, index: int, run: RunSegment, *, seed: int
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._index = index
        self._run = run
        self._rng = np.random.default_rng(seed)
        self._altered: tuple[str, OnnxEngine] | None = None
        self._first: Outputs | None = None
        self._last: Outputs | None = None

    def run(self, tensors: Mapping[str, Array], cheat: str | None) -> Outputs:
        """Answer an exchange.

        Args:
            tensors: The segment's inputs.
            cheat: How; None answers honestly.

        Raises:
            ConfigurationError: No such cheat, or it has no answer yet to give again.
        """
        if cheat is not None and cheat in ALTERATIONS:
            return self._engine(cheat).run(tensors)
        answer = self._answer(cheat)
        honest = dict(self._run(tensors))
        made = answer(honest)
        self._first, self._last = self._first or honest, honest
        return made

    def _answer(self, cheat: str | None) -> Callable[[Outputs], Outputs]:
        if cheat is None:
            return dict
        if cheat in (STALE, ANOTHERS):
            earlier = self._first if cheat == STALE else self._last
            if earlier is None:
                raise ConfigurationError(f"{cheat}: the replica has answered nothing")
            return lambda honest: _in_shape(earlier, honest)
        factor = _factor(cheat)
        return lambda honest: self._noisy(honest, factor)

    def _engine(self, cheat: str) -> OnnxEngine:
        # One at a time is kept: each is a whole segment.
        if self._altered is None or self._altered[0] != cheat:
            engine = load_altered(self._folder, self._plan, self._index, cheat)
            self._altered = cheat, engine
        return self._altered[1]

    def _noisy(self, honest: Outputs, factor: float) -> Outputs:
        most = factor * self._plan.segments[self._index].tolerance
        return {
            name: noisy(array, most, self._rng) if array.dtype.kind == "f" else array
            for name, array in honest.items()
        }


def load_altered(folder: Path, plan: Plan, index: int, alteration: str) -> OnnxEngine:
    """Load an altered copy of a segment, on what the plan was made for.

    Args:
        folder: The plan's, unsealed.
        plan: The plan.
        index: Of the segment.
        alteration: One of ``ALTERATIONS``.

    Raises:
        SecureError: An altered file, or nothing in it to alter.
    """
    segment = plan.segments[index]
    contents = {
        file.path: read_file(folder, file.path, file.digest, max_bytes=MAX_FILE_BYTES)
        for file in segment.files
    }
    altered = alter(alteration, inline_segment(segment, contents))
    return OnnxEngine(
        segment,
        index,
        {segment.file: altered.SerializeToString()},
        threads=1,
        graph_level=GraphLevel.EXTENDED,
    )


def noisy(array: Array, most: float, rng: np.random.Generator) -> Array:
    """Return an array at a distance of ``most`` from this one; zeros stay zeros.

    Args:
        array: Of floats, not empty.
        most: The noise's largest element over the array's root mean square.
        rng: Draws the noise, evenly.
    """
    noise = rng.uniform(-1.0, 1.0, array.shape)
    scale = most * float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
    made: Array = array + noise * (scale / np.abs(noise).max())
    return made.astype(array.dtype)


def _factor(cheat: str) -> float:
    words = cheat.removeprefix(NOISE)
    try:
        factor = float(words)
    except ValueError:
        factor = -1.0
    if words == cheat or not 0 <= factor <= 1e9:
        raise ConfigurationError(
            f"cheat: got {cheat!r:.60}, want one of {', '.join(CHEATS)}"
        )
    return factor


def _in_shape(earlier: Outputs, honest: Outputs) -> Outputs:
    """Return earlier answers in the shapes that are wanted now: others are refused."""
    return {
        name: np.resize(earlier[name], array.shape).astype(array.dtype)
        for name, array in honest.items()
    }
