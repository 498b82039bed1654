"""How far an embedding may be off while nobody notices: lies just within tolerance.

A replica whose answer is within tolerance of the honest ones is believed, and may even
be the one whose answer goes on. Two kinds of such lies are followed to the end:

    random   noise that is drawn evenly, its largest element all that is allowed
    aimed    every element moved by all that is allowed, in the direction that moves
             the embedding most: by the Jacobian of what comes after the segment, taken
             by differences, and a power iteration over signs. What is reported is a
             run with it, not an estimate; no claim that nothing is worse
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.cheats_stage import Stage
from bentoml_secure.split import Chain, load_chain
from bentoml_secure.tensors import Array
from bentoml_secure.testing.cheats import noisy
from examples.encoder.prepare import PLAN, TOKENIZER, samples

SIZE = 0.999
"""Of the lies, in tolerances."""

EVERYWHERE = -1
_RANDOM_TEXTS = tuple((number,) for number in range(0, 64, 2))
_AIMED_TEXTS = ((24,), (60,))
_BATCH = 128
_STEP = 1e-2
_ITERATIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """What lies in one segment did to embeddings, at worst.

    Attributes:
        segment: Which; ``EVERYWHERE`` for one in each.
        kind: ``random`` or ``aimed``.
        largest: Of the differences between two elements.
        cosine: Least, of the embedding and the honest one.
    """

    segment: int
    kind: str
    largest: float
    cosine: float

    def to_json(self) -> dict[str, Any]:
        """Return it as the command prints it."""
        return asdict(self)


Tensors = Mapping[str, Array]
Lies = Mapping[int, Array]
"""What is added to a segment's main output, by segment."""


def deviations(stage: Stage) -> Iterator[Deviation]:
    """Follow lies in each segment, and in all at once, to the embedding."""
    chain = load_chain(stage.models / PLAN, threads=1)
    tokenizer = stage.models / TOKENIZER
    rng = np.random.default_rng(7)
    for kind, texts in (("random", _RANDOM_TEXTS), ("aimed", _AIMED_TEXTS)):
        found: dict[int, list[tuple[float, float]]] = {}
        for feed in samples(tokenizer, texts):
            honest = chain.run_all(feed)
            every = {
                index: _random(chain, honest, index, rng)
                if kind == "random"
                else _aimed(chain, honest, index)
                for index in range(len(chain.segments))
            }
            for index, lie in every.items():
                found.setdefault(index, []).append(_effect(chain, feed, {index: lie}))
            found.setdefault(EVERYWHERE, []).append(_effect(chain, feed, every))
        for index, effects in found.items():
            largest, cosines = zip(*effects, strict=True)
            yield Deviation(
                segment=index, kind=kind, largest=max(largest), cosine=min(cosines)
            )


def main_output(chain: Chain, index: int) -> str:
    """Return the name of a segment's activations; the others are a mask."""
    return chain.segments[index].segment.outputs[-1].name


def _allowed(chain: Chain, honest: Tensors, index: int) -> float:
    array = honest[main_output(chain, index)]
    scale = float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
    return SIZE * chain.segments[index].segment.tolerance * scale


def _random(
    chain: Chain, honest: Tensors, index: int, rng: np.random.Generator
) -> Array:
    array = honest[main_output(chain, index)]
    most = SIZE * chain.segments[index].segment.tolerance
    lie: Array = noisy(array, most, rng) - array
    return lie


def _aimed(chain: Chain, honest: Tensors, index: int) -> Array:
    """Return the signs that move the embedding most, times what is allowed."""
    array = honest[main_output(chain, index)]
    jacobian = _jacobian(chain, honest, index)
    # From the row of the element that can be moved furthest.
    signs = np.sign(jacobian[np.argmax(np.abs(jacobian).sum(1))])
    for _ in range(_ITERATIONS):
        signs = np.sign(jacobian.T @ (jacobian @ signs))
    lie: Array = (signs * _allowed(chain, honest, index)).reshape(array.shape)
    return lie.astype(array.dtype)


def _jacobian(chain: Chain, honest: Tensors, index: int) -> Array:
    """Return float64[384, elements]: of the embedding by a segment's activations."""
    name = main_output(chain, index)
    array = honest[name]
    if index == len(chain.segments) - 1:
        return np.eye(array.size)
    step = _STEP * float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
    columns = []
    for start in range(0, array.size, _BATCH):
        moved = np.arange(start, min(start + _BATCH, array.size))
        many = {n: np.repeat(a, len(moved), axis=0) for n, a in honest.items()}
        many[name] = many[name].copy()
        many[name].reshape(len(moved), -1)[np.arange(len(moved)), moved] += step
        made = _rest(chain, many, index + 1)
        base = honest[main_output(chain, len(chain.segments) - 1)]
        columns.append((made.astype(np.float64) - base) / step)
    jacobian: Array = np.concatenate(columns).T
    return jacobian


def _rest(chain: Chain, made: Tensors, start: int, lies: Lies | None = None) -> Array:
    """Run the segments from ``start`` on; return the embedding."""
    tensors = dict(made)
    for loaded in chain.segments[start:]:
        tensors |= loaded.run(
            {spec.name: tensors[spec.name] for spec in loaded.segment.inputs}
        )
        name = main_output(chain, loaded.index)
        if lies is not None and loaded.index in lies:
            tensors[name] = tensors[name] + lies[loaded.index]
    return tensors[main_output(chain, len(chain.segments) - 1)]


def _effect(chain: Chain, feed: Tensors, lies: Lies) -> tuple[float, float]:
    """Return the largest difference and the cosine of embeddings with and without."""
    honest = _rest(chain, feed, 0)[0].astype(np.float64)
    moved = _rest(chain, feed, 0, lies)[0].astype(np.float64)
    cosine = honest @ moved / (np.linalg.norm(honest) * np.linalg.norm(moved))
    return float(np.abs(honest - moved).max()), float(cosine)
