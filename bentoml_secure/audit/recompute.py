"""Recomputing an answered request: each segment once more, by somebody not asked yet.

Each segment is given the inputs that its committee agreed on, so that a fault shows
where it happened and nowhere after. Segments are recomputed one at a time: an audit
is in no hurry, and holds one segment's tensors beyond those that its caller holds.

Transport and what makes an answer believable are the caller's: ``ask`` brings one that
is verified against its tensors and signature, or raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from bentoml_secure.consensus.asks import Answer, attempt
from bentoml_secure.consensus.tally import Absence
from bentoml_secure.digest import Digest, is_finite_number
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.signing import Envelope
from bentoml_secure.tensors import Array


class Verdict(StrEnum):
    """What one recomputed segment says of the answer that was served."""

    AGREES = "agrees"
    DIFFERS = "differs"
    ABSENT = "absent"


class Made(Protocol):
    """What an auditor made in one exchange, verified."""

    @property
    def tensors(self) -> Mapping[str, Array]:
        """Its outputs by name."""
        ...

    @property
    def envelope(self) -> Envelope:
        """Its signed statement."""
        ...


M = TypeVar("M", bound=Made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One segment of an answered request, as it was served.

    Attributes:
        infer: Which ``infer`` of the request, from 0.
        segment: Which segment of the plan, from 0.
        auditor: Who recomputes it: a party of the receipt that was not asked.
        inputs: That the committee was given.
        outputs: That it agreed on.
        commitments: Of ``outputs``, by name.
        tolerance: The largest distance that agrees.
        distance: Of two answers' tensors, as the segment's rule gives it.
    """

    infer: int
    segment: int
    auditor: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    commitments: Mapping[str, Digest]
    tolerance: float
    distance: Callable[[Mapping[str, Array], Mapping[str, Array]], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputation:
    """What became of recomputing one segment.

    Attributes:
        infer: Which ``infer`` of the request, from 0.
        segment: Which segment of the plan, from 0.
        replica: The auditor.
        verdict: Whether its answer is the one that was served.
        statement: What it signed; None where it is absent.
        distance: Of its answer from the served one; None where it is absent, or the
            two cannot be compared, which differs.
        reason: Why it is absent, else None.
    """

    infer: int
    segment: int
    replica: str
    verdict: Verdict
    statement: Envelope | None = None
    distance: float | None = None
    reason: str | None = None


async def recompute(
    served: Iterable[Served],
    ask: Callable[[Served], Awaitable[Answer[M]]],
    *,
    deadline_seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Recomputation, ...]:
    """Recompute an answered request and compare each segment with what was served.

    Args:
        served: Segments, each looked at once and in turn: tensors may be made then.
        ask: Brings the auditor's answer. What it raises makes it absent.
        deadline_seconds: From now, for all of them; those not done by then are absent.
        clock: Monotonic seconds.

    Raises:
        ConfigurationError: A distance that no rule may give; nothing can be said then.
    """
    ends = clock() + deadline_seconds
    return tuple(
        [await _recompute_one(segment, ask, ends - clock()) for segment in served]
    )


async def _recompute_one(
    served: Served, ask: Callable[[Served], Awaitable[Answer[M]]], seconds: float
) -> Recomputation:
    outcome: Answer[M] | Absence
    outcome = Absence(
        replica=served.auditor, reason="not recomputed by the audit's deadline"
    )
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                outcome = await attempt(lambda _: ask(served), served.auditor)
    if isinstance(outcome, Absence):
        return Recomputation(
            infer=served.infer,
            segment=served.segment,
            replica=served.auditor,
            verdict=Verdict.ABSENT,
            reason=outcome.reason,
        )
    distance = await _distance(served, outcome)
    agrees = distance is not None and distance <= served.tolerance
    return Recomputation(
        infer=served.infer,
        segment=served.segment,
        replica=served.auditor,
        verdict=Verdict.AGREES if agrees else Verdict.DIFFERS,
        statement=outcome.value.envelope,
        distance=distance,
    )


async def _distance(served: Served, answer: Answer[M]) -> float | None:
    if dict(answer.vote.commitments) == served.commitments:
        return 0.0
    # Distances of large tensors take milliseconds: others are served meanwhile.
    distance = await asyncio.to_thread(
        served.distance, served.outputs, answer.value.tensors
    )
    if distance is not None and not (is_finite_number(distance) and distance >= 0):
        raise ConfigurationError(
            f"audit of infer {served.infer} segment {served.segment}: got the distance "
            f"{distance}, want a finite number from 0, or none.",
            remedy="Mend the rule that measured it.",
        )
    return distance
