"""Replicas that commit and reveal: honestly, or by what they saw of a neighbour.

A copycat here has what goes over its neighbour's wire, as on a host or in a network
that hides nothing: commitments, and answers once they are shown. It computes nothing.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from bentoml_secure.consensus.commit_reveal import (
    OPENING_BYTES,
    Commitment,
    commit_answer,
    sign_commitment,
)
from bentoml_secure.digest import Digest
from bentoml_secure.serving.exchange import Opening
from bentoml_secure.tensors import Array, encode
from bentoml_secure.testing.faults import scaled
from bentoml_secure.testing.rogue.replica import Pledge, Replica, Turn, frame

SIGHT_SECONDS = 5.0
"""How long a copycat waits for something to copy."""

HANG_SECONDS = 60.0


def pledge(
    turn: Turn,
    outputs: Mapping[str, Array] | None = None,
    *,
    nonce: bytes | None = None,
    commitment: Digest | None = None,
) -> Pledge:
    """Return a signed commitment, and what it is to be opened with.

    Args:
        turn: The exchange.
        outputs: What is committed to; the honest ones by default.
        nonce: That opens it; random by default.
        commitment: Signed in place of the one that these give.
    """
    outputs = turn.outputs if outputs is None else outputs
    nonce = nonce or secrets.token_bytes(OPENING_BYTES)
    keys, task = turn.replica.core.identity.keys, turn.exchange.task
    made = turn.statement(outputs).outputs
    if commitment is None:
        commitment = commit_answer(task, turn.replica.name, made, nonce)
    signed = Commitment(task=task, key_document=keys.digest, commitment=commitment)
    envelope = sign_commitment(keys.signing, signed)
    return Pledge(
        turn=turn,
        outputs=outputs,
        nonce=nonce,
        commitment=commitment,
        said=json.dumps(envelope.to_json()).encode(),
    )


def opened(kept: Pledge) -> bytes:
    """Return the body that opens a commitment."""
    statement = json.loads(kept.turn.signed(kept.outputs))
    opening = Opening(nonce=kept.nonce, statement=statement)
    return frame(encode(kept.outputs), opening.encode())


@dataclass(frozen=True, slots=True)
class Committer:
    """How a replica commits, and how it reveals."""

    commit: Callable[[Turn], Awaitable[Pledge]]
    reveal: Callable[[Pledge], Awaitable[bytes]]


async def _honest(turn: Turn) -> Pledge:
    return pledge(turn)


async def _shown(kept: Pledge) -> bytes:
    return opened(kept)


async def _seen(turn: Turn, seen: Callable[[Replica], bool]) -> Replica:
    neighbour = turn.replica.neighbour or turn.replica
    async with asyncio.timeout(SIGHT_SECONDS):
        while not seen(neighbour):  # noqa: ASYNC110 - a neighbour tells nobody
            await asyncio.sleep(0.005)
    return neighbour


async def copied_answer(turn: Turn) -> Mapping[str, Array]:
    """Return what the neighbour answered to the same request, once that is shown.

    Raises:
        TimeoutError: Nothing was.
    """
    asked = turn.exchange.request_id
    return (await _seen(turn, lambda n: asked in n.shown)).shown[asked]


async def _late_copy(turn: Turn) -> Pledge:
    return pledge(turn, await copied_answer(turn))


async def _copied_commitment(turn: Turn) -> Pledge:
    asked = turn.exchange.request_id
    neighbour = await _seen(turn, lambda n: asked in n.pledged)
    return pledge(turn, commitment=neighbour.pledged[asked].commitment)


async def _copied_opening(kept: Pledge) -> bytes:
    """Open it as the neighbour opened its own: its answer, its nonce."""
    outputs = await copied_answer(kept.turn)
    neighbour = kept.turn.replica.neighbour or kept.turn.replica
    nonce = neighbour.pledged[kept.turn.exchange.request_id].nonce
    return opened(replace(kept, outputs=outputs, nonce=nonce))


async def _another_answer(kept: Pledge) -> bytes:
    return opened(replace(kept, outputs=scaled(1.01)(dict(kept.outputs))))


async def _another_nonce(kept: Pledge) -> bytes:
    return opened(replace(kept, nonce=bytes(OPENING_BYTES)))


async def _never(kept: Pledge) -> bytes:
    await asyncio.sleep(HANG_SECONDS)
    return opened(kept)


async def _at_once(turn: Turn) -> Pledge:
    made = pledge(turn)
    return replace(made, said=opened(made))


async def _of_neighbour(turn: Turn) -> Pledge:
    """Send on the neighbour's own envelope."""
    asked = turn.exchange.request_id
    neighbour = await _seen(turn, lambda n: asked in n.pledged)
    return replace(pledge(turn), said=neighbour.pledged[asked].said)


async def _lie(turn: Turn) -> Pledge:
    return pledge(turn, scaled(1.01)(dict(turn.outputs)))


async def _slow(turn: Turn) -> Pledge:
    await asyncio.sleep(SIGHT_SECONDS)
    return pledge(turn)


HONEST_COMMITTER = Committer(_honest, _shown)

COPYCAT = "copycat"
"""Answers with what its neighbour showed, whether or not replicas commit."""

COMMITTERS: Mapping[str, Committer] = {
    COPYCAT: Committer(_late_copy, _shown),
    "commitment-copied": Committer(_copied_commitment, _copied_opening),
    "commitment-of-neighbour": Committer(_of_neighbour, _copied_opening),
    "commitment-to-a-lie": Committer(_lie, _shown),
    "commitment-slow": Committer(_slow, _shown),
    "reveals-another-answer": Committer(_honest, _another_answer),
    "reveals-another-nonce": Committer(_honest, _another_nonce),
    "reveals-never": Committer(_honest, _never),
    "reveals-at-once": Committer(_at_once, _shown),
}
