"""Judging who was asked: the draw and the seats are repeated, not believed.

For every round:

    1. the draw is over exactly the segment's replicas, as the configuration has them;
       their weights are the entry's assertion, within what reputations can come to
       and the trust file's ``weight_ratio``
    2. the committee has the scenario's seats and quorum, or those of an escalation that
       the scenario allows; the tolerance is the plan's
    3. the order is drawn again from the request's seed, and the seats are taken again
       in that order, with the voices that evidence gives: the same replicas sit there,
       and those that were skipped for spares are no more than the scenario allows.
       That they were out, failed or slow is the entry's assertion
    4. their weights in the tally are those of the draw, no voice above its share
    5. who voted or was pending is a party, whose key document names this segment and
       whose evidence is of a kind that the scenario places there
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bentoml_secure.consensus.committee import (
    Candidate,
    candidate_faults,
    draw_order,
    seed,
)
from bentoml_secure.consensus.reputation import LEAST_WEIGHT, MOST_WEIGHT, capped
from bentoml_secure.consensus.seating import ESCALATION_STEP, take_seats
from bentoml_secure.receipts.judgement import Judgement, Round, voice_of
from bentoml_secure.receipts.receipt import RUNNER, Receipt, SegmentRecord


def draw_seed(receipt: Receipt) -> bytes:
    """Return the seed of every draw of a receipt's request."""
    return seed(
        bytes.fromhex(receipt.draw.r),
        bytes.fromhex(receipt.client_nonce),
        bytes.fromhex(receipt.receipt_id),
    )


def judge_committee(
    judgement: Judgement, round_: Round, record: SegmentRecord, where: str
) -> None:
    """Judge one round's committee; see the module's steps."""
    _judge_terms(judgement, round_, where)
    if _judge_candidates(judgement, round_, record, where):
        _judge_seats(judgement, round_, record, where)
    _judge_shares(judgement, round_, record, where)
    asked = {*record.statements, *round_.tally.pending, *record.unused}
    for name in sorted({m.replica for m in round_.tally.committee} | asked):
        judge_place(judgement, round_, name, where, asked=name in asked)
    seats = {member.replica for member in round_.tally.committee}
    # Candidates without a seat, each once and by name.
    fit = sorted({*record.unused} & record.weights.keys() - seats)
    judgement.report.require(f"{where} unused", _listed(record.unused), _listed(fit))


def judge_place(
    judgement: Judgement, round_: Round, name: str, where: str, *, asked: bool
) -> None:
    """Judge that one replica may run the segment, by its evidence.

    Args:
        judgement: Takes the findings.
        round_: That it was asked in, or had a seat in.
        name: Of the replica.
        where: The round's name in findings.
        asked: Whether it was sent anything: then it has to be a party.
    """
    case, report = judgement.case, judgement.report
    party = case.parties.get(name)
    if party is None:
        # A replica that never showed evidence is absent, and nothing else.
        if asked:
            report.add(f"{where} replica {name}", "not a party", "evidence of it")
        return
    report.require(f"party {name} role", party.role, RUNNER)
    kinds = case.bundle.scenario.kinds(round_.index)
    result = judgement.results.get(name)
    # Without a result its evidence has a finding, or nobody could judge it.
    if kinds is not None and result is not None and result.kind not in kinds:
        report.add(
            f"party {name} placement",
            result.kind,
            f"one of {', '.join(kinds)} for segment {round_.index}",
        )
    if (document := case.key_documents.get(name)) is not None:
        report.require(
            f"party {name} segment", document.segment, round_.segment.identity
        )


def _judge_terms(judgement: Judgement, round_: Round, where: str) -> None:
    scenario, report = judgement.case.bundle.scenario, judgement.report
    tally, more = round_.tally, round_.escalated(scenario)
    sizes = [
        scenario.replicas + ESCALATION_STEP * step
        for step in range(scenario.escalation + 1)
    ]
    if len(tally.committee) not in sizes:
        want = " or ".join(map(str, sizes))
        report.add(f"{where} committee size", len(tally.committee), want)
    report.require(f"{where} tally quorum", tally.quorum, scenario.quorum + more)
    report.require(
        f"{where} tally tolerance", tally.tolerance, round_.segment.tolerance
    )


def _judge_candidates(
    judgement: Judgement, round_: Round, record: SegmentRecord, where: str
) -> bool:
    topology, report = judgement.case.topology, judgement.report
    if topology is None:
        return False
    names = sorted(topology.replica_names(round_.index))
    report.require(f"{where} candidates", sorted(record.weights), names)
    faults = candidate_faults(_candidates(record))
    report.adopt(where, faults)
    judge_weights(judgement, record.weights, where)
    return not faults and sorted(record.weights) == names


def judge_weights(
    judgement: Judgement, weights: Mapping[str, float], where: str
) -> None:
    """Judge that asserted weights are some that reputations can have come to.

    The trust file may demand more: that no weight is so many times another. An entry
    that may weigh at will draws whom it likes.
    """
    report, trust = judgement.report, judgement.case.trust
    for name, weight in sorted(weights.items()):
        if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
            want = f"{LEAST_WEIGHT:g} to {MOST_WEIGHT:g}"
            report.add(f"{where} weight of {name}", weight, want)
    if weights and max(weights.values()) > trust.weight_ratio * min(weights.values()):
        report.add(
            f"{where} weights",
            f"from {min(weights.values()):g} to {max(weights.values()):g}",
            f"none above {trust.weight_ratio:g} times another (weight_ratio)",
        )


def _judge_seats(
    judgement: Judgement, round_: Round, record: SegmentRecord, where: str
) -> None:
    case, report = judgement.case, judgement.report
    scenario = case.bundle.scenario
    order = draw_order(
        draw_seed(case.receipt),
        _candidates(record),
        infer_index=round_.infer,
        segment_index=round_.index,
    )
    skipped = [skip.replica for skip in record.skips]
    got = [member.replica for member in round_.tally.committee]

    want = take_seats(
        order,
        len(got),
        voice=lambda name: voice_of(judgement, name, scenario.independence),
        out=skipped,
        spares=scenario.spares,
    )
    report.require(f"{where} committee", _listed(got), _listed(want.seats))
    report.require(f"{where} skips", _listed(skipped), _listed(want.skips))
    for skip in record.skips:
        report.skip(round_.infer, round_.index, skip.replica, skip.reason)


def _judge_shares(
    judgement: Judgement, round_: Round, record: SegmentRecord, where: str
) -> None:
    scenario = judgement.case.bundle.scenario
    if candidate_faults(_candidates(record)):
        # Weights that nothing can be drawn with have their finding, and no shares.
        return
    got = {member.replica: member.weight for member in round_.tally.committee}
    drawn = {name: record.weights[name] for name in got if name in record.weights}
    if drawn.keys() != got.keys():
        judgement.report.add(f"{where} weights", _listed(sorted(drawn)), _listed(got))
        return
    voices = {n: voice_of(judgement, n, scenario.independence) for n in got}
    want = capped(drawn, voices)
    for name in got:
        judgement.report.require(f"{where} weight of {name}", got[name], want[name])


def _candidates(record: SegmentRecord) -> list[Candidate]:
    return [Candidate(replica=n, weight=w) for n, w in record.weights.items()]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nobody"
