"""Where to cut: even work on both sides, little to send, and where one may.

A cut after step i sends what was made up to i (or came in) and is read after it. Any
such cut is valid, whatever skips over it: each of those tensors crosses. Chosen cuts
minimise

    sum over segments (FLOPs share * n - 1)^2 + sum over cuts bytes / largest / (n - 1)

by dynamic programming over at most ``_MOST_CANDIDATES`` places: on a larger graph, the
cheapest one of each stretch of equal work.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.split.costs import Costs
from bentoml_secure.split.graph import MODEL_INPUT, Analysis
from bentoml_secure.split.specs import Specs
from bentoml_secure.tensors import MAX_TENSORS

_MOST_CANDIDATES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A place where the graph may be cut.

    Attributes:
        step: The last step before the cut.
        crossing: What is made up to there and read after it.
        cost_bytes: Of those tensors.
        work: FLOPs of the steps up to there.
    """

    step: int
    crossing: tuple[str, ...]
    cost_bytes: int
    work: int


def crossing(analysis: Analysis, step: int) -> tuple[str, ...]:
    """Return what crosses a cut after ``step``, in the order in which it was made."""
    return tuple(
        name
        for name, made in analysis.made_at.items()
        if made <= step < analysis.last_read.get(name, MODEL_INPUT)
    )


def candidates(
    analysis: Analysis, specs: Specs, costs: Costs
) -> tuple[tuple[Candidate, ...], int]:
    """Return every place where the graph may be cut, and its whole work in FLOPs."""
    made: list[list[str]] = [[] for _ in analysis.steps]
    read: list[list[str]] = [[] for _ in analysis.steps]
    for name, step in analysis.made_at.items():
        if step != MODEL_INPUT and analysis.last_read.get(name, MODEL_INPUT) > step:
            made[step].append(name)
    for name, step in analysis.last_read.items():
        read[step].append(name)
    # A dict keeps the order in which values were made.
    live = {name: 0 for name in analysis.inputs if name in analysis.last_read}
    live = {name: costs.bytes_of(name) for name in live}
    barred = {name for name in live if specs.refusal(name)}
    found, work = [], 0
    for step, index in enumerate(analysis.steps):
        for name in made[step]:
            live[name] = costs.bytes_of(name)
            if specs.refusal(name):
                barred.add(name)
        for name in read[step]:
            live.pop(name, None)
            barred.discard(name)
        work += costs.flops(analysis.nodes[index])
        if step + 1 < len(analysis.steps) and not barred and len(live) <= MAX_TENSORS:
            found.append(
                Candidate(
                    step=step,
                    crossing=tuple(live),
                    cost_bytes=sum(live.values()),
                    work=work,
                )
            )
    return tuple(found), work


def choose(
    places: Sequence[Candidate], work: int, segments: int, barred: Collection[int] = ()
) -> tuple[int, ...]:
    """Return the steps after which to cut a graph into ``segments``.

    Args:
        places: Where it may be cut.
        work: FLOPs of the whole graph.
        segments: How many are wanted, at least 1.
        barred: Steps that were tried and are not to be cut after.

    Raises:
        ConfigurationError: It cannot be cut that often; the message says how often.
    """
    free = [place for place in places if place.step not in barred]
    cuts = segments - 1
    if cuts > len(free):
        unequal = len(places) - len(free)
        reason = f" ({unequal} cuts would change what it computes)" if unequal else ""
        raise ConfigurationError(
            f"segments: got {segments}, this graph can be cut into "
            f"{len(free) + 1} at most{reason}.",
            remedy=f"Ask for {len(free) + 1} or fewer.",
        )
    if not cuts:
        return ()
    free = _thinned(free, work, max(_MOST_CANDIDATES, 2 * cuts))
    share = np.array([place.work for place in free], float) / max(work, 1) * segments
    sent = np.array([place.cost_bytes for place in free], float)
    sent /= max(sent.max(), 1.0) * cuts
    count = len(free)
    best = (share - 1) ** 2 + sent
    before = []
    # uneven[p, j]: what a segment between the cuts p and j adds to the sum.
    uneven = (share[None, :] - share[:, None] - 1) ** 2
    uneven[np.tril_indices(count)] = np.inf
    for _ in range(cuts - 1):
        through = best[:, None] + uneven
        before.append(through.argmin(axis=0))
        best = through.min(axis=0) + sent
    last = int((best + (segments - share - 1) ** 2).argmin())
    picked = [last]
    for previous in reversed(before):
        picked.append(int(previous[picked[-1]]))
    return tuple(free[place].step for place in reversed(picked))


def _thinned(free: list[Candidate], work: int, most: int) -> list[Candidate]:
    """Keep the cheapest place of each stretch of equal work, the first if several."""
    if len(free) <= most:
        return free
    kept: dict[tuple[int, int], Candidate] = {}
    # Half by work, half by position: a stretch without work must not vanish.
    for rank, place in enumerate(free):
        for key in (
            (0, place.work * (most // 2) // max(work + 1, 1)),
            (1, rank * (most // 2) // len(free)),
        ):
            if key not in kept or place.cost_bytes < kept[key].cost_bytes:
                kept[key] = place
    return sorted({p.step: p for p in kept.values()}.values(), key=lambda p: p.step)


def named(
    analysis: Analysis, specs: Specs, cuts: Sequence[str | Sequence[str]]
) -> tuple[int, ...]:
    """Return the steps that the named cuts stand after, in order.

    A cut is one name or several; it stands right after the last of the nodes that
    make them. Whatever else is needed later crosses it too.

    Raises:
        ConfigurationError: No node makes a name, nothing comes after it, what crosses
            cannot be sent, or two cuts are one.
    """
    steps = []
    for cut in cuts:
        names = (cut,) if isinstance(cut, str) else tuple(cut)
        if not names:
            raise ConfigurationError("cut: got no tensor name, want at least one")
        step = max(_maker(analysis, name) for name in names)
        if step + 1 == len(analysis.steps):
            raise ConfigurationError(
                f"cut {names[-1]!r:.100}: no node that an output needs comes after it"
            )
        for name in (*names, *crossing(analysis, step)):
            if reason := specs.refusal(name):
                raise ConfigurationError(
                    f"cut {names[-1]!r:.100}: {name!r:.100} cannot cross it: {reason}"
                )
        if step in steps:
            raise ConfigurationError(f"cut {names[-1]!r:.100}: is the same as another")
        steps.append(step)
    return tuple(sorted(steps))


def _maker(analysis: Analysis, name: str) -> int:
    step = analysis.made_at.get(name)
    if step is not None and step != MODEL_INPUT:
        return step
    if step == MODEL_INPUT:
        reason = "is an input of the model: nothing comes before it"
    elif name in analysis.constants or name in analysis.weights:
        reason = "depends on weights alone: it is remade, not sent"
    else:
        near = difflib.get_close_matches(name, list(analysis.made_at), n=3)
        reason = "no node that an output needs makes it"
        reason += f"; did you mean {', '.join(map(repr, near))}" if near else ""
    raise ConfigurationError(
        f"cut {name!r:.100}: {reason}.",
        remedy="Name a value that a node of the main graph makes.",
    )
