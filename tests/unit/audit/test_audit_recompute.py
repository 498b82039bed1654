"""Recomputing: what agrees, what differs, what could not be done and why."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from bentoml_secure.audit.recompute import Recomputation, Served, Verdict, recompute
from bentoml_secure.consensus.asks import Answer
from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.consensus.tally import Vote
from bentoml_secure.errors import ConfigurationError, UnavailableError
from bentoml_secure.signing import Envelope
from bentoml_secure.tensors import Array, commit

DISTANCE = load_rule("within_tolerance").distance
SALTS = {"y": bytes(32)}
OUTPUTS = {"y": np.array([1.0, 2.0, 3.0], np.float32)}
ENVELOPE = Envelope(payload_type="t", payload=b"{}", key_id="k", signature=bytes(64))


@dataclass(frozen=True)
class MadeHere:
    tensors: Mapping[str, Array]
    envelope: Envelope = ENVELOPE


def served(segment: int = 0, infer: int = 0) -> Served:
    return Served(
        infer=infer,
        segment=segment,
        auditor=f"referee {segment}",
        inputs={"x": np.zeros(3, np.float32)},
        outputs=OUTPUTS,
        commitments=commit(OUTPUTS, SALTS),
        tolerance=2e-5,
        distance=DISTANCE,
    )


def answer(
    asked: Served, tensors: Mapping[str, Array], name: str | None = None
) -> Answer[MadeHere]:
    committed = commit(tensors, SALTS)
    vote = Vote(
        replica=name or asked.auditor, commitments=tuple(sorted(committed.items()))
    )
    return Answer(vote=vote, value=MadeHere(tensors))


async def audit(asked: Served, made: Mapping[str, Array]) -> Recomputation:
    async def ask(given: Served) -> Answer[MadeHere]:
        assert given is asked
        return answer(given, made)

    (found,) = await recompute([asked], ask, deadline_seconds=5)
    return found


async def test_the_same_answer_agrees_at_distance_0() -> None:
    def never(_a: Mapping[str, Array], _b: Mapping[str, Array]) -> float:
        raise AssertionError("commitments are equal: nothing is to be measured")

    asked = replace(served(2, 1), distance=never)
    assert await audit(asked, {"y": OUTPUTS["y"].copy()}) == Recomputation(
        infer=1,
        segment=2,
        replica="referee 2",
        verdict=Verdict.AGREES,
        statement=ENVELOPE,
        distance=0.0,
        reason=None,
    )


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1 + 1e-6, Verdict.AGREES), (1 + 1e-3, Verdict.DIFFERS)]
)
async def test_another_answer_is_measured(factor: float, verdict: Verdict) -> None:
    made = {"y": (OUTPUTS["y"] * factor).astype(np.float32)}
    found = await audit(served(), made)
    assert found.verdict is verdict
    assert found.distance == DISTANCE(OUTPUTS, made)
    assert found.statement == ENVELOPE


async def test_the_tolerance_itself_agrees() -> None:
    made = {"y": OUTPUTS["y"] * np.float32(1.001)}
    distance = DISTANCE(OUTPUTS, made)
    assert distance is not None
    at = replace(served(), tolerance=distance)
    assert (await audit(at, made)).verdict is Verdict.AGREES
    below = replace(served(), tolerance=np.nextafter(distance, 0))
    assert (await audit(below, made)).verdict is Verdict.DIFFERS


async def test_what_cannot_be_compared_differs() -> None:
    found = await audit(served(), {"y": np.zeros(4, np.float32)})
    assert (found.verdict, found.distance) == (Verdict.DIFFERS, None)
    assert found.statement == ENVELOPE


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (UnavailableError("no answer", remedy="x"), "UnavailableError: no answer"),
        (ConnectionResetError(104, "reset"), "ConnectionResetError: [Errno 104] reset"),
        (TimeoutError(), "timed out"),
        (ZeroDivisionError(), "failed unexpectedly: ZeroDivisionError"),
    ],
)
async def test_who_fails_is_absent_and_the_others_go_on(
    raised: Exception, said: str
) -> None:
    async def ask(given: Served) -> Answer[MadeHere]:
        if given.segment == 0:
            raise raised
        return answer(given, OUTPUTS)

    found = await recompute([served(0), served(1)], ask, deadline_seconds=5)
    assert [f.verdict for f in found] == [Verdict.ABSENT, Verdict.AGREES]
    assert (found[0].reason, found[0].statement, found[0].distance) == (
        said,
        None,
        None,
    )


async def test_an_answer_under_another_name_is_none() -> None:
    async def ask(given: Served) -> Answer[MadeHere]:
        return answer(given, OUTPUTS, name="somebody")

    (found,) = await recompute([served()], ask, deadline_seconds=5)
    assert found.verdict is Verdict.ABSENT
    assert found.reason == "answered as 'somebody'"


async def test_what_is_not_done_by_the_deadline_is_absent() -> None:
    async def ask(given: Served) -> Answer[MadeHere]:
        await asyncio.sleep(60 if given.segment else 0)
        return answer(given, OUTPUTS)

    # Beside the timer, only ``ask`` takes time; the second is out of it at once.
    found = await recompute(
        [served(0), served(1), served(2)], ask, deadline_seconds=0.2
    )
    assert [f.verdict for f in found] == ["agrees", "absent", "absent"]
    assert {f.reason for f in found[1:]} == {"not recomputed by the audit's deadline"}


async def test_segments_are_recomputed_one_at_a_time() -> None:
    events: list[str] = []

    def each() -> Iterator[Served]:
        for index in range(3):
            events.append(f"made {index}")
            yield served(index)

    async def ask(given: Served) -> Answer[MadeHere]:
        await asyncio.sleep(0)
        events.append(f"asked {given.segment}")
        return answer(given, OUTPUTS)

    await recompute(each(), ask, deadline_seconds=5)
    assert events == [f"{verb} {i}" for i in range(3) for verb in ("made", "asked")]


@pytest.mark.parametrize("distance", [float("nan"), float("inf"), -1.0])
async def test_a_rule_that_measures_nonsense_is_refused(distance: float) -> None:
    asked = replace(served(), distance=lambda _a, _b: distance)
    with pytest.raises(ConfigurationError, match="infer 0 segment 0: got the distance"):
        await audit(asked, {"y": OUTPUTS["y"] * 2})


async def test_cancelling_an_audit_ends_it() -> None:
    started = asyncio.Event()

    async def ask(_given: Served) -> Answer[MadeHere]:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError("never reached")

    task = asyncio.create_task(recompute([served()], ask, deadline_seconds=60))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_nobody_is_asked_where_nothing_was_served() -> None:
    async def ask(_given: Served) -> Answer[MadeHere]:
        raise AssertionError("never reached")

    assert asyncio.run(recompute([], ask, deadline_seconds=5)) == ()
