"""What a ledger of reputations holds: entries, and the accounts that they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeGuard

from bentoml_secure.consensus.reputation import (
    LEAST_WEIGHT,
    MOST_WEIGHT,
    Outcome,
    Reputation,
    Status,
    after_round,
    after_trial,
)
from bentoml_secure.consensus.tally import is_replica_name
from bentoml_secure.errors import MalformedInputError

COLUMNS = (
    "replica TEXT PRIMARY KEY, segment INTEGER NOT NULL, weight REAL NOT NULL,"
    " status TEXT NOT NULL, passed INTEGER NOT NULL, quarantines INTEGER NOT NULL,"
    " agreed INTEGER NOT NULL, dissented INTEGER NOT NULL, in_doubt INTEGER NOT NULL,"
    " absent INTEGER NOT NULL, trials INTEGER NOT NULL"
)
"""Of accounts, in the order of ``Account.to_row``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened to one replica.

    Attributes:
        replica: Its name.
        segment: That it serves.
        outcome: Of the round or trial.
        request_id: Of the request, or what names the trial.
        at: When.
        is_trial: Whether it was a trial.
    """

    replica: str
    segment: int
    outcome: Outcome
    request_id: str
    at: datetime
    is_trial: bool = False

    def apply(self, reputation: Reputation) -> Reputation:
        """Return what it leaves of a reputation."""
        after = after_trial if self.is_trial else after_round
        return after(reputation, self.outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dissent:
    """An answer outside the agreed clique, or other than a trial's known one.

    Attributes:
        replica: Whose.
        segment: Which it was asked.
        request_id: Of the request, or what names the trial.
        at: RFC 3339.
    """

    replica: str
    segment: int
    request_id: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What is held of one replica.

    Attributes:
        replica: Its name.
        segment: That it serves.
        reputation: As of now.
        agreed: Rounds of that outcome; this and what follows, since the last reset.
        dissented: As above.
        in_doubt: As above.
        absent: As above.
        trials: That it answered, rightly or not.
    """

    replica: str
    segment: int
    reputation: Reputation
    agreed: int = 0
    dissented: int = 0
    in_doubt: int = 0
    absent: int = 0
    trials: int = 0

    def after(self, entries: Iterable[Entry]) -> Account:
        """Return the account with these entries, in their order."""
        reputation, counts = self.reputation, Counter[tuple[bool, Outcome]]()
        for entry in entries:
            reputation = entry.apply(reputation)
            counts[entry.is_trial, entry.outcome] += 1
        answered = counts[True, Outcome.AGREED] + counts[True, Outcome.DISSENTED]
        return replace(
            self,
            reputation=reputation,
            agreed=self.agreed + counts[False, Outcome.AGREED],
            dissented=self.dissented + counts[False, Outcome.DISSENTED],
            in_doubt=self.in_doubt + counts[False, Outcome.IN_DOUBT],
            absent=self.absent + counts[False, Outcome.ABSENT],
            trials=self.trials + answered,
        )

    def to_row(self) -> tuple[str | int | float, ...]:
        """Return the account as a row of ``COLUMNS``."""
        reputation = self.reputation
        return (
            self.replica,
            self.segment,
            reputation.weight,
            reputation.status.value,
            reputation.passed,
            reputation.quarantines,
            self.agreed,
            self.dissented,
            self.in_doubt,
            self.absent,
            self.trials,
        )

    @classmethod
    def from_row(cls, row: tuple[object, ...]) -> Account:
        """Parse a row of ``COLUMNS``.

        Raises:
            MalformedInputError: One that ``to_row`` never returns.
        """
        # SQLite keeps values of any type in any column, and others may hold the file.
        replica, segment, weight, status, *rest = row
        counts = [count for count in (segment, *rest) if _is_count(count)]
        if (
            not isinstance(replica, str)
            or not is_replica_name(replica)
            or not isinstance(weight, float)
            or not LEAST_WEIGHT <= weight <= MOST_WEIGHT
            or status not in tuple(Status)
            or len(counts) != 1 + len(rest)
        ):
            raise MalformedInputError(
                f"reputation ledger: got the row {row!r:.200}, which none wrote"
            )
        index, passed, quarantines, agreed, dissented, in_doubt, absent, trials = counts
        return cls(
            replica=replica,
            segment=index,
            reputation=Reputation(
                weight=weight,
                status=Status(str(status)),
                passed=passed,
                quarantines=quarantines,
            ),
            agreed=agreed,
            dissented=dissented,
            in_doubt=in_doubt,
            absent=absent,
            trials=trials,
        )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and value >= 0
