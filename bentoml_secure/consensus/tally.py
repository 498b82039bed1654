"""What was asked, answered and decided, in a form that goes into a receipt.

A tally has two kinds of fields. *Asserted* ones are what the coordinator says:
committee, quorum, tolerance, distances, reasons of absence. *Derived* ones follow from
those and from the votes' commitments, and ``quorum.recompute`` derives them again:
groups, clique, medoid, accepted, dissenters, pending.

Voices are neither: a tally's JSON does not name them. Who decides and who recomputes
each take them from evidence that they verified themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bentoml_secure.digest import Digest, is_finite_number
from bentoml_secure.errors import MalformedInputError

MAX_COMMITTEE = 64
MAX_REPLICA_CHARACTERS = 256
MAX_REASON_CHARACTERS = 200

Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One planned seat of a committee.

    Attributes:
        replica: The replica's name.
        weight: How much its vote counts, above 0.
        voice: Replicas with one voice count once. Left out, it is the replica's own.
    """

    replica: str
    weight: float = 1.0
    voice: str = ""

    def __post_init__(self) -> None:
        if not self.voice:
            object.__setattr__(self, "voice", self.replica)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What one replica answered, as commitments.

    Attributes:
        replica: The replica's name.
        commitments: (tensor name, commitment) of each output, sorted by name.
    """

    replica: str
    commitments: tuple[tuple[str, Digest], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """A replica that was asked and gave no usable answer, and why."""

    replica: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The outcome of one round, at the moment of decision.

    Attributes:
        committee: Every replica that was asked; its order breaks ties.
        quorum: How many replicas, with a voice each, have to agree.
        tolerance: The largest distance at which two answers still agree.
        groups: Replicas whose commitments are identical, in committee order.
        distances: Square, over the groups' first members; None is not comparable.
        clique: Replicas that agree with one another, in committee order.
        medoid: The replica whose answer is served; None where none is.
        accepted: Whether the clique is a quorum with most of the planned weight.
        dissenters: Voters outside an accepted clique; empty where none is accepted,
            for then nothing is agreed that they could dissent from.
        absent: Replicas that failed.
        pending: Replicas that had neither answered nor failed.
    """

    committee: tuple[Member, ...]
    quorum: int
    tolerance: float
    groups: tuple[tuple[str, ...], ...]
    distances: Matrix
    clique: tuple[str, ...]
    medoid: str | None
    accepted: bool
    dissenters: tuple[str, ...]
    absent: tuple[Absence, ...]
    pending: tuple[str, ...]

    def with_voices(self, voices: Mapping[str, str]) -> Tally:
        """Return the tally with these voices of its members.

        Args:
            voices: By replica; a replica left out keeps its own voice.
        """
        committee = tuple(
            replace(member, voice=voices.get(member.replica, member.replica))
            for member in self.committee
        )
        return replace(self, committee=committee)

    def to_json(self) -> dict[str, Any]:
        """Return the tally as it stands in a receipt."""
        return {
            "committee": [
                {"replica": m.replica, "weight": m.weight} for m in self.committee
            ],
            "quorum": self.quorum,
            "tolerance": self.tolerance,
            "groups": [list(group) for group in self.groups],
            "distances": [list(row) for row in self.distances],
            "clique": list(self.clique),
            "medoid": self.medoid,
            "accepted": self.accepted,
            "dissenters": list(self.dissenters),
            "absent": [{"replica": a.replica, "reason": a.reason} for a in self.absent],
            "pending": list(self.pending),
        }

    @classmethod
    def from_json(cls, document: object, *, what: str = "tally") -> Tally:
        """Parse a tally; what it claims is judged by ``quorum.recompute`` alone.

        Raises:
            MalformedInputError: A field is missing, unknown, of another type, too
                long, or not a finite number.
        """
        fields = _object(document, set(cls.__dataclass_fields__), what)
        accepted = fields["accepted"]
        if not isinstance(accepted, bool):
            raise MalformedInputError(f"{what} accepted: want true or false")
        quorum = fields["quorum"]
        if not isinstance(quorum, int) or isinstance(quorum, bool):
            raise MalformedInputError(
                f"{what} quorum: got {quorum!r:.40}, want a count"
            )
        if not 0 < quorum <= MAX_COMMITTEE:
            raise MalformedInputError(
                f"{what} quorum: got {quorum!r:.40}, want 1 to {MAX_COMMITTEE}"
            )
        medoid = fields["medoid"]
        return cls(
            committee=_committee(fields["committee"], f"{what} committee"),
            quorum=quorum,
            tolerance=_number(fields["tolerance"], f"{what} tolerance"),
            groups=tuple(
                _names(group, f"{what} groups")
                for group in _list(fields["groups"], f"{what} groups")
            ),
            distances=tuple(
                _row(row, f"{what} distances")
                for row in _list(fields["distances"], f"{what} distances")
            ),
            clique=_names(fields["clique"], f"{what} clique"),
            medoid=None if medoid is None else _name(medoid, f"{what} medoid"),
            accepted=accepted,
            dissenters=_names(fields["dissenters"], f"{what} dissenters"),
            absent=parse_absences(fields["absent"], f"{what} absent"),
            pending=_names(fields["pending"], f"{what} pending"),
        )


def is_replica_name(text: str) -> bool:
    """Tell whether a replica may bear this name: short and printable."""
    return 0 < len(text) <= MAX_REPLICA_CHARACTERS and text.isprintable()


def printable(reason: str) -> str:
    """Return a reason of absence fit for a receipt: one bounded, printable line.

    Part of it comes from a peer, who must neither write the log's next line nor put
    a lone surrogate where canonical JSON will refuse it.
    """
    cut = reason[:MAX_REASON_CHARACTERS]
    return "".join(c if c.isprintable() else "?" for c in cut) or "no reason given"


def _committee(value: object, what: str) -> tuple[Member, ...]:
    members = [_object(m, {"replica", "weight"}, what) for m in _list(value, what)]
    return tuple(
        Member(
            replica=_name(m["replica"], f"{what} replica"),
            weight=_number(m["weight"], f"{what} weight"),
        )
        for m in members
    )


def parse_absences(value: object, what: str) -> tuple[Absence, ...]:
    """Parse a list of replicas that gave no usable answer, and why.

    Raises:
        MalformedInputError: A field is missing, unknown or of another form.
    """
    absences = [_object(a, {"replica", "reason"}, what) for a in _list(value, what)]
    for absence in absences:
        reason = absence["reason"]
        if not isinstance(reason, str) or printable(reason) != reason:
            raise MalformedInputError(
                f"{what} reason: got {reason!r:.60}, want one printable line of at "
                f"most {MAX_REASON_CHARACTERS} characters"
            )
    return tuple(
        Absence(replica=_name(a["replica"], f"{what} replica"), reason=a["reason"])
        for a in absences
    )


def _object(value: object, fields: set[str], what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or value.keys() != fields:
        got = sorted(map(str, value)) if isinstance(value, dict) else type(value)
        raise MalformedInputError(
            f"{what}: got {got!r:.200}, want the fields {', '.join(sorted(fields))}"
        )
    return value


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list) or len(value) > MAX_COMMITTEE:
        raise MalformedInputError(f"{what}: want a list of at most {MAX_COMMITTEE}")
    return value


def _names(value: object, what: str) -> tuple[str, ...]:
    return tuple(_name(name, what) for name in _list(value, what))


def _name(value: object, what: str) -> str:
    if not isinstance(value, str) or not is_replica_name(value):
        raise MalformedInputError(
            f"{what}: got {value!r:.60}, want a name of 1 to "
            f"{MAX_REPLICA_CHARACTERS} printable characters"
        )
    return value


def _number(value: Any, what: str) -> float:
    if not is_finite_number(value):
        raise MalformedInputError(f"{what}: got {value!r:.40}, want a finite number")
    # Canonical JSON writes 1.0 as 1.
    return float(value)


def _row(value: object, what: str) -> tuple[float | None, ...]:
    return tuple(
        None if entry is None else _number(entry, what) for entry in _list(value, what)
    )
