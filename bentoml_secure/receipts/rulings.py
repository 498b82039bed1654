"""Judging a referee's ruling: its word alone, where no quorum agreed.

1. the scenario has a referee decide, and the trust file takes its word
2. it is the segment's own, a party, and may run the segment by its evidence
3. its statement is a vote of this round, over the same inputs
4. the tally was not accepted; every group of it has a distance from the ruling,
   asserted by the entry, and 0 where the commitments are the same
"""

from __future__ import annotations

from collections.abc import Mapping

from bentoml_secure.digest import Digest
from bentoml_secure.receipts.committees import judge_place
from bentoml_secure.receipts.judgement import Judgement, Round, verify_vote
from bentoml_secure.receipts.records import RefereeRecord
from bentoml_secure.statements import Statement


def judge_ruling(
    judgement: Judgement,
    round_: Round,
    ruling: RefereeRecord,
    statements: Mapping[str, Statement],
    where: str,
) -> Mapping[str, Digest]:
    """Judge a ruling, and return what it says was served; see the module's steps.

    Args:
        judgement: Takes the findings.
        round_: That it ended.
        ruling: From the receipt.
        statements: Of the replicas that voted, by name.
        where: The round's name in findings.

    Returns:
        Commitments by name; empty if the statement does not verify.
    """
    case, report = judgement.case, judgement.report
    report.rule(round_.infer, round_.index, ruling.replica)
    report.require(f"{where} scenario referee", case.bundle.scenario.referee, True)
    report.require(f"{where} trust file referee", case.trust.referee, True)
    report.require(f"{where} tally accepted", round_.tally.accepted, False)
    if case.topology is not None:
        name = case.topology.referee_name(round_.index)
        report.require(f"{where} referee", ruling.replica, name or "none")
    judge_place(judgement, round_, ruling.replica, where, asked=True)
    statement = verify_vote(
        judgement, round_, ruling.replica, ruling.statement, f"{where} referee"
    )
    if statement is None:
        return {}
    _judge_distances(judgement, round_, ruling, statement, statements, where)
    return statement.outputs


def _judge_distances(
    judgement: Judgement,
    round_: Round,
    ruling: RefereeRecord,
    statement: Statement,
    statements: Mapping[str, Statement],
    where: str,
) -> None:
    report, tally = judgement.report, round_.tally
    first = sorted(group[0] for group in tally.groups if group)
    got = sorted(ruling.distances)
    report.require(f"{where} referee distances", got, first)
    for group in tally.groups:
        if not group or group[0] not in ruling.distances:
            continue
        distance = ruling.distances[group[0]]
        voted = statements.get(group[0])
        same = voted is not None and voted.outputs == statement.outputs
        if distance is not None and distance < 0:
            report.add(f"{where} referee distance of {group[0]}", distance, "from 0")
        if same and distance != 0:
            want = "0: its commitments are those of the ruling"
            report.add(f"{where} referee distance of {group[0]}", distance, want)
        if distance is None or distance > tally.tolerance:
            for name in group:
                report.dissent(round_.infer, round_.index, name, "referee")
