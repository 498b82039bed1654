"""Commitments in a receipt: what replicas bound themselves to before they answered.

For every round of a scenario that has replicas commit before they reveal:

    1. every vote has a commitment beside it, and nothing else has
    2. each is signed by the replica, and about this round and the vote's exchange
    3. each recomputes from the vote's outputs, the replica's name and the nonce beside
       it, so the vote is the answer that the replica was bound to

No two of them are the same, for the name is in them: one that was copied is opened by
its maker alone.

That the commitments were there before any answer was shown is the entry's assertion,
as ``blind`` is: signatures carry no order. A vote that was not blind counts: where as
many replicas as make a quorum have committed, those after them are late and no worse
for it. Where a quorum needs one of them, the report names whose it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bentoml_secure.consensus.commit_reveal import (
    OPENING_BYTES,
    Task,
    parse_commitment_envelope,
    require_commitment,
    require_opening,
    verify_commitment,
)
from bentoml_secure.digest import parse_hex
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.receipts.strict import fields, flag, text
from bentoml_secure.signing import Envelope
from bentoml_secure.statements import Statement

if TYPE_CHECKING:
    # Rounds are judged with this module, and records are made of its nouns.
    from bentoml_secure.receipts.judgement import Judgement, Round

MAX_COMMITMENTS = 64
"""Of one round: as many as it may have replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revealed:
    """One replica's commitment, and how it opened it.

    Attributes:
        commitment: What it signed.
        nonce: The 16 bytes that open it.
        blind: Whether it was there before any answer was shown; the entry's assertion.
    """

    commitment: Envelope
    nonce: bytes
    blind: bool

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a segment's ``commitments``."""
        return {
            "commitment": self.commitment.to_json(),
            "nonce": self.nonce.hex(),
            "blind": self.blind,
        }

    @classmethod
    def from_json(cls, document: object, *, what: str) -> Revealed:
        """Parse an entry of ``commitments``.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        got = fields(document, cls.__slots__, what=what)
        return cls(
            commitment=parse_commitment_envelope(got["commitment"]),
            nonce=parse_hex(got["nonce"], what=f"{what} nonce", length=OPENING_BYTES),
            blind=flag(got["blind"], what=f"{what} blind"),
        )


def commitments_to_json(commitments: Mapping[str, Revealed]) -> dict[str, Any]:
    """Return a segment's ``commitments``, by replica."""
    return {name: revealed.to_json() for name, revealed in commitments.items()}


def commitments_from_json(document: object, *, what: str) -> dict[str, Revealed]:
    """Parse a segment's ``commitments``.

    Raises:
        MalformedInputError: Too many, or not of their form.
    """
    if not isinstance(document, dict) or len(document) > MAX_COMMITMENTS:
        raise MalformedInputError(
            f"{what}: want an object of at most {MAX_COMMITMENTS}"
        )
    return {
        text(name, what=f"{what} replica"): Revealed.from_json(
            revealed, what=f"{what} {name!r:.60}"
        )
        for name, revealed in document.items()
    }


def judge_commitments(
    judgement: Judgement,
    round_: Round,
    commitments: Mapping[str, Revealed],
    statements: Mapping[str, Statement],
) -> tuple[str, ...]:
    """Judge the commitments of one round; see the module's rules.

    Args:
        judgement: Takes the findings.
        round_: That the votes are counted in.
        commitments: From the receipt, by replica.
        statements: The votes that verified, by replica.

    Returns:
        The replicas that were not blind and without whom there is no quorum, sorted;
        none where enough of those that agree were blind.
    """
    report = judgement.report
    where = f"infer {round_.infer} segment {round_.index} commitments"
    asked = judgement.case.bundle.scenario.commit_reveal
    want = sorted(statements) if asked else []
    report.require(f"{where} of", sorted(commitments), want)
    if not asked:
        return ()
    for name in sorted(commitments.keys() & statements.keys()):
        _judge_one(judgement, where, name, commitments[name], statements[name])
    tally = round_.tally
    agreed = [commitments[name] for name in tally.clique if name in commitments]
    if not tally.accepted or sum(made.blind for made in agreed) >= tally.quorum:
        return ()
    return tuple(
        name
        for name in sorted(commitments.keys() & set(tally.clique))
        if not commitments[name].blind
    )


def _judge_one(
    judgement: Judgement, where: str, name: str, revealed: Revealed, vote: Statement
) -> None:
    # Both are there, or the vote would not have verified.
    key, party = judgement.case.keys[name], judgement.case.parties[name]
    try:
        commitment = verify_commitment(revealed.commitment, key)
        require_commitment(commitment, Task.of(vote), party.key_document)
        require_opening(commitment, name, vote.outputs, revealed.nonce)
    except (VerificationError, MalformedInputError) as error:
        judgement.report.add(
            f"{where} {name}", str(error), "the replica's own, to the answer it gave"
        )
