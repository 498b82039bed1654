"""A process with a farm, which kills itself where a test says.

    python -m tests.service.farming URL WORK STEP FOLDER

It ends by itself when no job is left. STEP is where it dies, once for each file that
it can take from FOLDER/deaths.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bentoml_secure.proofs.backends.ezkl import Ezkl
from bentoml_secure.proofs.executors.local import Local
from bentoml_secure.proofs.farm import Budget, Farm
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.proofs.jobs.store import JobStore
from bentoml_secure.proofs.proof import Limits, ProvingKey, VerificationKey
from bentoml_secure.proofs.work import Payload, Told, Work

QUEUE = "farming"
SIGNATURE_BYTES = 16
LIMITS = Limits(memory_bytes=4 << 30, seconds=120)
BUDGET = Budget(slots=2, memory_bytes=1 << 40, lease_seconds=600, poll_seconds=0.05)

STEPS = (
    "before claim",
    "after claim",
    "before executed",
    "after executed",
    "before sign",
    "after sign",
    "before finish",
    "after finish",
)


class StandInWork:
    """Makes no proof: what it returns follows from what it is given."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def work(self, payload: Payload, executed: Told) -> bytes:
        executed(b"link " + payload.order)
        time.sleep(self._seconds)
        return hashlib.sha256(payload.order + (payload.link or b"")).digest()


class RealWork:
    """Proves the circuit in a folder; orders are its inputs, in plain."""

    def __init__(self, folder: Path) -> None:
        self._key = ProvingKey(
            circuit=folder / "circuit",
            key=folder / "pk",
            verification=VerificationKey(
                settings=(folder / "settings").read_bytes(),
                key=(folder / "vk").read_bytes(),
            ),
            srs=folder / "srs",
        )

    def work(self, payload: Payload, executed: Told) -> bytes:
        boundary, salt = json.loads(payload.order)
        proof = Ezkl().prove(
            self._key,
            tuple(boundary),
            tuple(salt),
            LIMITS,
            lambda made: executed(json.dumps(made).encode()),
        )
        return json.dumps(proof.to_json()).encode()


WORKS: Mapping[str, Callable[[Path], Work]] = {
    "stand-in": lambda folder: StandInWork(),
    "slow stand-in": lambda folder: StandInWork(0.3),
    "real": RealWork,
}


def die(folder: Path) -> None:
    """End as by kill -9, if a death is left."""
    for death in (folder / "deaths").iterdir():
        try:
            death.unlink()
        except FileNotFoundError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)


def mortal(call: Callable[..., Any], name: str, step: str, folder: Path) -> Any:
    """Return a call that may be the last."""

    def called(*given: Any, **named: Any) -> Any:
        if step == f"before {name}":
            die(folder)
        answer = call(*given, **named)
        # A farm looks for jobs when there are none, too.
        if step == f"after {name}" and answer is not None:
            die(folder)
        return answer

    return called


def sign(key: JobKey, result: bytes) -> bytes:
    """Sign in a way that another time would be seen: no two are the same."""
    return result + os.urandom(SIGNATURE_BYTES)


async def farm(url: str, work: str, step: str, folder: Path) -> None:
    """Work until no job is left."""
    store = JobStore(url, queue=QUEUE)
    for name in ("claim", "executed", "finish"):
        call = mortal(getattr(store.leases, name), name, step, folder)
        setattr(store.leases, name, call)
    made = Farm(
        store,
        Local(WORKS[work](folder)),
        BUDGET,
        sign=mortal(sign, "sign", step, folder),
    )
    await made.start()
    # What is awaited is in a database.
    while sum((await asyncio.to_thread(store.depth)).values()):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await made.stop()
    store.close()


if __name__ == "__main__":
    URL, WORK, STEP, FOLDER = sys.argv[1:]
    asyncio.run(farm(URL, WORK, STEP, Path(FOLDER)))
