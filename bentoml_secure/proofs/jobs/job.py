"""The nouns of the job store: keys, jobs, claims, and what is told of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from bentoml_secure.digest import REQUEST_ID_BYTES, parse_hex
from bentoml_secure.errors import MalformedInputError

MAX_INDEX = 4096
"""Of infers and segments; no request has as many."""

MAX_ORDER_BYTES = 64 << 20
MAX_LINK_BYTES = 16 << 20
MAX_RESULT_BYTES = 32 << 20
MAX_REASON = 500


class Priority(StrEnum):
    """What is proven first."""

    CRITICAL = "critical"
    AUDIT = "audit"


class State(StrEnum):
    """Where a job stands."""

    WAITING = "waiting"
    """For the link of the segment before."""
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED = (State.WAITING, State.READY, State.RUNNING)


@dataclass(frozen=True, slots=True, order=True)
class JobKey:
    """Which proof a job is to make.

    Attributes:
        receipt_id: Of the receipt that owes it: 32 hex digits.
        infer: Index of the ``infer``.
        segment: Index of the segment.
    """

    receipt_id: str
    infer: int
    segment: int

    def __post_init__(self) -> None:
        parse_hex(self.receipt_id, what="job receipt id", length=REQUEST_ID_BYTES)
        for name, index in (("infer", self.infer), ("segment", self.segment)):
            if type(index) is not int or not 0 <= index < MAX_INDEX:
                raise MalformedInputError(
                    f"job {name}: got {index!r:.40}, want 0 to {MAX_INDEX - 1}"
                )

    def __str__(self) -> str:
        return f"{self.receipt_id}/{self.infer}/{self.segment}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A proof that is asked for.

    Attributes:
        key: Which.
        order: What to prove, encrypted to the prover.
        priority: What goes first.
        deadline: After which nobody needs it.
        memory_bytes: That making it takes, at most.
    """

    key: JobKey
    order: bytes
    priority: Priority
    deadline: datetime
    memory_bytes: int

    def __post_init__(self) -> None:
        require_size(self.order, MAX_ORDER_BYTES, what=f"job {self.key} order")
        if self.deadline.tzinfo is None:
            raise MalformedInputError(f"job {self.key} deadline: has no time zone")
        # What a column of a database holds.
        if not 0 < self.memory_bytes < 1 << 62:
            raise MalformedInputError(
                f"job {self.key} memory: got {self.memory_bytes} bytes"
            )


def require_size(data: bytes, most: int, *, what: str) -> None:
    """Refuse what is empty or too long.

    Raises:
        MalformedInputError: It is.
    """
    if not 0 < len(data) <= most:
        raise MalformedInputError(f"{what}: got {len(data)} bytes, want 1 to {most}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job that is one worker's for now.

    Attributes:
        key: Which.
        attempt: Number of the lease, from 1; what is reported names it.
        order: What to prove.
        link: From the segment before; None for the first segment.
        memory_bytes: That it takes, at most.
        deadline: After which nobody needs it.
    """

    key: JobKey
    attempt: int
    order: bytes
    link: bytes | None
    memory_bytes: int
    deadline: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """Where a job stands, for whoever waits for it.

    Attributes:
        key: Which.
        state: Where it stands.
        priority: What goes first.
        attempt: Number of the last lease; 0 before the first.
        reason: Of a failure, the last one; empty without.
        linked: Whether the link for the next segment is there.
        submitted_at: When it came in.
        claimed_at: When the last attempt began.
        executed_at: When that had the segment's output, from when on it proves.
        finished_at: When it was done, failed or cancelled.
    """

    key: JobKey
    state: State
    priority: Priority
    attempt: int
    reason: str
    linked: bool
    submitted_at: datetime
    claimed_at: datetime | None
    executed_at: datetime | None
    finished_at: datetime | None

    @property
    def phase(self) -> str:
        """What is being done: a state, or what part of the work a worker is at."""
        if self.state is not State.RUNNING:
            return self.state.value
        return "execute" if self.executed_at is None else "prove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep ended.

    Attributes:
        late: Jobs whose deadline had passed.
        exhausted: Jobs whose last lease ended without a word.
    """

    late: tuple[JobKey, ...] = ()
    exhausted: tuple[JobKey, ...] = ()
