"""A case under judgement, one round of it, and one vote: what the steps share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bentoml_secure.attestation.evidence import AttestationResult
from bentoml_secure.consensus.seating import ESCALATION_STEP
from bentoml_secure.consensus.tally import Tally
from bentoml_secure.digest import Digest
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.receipts.case import Case, Report
from bentoml_secure.receipts.proofs import ProofRecord
from bentoml_secure.scenario import Independence, Scenario
from bentoml_secure.signing import Envelope
from bentoml_secure.split.plan import Segment
from bentoml_secure.statements import Statement, verify_statement
from bentoml_secure.tensors import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One segment within one ``infer``.

    Attributes:
        infer: Index of the ``infer``.
        index: Index of the segment.
        segment: The plan's entry.
        tally: From the receipt.
        inputs: What its votes must have been given, as far as the chain is known.
        agreed: What the served answer consists of; empty if that is not known.
    """

    infer: int
    index: int
    segment: Segment
    tally: Tally
    inputs: Mapping[str, Digest]
    agreed: Mapping[str, Digest]

    def escalated(self, scenario: Scenario) -> int:
        """Return how often more replicas were asked, by the committee's size."""
        more = len(self.tally.committee) - scenario.replicas
        return max(0, more) // ESCALATION_STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A case under judgement: what the steps pass on to one another.

    Attributes:
        case: What is judged.
        results: Accepted evidence by party.
        report: Takes findings, dissenters and absentees.
        rounds: Judged so far, by (infer index, segment index).
        statements: Every vote in the receipt that verified, by infer, segment, replica.
        exchanges: Where each exchange id stood, over receipt and attachments.
        answers: Commitments of what was agreed on at the end of the chain, by infer.
        proofs: Attached so far, by (infer index, segment index).
        provers: Accepted evidence of who made them, likewise.
    """

    case: Case
    results: Mapping[str, AttestationResult]
    report: Report
    rounds: dict[tuple[int, int], Round] = field(default_factory=dict)
    statements: dict[tuple[int, int, str], Statement] = field(default_factory=dict)
    exchanges: dict[str, str] = field(default_factory=dict)
    answers: dict[int, Mapping[str, Digest]] = field(default_factory=dict)
    proofs: dict[tuple[int, int], ProofRecord] = field(default_factory=dict)
    provers: dict[tuple[int, int], AttestationResult] = field(default_factory=dict)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Every segment of every infer, by index: what is proven if all is."""
        segments = range(len(self.case.bundle.plan.segments))
        return [(i, k) for i in range(len(self.case.receipt.infers)) for k in segments]


def verify_vote(
    judgement: Judgement, round_: Round, replica: str, envelope: Envelope, where: str
) -> Statement | None:
    """Verify one replica's statement and that it is of this round.

    Args:
        judgement: Takes the findings and the exchange id.
        round_: That the vote is counted in.
        replica: Whose vote it is said to be.
        envelope: From the receipt or an attachment.
        where: The round's name in findings.

    Returns:
        What the replica signed, if its signature holds and its outputs are the
        segment's; findings may still say that it is of another request.
    """
    case, report = judgement.case, judgement.report
    where = f"{where} statement {replica}"
    key, party = case.keys.get(replica), case.parties.get(replica)
    if key is None or party is None:
        report.add(where, "no key document of that replica", "one in the bundle")
        return None
    try:
        statement = verify_statement(envelope, key)
    except (VerificationError, MalformedInputError) as error:
        report.add(where, str(error), "a statement under the replica's key")
        return None
    receipt = case.receipt
    for name, want in (
        ("request_id", receipt.receipt_id),
        ("nonce", receipt.client_nonce),
        ("plan_digest", receipt.plan_digest),
        ("infer_index", round_.infer),
        ("segment", round_.segment.identity),
        ("key_document", party.key_document),
    ):
        report.require(f"{where} {name}", getattr(statement, name), want)
    before = judgement.exchanges.setdefault(statement.exchange_id, where)
    if before != where:
        report.add(f"{where} exchange_id", f"that of {before}", "one of its own")
    inputs, outputs = names_of(round_.segment.inputs), names_of(round_.segment.outputs)
    report.require(f"{where} inputs", sorted(statement.inputs), inputs)
    for name in sorted(statement.inputs.keys() & round_.inputs.keys()):
        report.require(
            f"{where} input {name}", statement.inputs[name], round_.inputs[name]
        )
    report.require(f"{where} outputs", sorted(statement.outputs), outputs)
    return statement if sorted(statement.outputs) == outputs else None


def voice_of(judgement: Judgement, name: str, independence: Independence) -> str:
    """Return the voice that evidence gives a replica."""
    result = judgement.results.get(name)
    return independence.voice(name, None if result is None else result.claims)


def names_of(specs: Sequence[TensorSpec]) -> list[str]:
    """Return the names of tensors, sorted."""
    return sorted(spec.name for spec in specs)
