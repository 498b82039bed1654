"""The farm: takes jobs from a store as they fit, and sees each to its end.

    claim, while a slot and memory are free
      -> start the attempt; note the link when it is there, the result when that is
      -> sign the result; it is kept in the transaction that ends the job
    meanwhile: renew leases; kill what was cancelled, is late, or is another's now

Several farms may share a store, on one host or on many. One that dies leaves nothing
but leases: they end by themselves, and at once where its successor on the same host
sees that it is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from bentoml_secure import metrics
from bentoml_secure.errors import ConfigurationError, SecureError, UnavailableError
from bentoml_secure.proofs.backends.one_shot import remove_abandoned
from bentoml_secure.proofs.jobs.job import Claim, JobKey
from bentoml_secure.proofs.jobs.store import JobStore
from bentoml_secure.proofs.owner import is_known_dead, own_name
from bentoml_secure.proofs.work import (
    Event,
    Executed,
    Executor,
    Failed,
    Finished,
    Payload,
)

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

LEASE_SECONDS = 30.0
POLL_SECONDS = 0.5
GRACE_SECONDS = 2.0
RETENTION_SECONDS = 30 * 86_400.0
_SIGN_ATTEMPTS = 5
_AGAIN_SECONDS = 1.0
_END_SECONDS = 5.0

Sign = Callable[[JobKey, bytes], bytes]
"""From a job's result to what is kept of it; blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a farm may take.

    Attributes:
        slots: Attempts at once.
        memory_bytes: That they may take together.
        lease_seconds: How long a job stays another farm's that has gone silent.
        poll_seconds: How often an idle farm looks for jobs that others put in.
        grace_seconds: That a farm waits for its attempts when it is to stop.
        retention_seconds: How long finished jobs stay that nobody collects.
    """

    slots: int
    memory_bytes: int
    lease_seconds: float = LEASE_SECONDS
    poll_seconds: float = POLL_SECONDS
    grace_seconds: float = GRACE_SECONDS
    retention_seconds: float = RETENTION_SECONDS

    def __post_init__(self) -> None:
        times = (self.lease_seconds, self.poll_seconds, self.retention_seconds)
        if self.slots < 1 or self.memory_bytes < 1 or min(times) <= 0:
            raise ConfigurationError(
                f"farm: got {self.slots} slots and {self.memory_bytes} bytes of memory "
                f"with times of {times} s, want more than nothing of each."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an attempt is.

    Attributes:
        key: Of its job.
        attempt: Its number.
        phase: "execute" or "prove".
        seconds: Since that began.
    """

    key: JobKey
    attempt: int
    phase: Literal["execute", "prove"]
    seconds: float


@dataclass(slots=True)
class _Attempt:
    claim: Claim
    events: asyncio.Queue[Event]
    began: float
    phase: Literal["execute", "prove"] = "execute"
    end: Callable[[], None] = lambda: None
    ended: Literal["", "lost", "stopped"] = ""
    task: asyncio.Task[None] | None = None

    def abandon(self, why: Literal["lost", "stopped"]) -> None:
        """End it early; what it tells then is not reported."""
        if not self.ended:
            self.ended = why
            self.end()


class Farm:
    """Works on the jobs of one queue. All but ``wake`` is for one event loop.

    Args:
        store: Where the jobs are; whoever made it closes it.
        executor: Runs attempts.
        budget: What they may take.
        sign: Makes of a result what is kept.
        clock: Of the times that it measures.
    """

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        budget: Budget,
        *,
        sign: Sign = lambda key, result: result,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._leases = store.leases
        self._executor = executor
        self._budget = budget
        self._sign = sign
        self._clock = clock
        self._attempts: dict[JobKey, _Attempt] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._stopping = False
        self._running: asyncio.Task[None] | None = None
        self._renewed = self._pruned = float("-inf")

    async def start(self) -> None:
        """Begin to work; returns at once."""
        if self._running is not None:
            raise ConfigurationError("farm: it has started already.")
        self._loop = asyncio.get_running_loop()
        self._running = self._loop.create_task(self._run(), name="proof farm")

    async def stop(self) -> None:
        """Claim no more, wait a little, then end attempts and give their jobs back."""
        self._stopping = True
        self.wake()
        if self._running is not None:
            await self._running
            self._running = None

    def wake(self) -> None:
        """Look for jobs now; any thread may call."""
        if self._loop is not None:
            # It closes before whoever else ends.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._woken.set)

    def progress(self) -> list[Progress]:
        """Return how far this farm's attempts are."""
        now = self._clock()
        return [
            Progress(
                key=attempt.claim.key,
                attempt=attempt.claim.attempt,
                phase=attempt.phase,
                seconds=now - attempt.began,
            )
            for attempt in self._attempts.values()
        ]

    async def cancel(self, key: JobKey, reason: str) -> bool:
        """End a job that nobody needs any more; return whether it was unfinished.

        Raises:
            UnavailableError: The store does not answer.
        """
        cancelled = await asyncio.to_thread(self._store.cancel, key, reason)
        if (attempt := self._attempts.get(key)) is not None:
            attempt.abandon("lost")
        return cancelled

    async def _run(self) -> None:
        try:
            await asyncio.to_thread(remove_abandoned)
        except OSError:
            # It costs room on the disk; a farm that does not begin costs every proof.
            logger.exception("farm: folders of dead ones are left")
        await self._answered(self._leases.release_dead, is_known_dead)
        woken = True
        while not self._stopping:
            try:
                await self._keep(woken=woken)
                await self._fill()
            except UnavailableError as error:
                logger.warning("farm: %s", error)
            # A farm that ends unseen leaves its service up and its proofs unmade.
            except Exception:
                logger.exception("farm: a turn failed; the next one goes on")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self._budget.poll_seconds)
            woken = self._woken.is_set()
            self._woken.clear()
        await self._end_attempts()

    async def _answered(self, call: Callable[..., _T], *given: object) -> _T | None:
        """Call the store until it answers; None if the farm has stopped before."""
        while True:
            try:
                return await asyncio.to_thread(call, *given)
            except UnavailableError as error:
                logger.warning("farm: %s", error)
            if self._stopping:
                return None
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _keep(self, *, woken: bool) -> None:
        """Renew what is ours, let go of what is not, and clear up, each in its time."""
        now = self._clock()
        # What wakes a farm may be the cancellation of what it works on.
        if woken or now - self._renewed >= self._budget.lease_seconds / 3:
            swept = await asyncio.to_thread(self._leases.sweep)
            for key in (*swept.late, *swept.exhausted):
                logger.warning("farm: job %s is late, or was lost too often", key)
                metrics.count_verification("proof", str(key.segment), "fail")
            await self._renew()
            self._renewed = now
        if now - self._pruned >= self._budget.retention_seconds / 24:
            await asyncio.to_thread(self._store.prune, self._budget.retention_seconds)
            self._pruned = now

    async def _renew(self) -> None:
        held = {key: each.claim.attempt for key, each in self._attempts.items()}
        if not held:
            return
        seconds = self._budget.lease_seconds
        kept = await asyncio.to_thread(self._leases.renew, held, seconds=seconds)
        for key in held.keys() - kept:
            # It may have ended in between.
            if (attempt := self._attempts.get(key)) is not None:
                attempt.abandon("lost")

    async def _fill(self) -> None:
        while len(self._attempts) < self._budget.slots and not self._stopping:
            taken = sum(each.claim.memory_bytes for each in self._attempts.values())
            claim = await asyncio.to_thread(
                self._leases.claim,
                own_name(),
                seconds=self._budget.lease_seconds,
                free_bytes=self._budget.memory_bytes - taken,
                total_bytes=self._budget.memory_bytes,
            )
            if claim is None:
                break
            self._begin(claim)
        depth = await asyncio.to_thread(self._store.depth)
        metrics.set_proof_queue_depth(sum(depth.values()))

    def _begin(self, claim: Claim) -> None:
        if (other := self._attempts.get(claim.key)) is not None:
            # Its lease had ended while it worked: the store was out of reach.
            other.abandon("lost")
        loop = asyncio.get_running_loop()
        attempt = _Attempt(claim, asyncio.Queue(), self._clock())

        def tell(event: Event) -> None:
            """Hand on what the executor's thread says."""
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(attempt.events.put_nowait, event)

        payload = Payload(
            key=claim.key,
            order=claim.order,
            link=claim.link,
            memory_bytes=claim.memory_bytes,
        )
        attempt.end = self._executor.start(payload, tell)
        self._attempts[claim.key] = attempt
        attempt.task = loop.create_task(self._see_through(attempt))

    async def _see_through(self, attempt: _Attempt) -> None:
        claim = attempt.claim
        try:
            while not await self._take(attempt, await attempt.events.get()):
                pass
        except SecureError as error:
            again = isinstance(error, UnavailableError)
            await self._failed(attempt, Failed(str(error), retry=again))
        except Exception:
            logger.exception("farm: job %s", claim.key)
            await self._failed(attempt, Failed("the farm failed", retry=True))
        finally:
            if self._attempts.get(claim.key) is attempt:
                del self._attempts[claim.key]
            self._woken.set()

    async def _take(self, attempt: _Attempt, event: Event) -> bool:
        """Do what an event asks for; return whether it is the last."""
        claim = attempt.claim
        match event:
            case Executed(link):
                self._observe(attempt)
                attempt.phase = "prove"
                await self._answered(
                    self._leases.executed, claim.key, claim.attempt, link
                )
                return False
            case Finished(result):
                self._observe(attempt)
                await self._finished(attempt, result)
            case Failed():
                await self._failed(attempt, event)
        return True

    def _observe(self, attempt: _Attempt) -> None:
        now, segment = self._clock(), str(attempt.claim.key.segment)
        metrics.observe_proof(segment, attempt.phase, now - attempt.began)
        attempt.began = now

    async def _finished(self, attempt: _Attempt, result: bytes) -> None:
        key, number = attempt.claim.key, attempt.claim.attempt
        signed = await self._signed(key, result)
        if await self._answered(self._leases.finish, key, number, signed):
            metrics.count_verification("proof", str(key.segment), "pass")
        else:
            logger.info("farm: job %s has been taken from attempt %s", key, number)

    async def _signed(self, key: JobKey, result: bytes) -> bytes:
        """Sign; what attests may be out of reach for a moment, and a proof is dear."""
        for _ in range(_SIGN_ATTEMPTS - 1):
            try:
                return await asyncio.to_thread(self._sign, key, result)
            except UnavailableError as error:
                logger.warning("farm: job %s: %s", key, error)
            await asyncio.sleep(_AGAIN_SECONDS)
        return await asyncio.to_thread(self._sign, key, result)

    async def _failed(self, attempt: _Attempt, event: Failed) -> None:
        key, number = attempt.claim.key, attempt.claim.attempt
        if attempt.ended == "lost":
            return
        if attempt.ended == "stopped":
            await self._answered(self._leases.release, key, number)
            return
        logger.warning("farm: job %s, attempt %s: %s", key, number, event.reason)
        fail = partial(self._leases.fail, retry=event.retry)
        for_good = await self._answered(fail, key, number, event.reason)
        metrics.count_verification(
            "proof", str(key.segment), "fail" if for_good else "error"
        )

    async def _end_attempts(self) -> None:
        tasks = [each.task for each in self._attempts.values() if each.task is not None]
        if not tasks:
            return
        _, left = await asyncio.wait(tasks, timeout=self._budget.grace_seconds)
        for attempt in list(self._attempts.values()):
            attempt.abandon("stopped")
        if left:
            _, left = await asyncio.wait(left, timeout=_END_SECONDS)
        for task in left:
            # Its lease ends by itself.
            task.cancel()
