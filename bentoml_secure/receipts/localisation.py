"""The attachment "localisation": who in a dissenting chain is at fault.

A chain that ends apart from the agreed one has a fault somewhere, and every segment
after it was given what is wrong. So each segment of such a chain is recomputed by its
referee, from the very inputs that the chain's replica was given: at the first fault
these are the agreed ones. Whose answer the referee does not reproduce is named; a
replica that worked rightly on wrong inputs is not.

1. it is there for every dissenting chain, with every segment of it once
2. the referee is the segment's own and may run it; its statement is a vote of the
   segment over the inputs that the chain's replica signed for
3. the verdict is the one that commitments give, and beyond them the distance: 0 where
   the commitments are equal, else the entry's assertion
4. a segment that could not be recomputed is in doubt, and costs nobody
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from bentoml_secure.audit.recompute import Recomputation
from bentoml_secure.digest import Digest
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.attachments import Attachment, issue_attachment
from bentoml_secure.receipts.audit import longest_audit
from bentoml_secure.receipts.judgement import Judgement, names_of
from bentoml_secure.receipts.receipt import MAX_INFERS, MAX_SEGMENTS, Receipt
from bentoml_secure.receipts.recomputations import (
    judge_answer,
    judge_referee,
    recomputation_from_json,
    recomputation_to_json,
)
from bentoml_secure.receipts.records import MAX_REPLICAS, InferRecord
from bentoml_secure.receipts.strict import fields, items, text, whole
from bentoml_secure.scenario import Scenario
from bentoml_secure.signing import Envelope, SigningKey

LOCALISATION = "localisation"

Place = tuple[int, str]
"""An ``infer`` and the name of a chain."""


def localisation_due(infers: Sequence[InferRecord], scenario: Scenario) -> bool:
    """Tell whether a receipt has to be followed by a localisation."""
    return scenario.referee and any(
        infer.chains is not None and infer.chains.tally.dissenters for infer in infers
    )


def longest_localisation(receipt: Receipt, scenario: Scenario) -> timedelta:
    """Return how long after its issue a receipt may wait for its localisation."""
    return longest_audit(scenario, recomputed_segments(receipt.infers))


def recomputed_segments(infers: Sequence[InferRecord]) -> int:
    """Return how many segments are recomputed: all those of dissenting chains."""
    return sum(
        len(infer.chains.tally.dissenters) * len(infer.chains.statements)
        for infer in infers
        if infer.chains is not None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Localisation:
    """What recomputing a receipt's dissenting chains came to.

    Attributes:
        receipt_id: Of the receipt.
        receipt_digest: Of the receipt.
        issued_at: When this is signed; the entry's clock.
        chains: Each segment's recomputation, in order, by infer and chain.
    """

    receipt_id: str
    receipt_digest: Digest
    issued_at: str
    chains: Mapping[Place, tuple[Recomputation, ...]]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the predicate's ``chains``, in order of infer and name."""
        return [
            {
                "infer": infer,
                "chain": chain,
                "segments": [recomputation_to_json(made) for made in recomputed],
            }
            for (infer, chain), recomputed in sorted(self.chains.items())
        ]

    @classmethod
    def from_attachment(cls, attachment: Attachment) -> Localisation:
        """Parse what this kind of attachment says.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form; a
                chain or segment twice or out of order.
        """
        got = fields(attachment.content, ("chains",), what=LOCALISATION)
        chains: dict[Place, tuple[Recomputation, ...]] = {}
        most = MAX_INFERS * MAX_REPLICAS
        for entry in items(got["chains"], what=f"{LOCALISATION} chains", most=most):
            said = fields(entry, ("infer", "chain", "segments"), what=LOCALISATION)
            infer = whole(
                said["infer"], what=f"{LOCALISATION} infer", low=0, high=MAX_INFERS
            )
            name = text(said["chain"], what=f"{LOCALISATION} chain")
            what = f"{LOCALISATION} infer {infer} chain {name!r:.60}"
            segments = items(said["segments"], what=what, most=MAX_SEGMENTS)
            chains[infer, name] = tuple(
                recomputation_from_json(segment, infer, what) for segment in segments
            )
        found = cls(
            receipt_id=attachment.receipt_id,
            receipt_digest=attachment.receipt_digest,
            issued_at=attachment.issued_at,
            chains=chains,
        )
        if found.to_json() != got["chains"]:
            raise MalformedInputError(f"{LOCALISATION}: want each chain once, in order")
        return found


def issue_localisation(found: Localisation, key: SigningKey) -> Envelope:
    """Sign what was found of a receipt's dissenting chains, with its key."""
    return issue_attachment(
        Attachment(
            kind=LOCALISATION,
            receipt_digest=found.receipt_digest,
            receipt_id=found.receipt_id,
            issued_at=found.issued_at,
            content={"chains": found.to_json()},
        ),
        key,
    )


def judge(attachment: Attachment, judgement: Judgement) -> None:
    """Judge a localisation against its receipt; see the module's rules.

    Raises:
        MalformedInputError: Not of this kind's form.
    """
    found, report = Localisation.from_attachment(attachment), judgement.report
    doubted = {(d["infer"], d["chain"][-1]): d["chain"] for d in report.doubts}
    report.require(f"{LOCALISATION} chains", sorted(found.chains), sorted(doubted))
    for place, recomputed in found.chains.items():
        chain = doubted.get(place, ())
        where = f"{LOCALISATION} infer {place[0]} chain {place[1]}"
        got = [made.segment for made in recomputed]
        report.require(f"{where} segments", got, list(range(len(chain))))
        if got == list(range(len(chain))):
            for name, made in zip(chain, recomputed, strict=True):
                _judge_segment(judgement, name, made, where)


def _judge_segment(
    judgement: Judgement, name: str, made: Recomputation, where: str
) -> None:
    report = judgement.report
    where = f"{where} segment {made.segment}"
    if not judge_referee(judgement, made, where, LOCALISATION):
        return
    said = judgement.statements.get((made.infer, made.segment, name))
    agreed = judgement.rounds.get((made.infer, made.segment))
    if said is None or agreed is None:
        report.add(where, f"no statement of {name} that verifies", "one in the receipt")
        return
    names = names_of(agreed.segment.inputs)
    given = {tensor: said.inputs[tensor] for tensor in names if tensor in said.inputs}
    round_ = replace(agreed, inputs=given, agreed=said.outputs)
    if not judge_answer(judgement, round_, made, where, of="the replica's answer"):
        report.dissent(made.infer, made.segment, name, LOCALISATION)
