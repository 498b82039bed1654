"""What replicas' past answers count for in one entry: weights, votes, the ledger.

A round's outcomes change what is in memory at once, and go to the ledger's file from a
thread, every FLUSH_SECONDS: nothing that is served waits for a disk. Who kills the
entry loses what was not written: at most the last second. Closing it loses nothing.
What others wrote to the file, a reset above all, holds here after as long.

A reputation belongs to a replica's *name*, which the deployment gives it, and not to
its keys or its machine: it draws new keys with every start, and one that could shed its
past by starting anew would. Whoever takes over a name takes over at most what the cap
leaves of its weight, has to show evidence like everyone, and begins to lose at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from bentoml_secure import metrics
from bentoml_secure.consensus.accounts import Account, Dissent, Entry
from bentoml_secure.consensus.ledger import Ledger
from bentoml_secure.consensus.reputation import (
    REQUIRED_TRIALS,
    Outcome,
    Reputation,
    Status,
    newcomer,
)
from bentoml_secure.errors import MalformedInputError, UnavailableError
from bentoml_secure.statements import utc_now

logger = logging.getLogger("bentoml_secure")

FLUSH_SECONDS = 0.5
MAX_WAITING = 100_000
"""Entries that wait for a file that cannot be written; more are not written at all."""


class Standing:
    """The reputations of one deployment's replicas. Any thread may call.

    Args:
        ledger: Where they stay; closed with this.
        replicas: Names of the replicas of each segment.
        has_trials: Newcomers get trials, and no vote before they passed them; without
            any they vote from the start.
        clock: For the history of dissents.
        flush_seconds: How often the ledger is written.

    Raises:
        UnavailableError: The ledger's file is locked, full or gone.
        MalformedInputError: It holds a row that no ledger wrote.
    """

    def __init__(
        self,
        ledger: Ledger,
        replicas: Sequence[Sequence[str]],
        *,
        has_trials: bool = False,
        clock: Callable[[], datetime] = utc_now,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._roster = {
            name: segment for segment, names in enumerate(replicas) for name in names
        }
        self._has_trials = has_trials
        self._opening = newcomer(on_trial=has_trials)
        self._clock = clock
        self._lock = threading.Lock()
        # One batch at a time: what an older one read must not replace a newer one.
        self._flushing = threading.RLock()
        self._waiting: list[Entry] = []
        self._dropped = 0
        self._failing = False
        self._shown: dict[str, Reputation] = {}
        self._known = self._reputations(self._post([]))
        self._show()
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._keep,
            args=(flush_seconds,),
            name="bentoml-secure-standing",
            daemon=True,
        )
        self._thread.start()

    def weights(self, segment: int, replicas: Sequence[str]) -> dict[str, float]:
        """Return the weight of each of these replicas, of a segment, above 0.

        Not yet capped: that is for the committee that is drawn.
        """
        return {name: self._of(name).weight for name in replicas}

    def barred(self, replica: str) -> str | None:
        """Return why a replica has no vote now; None where it has one."""
        reputation = self._of(replica)
        trials = f"{reputation.passed} of {REQUIRED_TRIALS} trials passed"
        match reputation.status:
            case Status.ON_TRIAL if self._has_trials:
                return f"on trial: {trials}"
            case Status.QUARANTINED:
                return f"in quarantine: reputation {reputation.weight:.3f}, {trials}"
            case Status.EXPELLED:
                return "expelled: quarantined for good"
            case _:
                return None

    def is_quarantined(self, replica: str) -> bool:
        """Tell whether a replica is in quarantine, for good or until it passes."""
        return self._of(replica).status in (Status.QUARANTINED, Status.EXPELLED)

    def on_trial(self) -> tuple[tuple[int, str], ...]:
        """Return (segment, replica) of each that may get a vote by passing trials."""
        waiting = (Status.ON_TRIAL, Status.QUARANTINED)
        return tuple(
            (segment, name)
            for name, segment in self._roster.items()
            if self._of(name).status in waiting
        )

    def record(
        self, request_id: str, segment: int, outcomes: Mapping[str, Outcome]
    ) -> None:
        """Take in what one round says of its replicas; does not wait for a disk."""
        at = self._clock()
        self._take(
            [
                Entry(
                    replica=replica,
                    segment=segment,
                    outcome=outcome,
                    request_id=request_id,
                    at=at,
                )
                for replica, outcome in outcomes.items()
            ]
        )

    def record_trial(
        self, trial: str, segment: int, replica: str, outcome: Outcome
    ) -> None:
        """Take in what one trial says of a replica.

        Args:
            trial: What it is called in the history of dissents.
            segment: That was tried.
            replica: Who was.
            outcome: AGREED with the known answer, DISSENTED, or ABSENT.
        """
        self._take(
            [
                Entry(
                    replica=replica,
                    segment=segment,
                    outcome=outcome,
                    request_id=trial,
                    at=self._clock(),
                    is_trial=True,
                )
            ]
        )
        metrics.count_trial(str(segment), outcome.value)

    def dissents(self, replica: str) -> tuple[Dissent, ...]:
        """Return a replica's dissents that the ledger keeps, the latest first.

        Raises:
            UnavailableError: The file is locked or gone.
        """
        self.flush()
        return self._ledger.dissents(replica)

    def reset(self, replica: str) -> None:
        """Make a replica a newcomer again.

        Raises:
            ConfigurationError: There is no such replica.
            UnavailableError: The file is locked, full or gone.
        """
        with self._flushing:
            self.flush()
            self._ledger.reset(replica, now=self._clock())
            self._settle([])

    def flush(self) -> None:
        """Write what waits, and take in what others wrote.

        Raises:
            UnavailableError: The file is locked, full or gone; what waits still does.
            MalformedInputError: It holds a row that no ledger wrote; as above.
        """
        with self._flushing:
            with self._lock:
                entries, self._waiting = self._waiting, []
            try:
                if entries or self._ledger.is_changed():
                    self._settle(entries)
            except BaseException:
                with self._lock:
                    self._waiting = [*entries, *self._waiting]
                raise

    def close(self) -> None:
        """Write what waits and let go of the ledger; what is lost is logged."""
        self._closing.set()
        self._thread.join()
        self._try_flush()
        with self._lock:
            lost = len(self._waiting) + self._dropped
        if lost:
            logger.error("reputations: %d entries were not written", lost)
        self._ledger.close()

    def _of(self, replica: str) -> Reputation:
        return self._known.get(replica, self._opening)

    def _take(self, entries: Sequence[Entry]) -> None:
        with self._lock:
            for entry in entries:
                self._apply(entry)
            room = MAX_WAITING - len(self._waiting)
            self._waiting += entries[:room]
            self._dropped += len(entries[room:])

    def _apply(self, entry: Entry) -> None:
        self._known[entry.replica] = entry.apply(self._of(entry.replica))

    def _settle(self, entries: Sequence[Entry]) -> None:
        """Post a batch; then what the ledger says is known, and what came meanwhile."""
        accounts = self._post(entries)
        with self._lock:
            self._known = self._reputations(accounts)
            for entry in self._waiting:
                self._apply(entry)
        self._show()

    def _post(self, entries: Sequence[Entry]) -> dict[str, Account]:
        return self._ledger.post(entries, roster=self._roster, opening=self._opening)

    @staticmethod
    def _reputations(accounts: Mapping[str, Account]) -> dict[str, Reputation]:
        return {name: account.reputation for name, account in accounts.items()}

    def _keep(self, seconds: float) -> None:
        while not self._closing.wait(seconds):
            self._try_flush()

    def _try_flush(self) -> None:
        try:
            self.flush()
        except (UnavailableError, MalformedInputError) as error:
            # Votes go on by what is known here; the next turn tries again.
            if not self._failing:
                logger.error("reputations are not written: %s", error)
            self._failing = True
        else:
            if self._failing:
                logger.warning("reputations are written again")
            self._failing = False

    def _show(self) -> None:
        """Set the gauges of who has changed, and log whose vote has."""
        for name, segment in self._roster.items():
            reputation, before = self._of(name), self._shown.get(name)
            if before is not None and before.status is not reputation.status:
                logger.warning(
                    "%s: %s, was %s; reputation %.3f",
                    name,
                    reputation.status,
                    before.status,
                    reputation.weight,
                )
            if before != reputation:
                self._shown[name] = reputation
                metrics.set_reputation(
                    str(segment),
                    name,
                    reputation.weight,
                    quarantined=self.is_quarantined(name),
                )
