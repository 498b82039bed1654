"""Judging a bundle offline: every step, every finding.

    1.  the receipt parses: exact fields, canonical JSON
    2.  plan and scenario are those that the receipt names, and the trust file lists
        them and the configuration; the scenario's quorum is not below its minimum
    3.  every party shows acceptable evidence            (``parties``)
    4.  the receipt is signed by the entry's attested key
    5.  the request id follows from the draw and the caller's nonce; where the entry
        committed to the draw, it signed just this for this session   (``judge_draw``)
    6.  every round and the chain of rounds hold         (``rounds``)
    7.  required attachments are there and hold; those still within their deadline make
        the verdict provisional                          (``obligations``)
    8.  proofs are those of one run of the whole plan, tied to this request, and they
        verify                                           (``proving``)
    9.  times are in order
    10. where the caller opens commitments, they fit     (``opening``)

Only step 1 ends the judgement early: what does not parse says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from bentoml_secure.attestation.appraisal import CLOCK_SKEW_SECONDS
from bentoml_secure.attestation.evidence import (
    AttestationResult,
    UncheckedField,
    format_seconds,
)
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.digest import Digest, Scheme, digest_json
from bentoml_secure.errors import (
    Finding,
    MalformedInputError,
    MissingDependencyError,
    ReceiptError,
    VerificationError,
)
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.case import Case, Report
from bentoml_secure.receipts.drawing import judge_draw
from bentoml_secure.receipts.obligations import judge_attachments
from bentoml_secure.receipts.opening import Opening, judge_opening
from bentoml_secure.receipts.parties import judge_parties, require_listed
from bentoml_secure.receipts.proof_opening import SERVED_PURPOSE, TENSOR_PURPOSE
from bentoml_secure.receipts.proving import CHECKER, Checker, judge_proofs
from bentoml_secure.receipts.receipt import Receipt, parse_receipt
from bentoml_secure.receipts.rounds import Judgement, judge_rounds
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.signing import verify
from bentoml_secure.statements import INTOTO_TYPE, format_time, parse_time


class State(StrEnum):
    """What a bundle that was not rejected is worth."""

    ACCEPTED = "accepted"
    PROVISIONAL = "provisional"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A bundle that holds. A rejection is a ``ReceiptError`` instead.

    Attributes:
        state: Provisional while a required attachment is within its deadline.
        receipt_id: Of the receipt, hex.
        receipt_digest: Of the receipt.
        simulated: Some party's evidence has no hardware behind it.
        claims: What the receipt says, JSON-able.
        unchecked: What the trust file leaves out, and why.
    """

    state: State
    receipt_id: str
    receipt_digest: Digest
    simulated: bool
    claims: Mapping[str, Any] = field(hash=False)
    unchecked: tuple[UncheckedField, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as the command line prints it."""
        return {
            **self.claims,
            "verdict": self.state.value,
            "kind": "receipt",
            "findings": [],
            "receipt_id": self.receipt_id,
            "receipt_digest": self.receipt_digest,
            "simulated": self.simulated,
            "unchecked": [left.to_json() for left in self.unchecked],
        }


def verify_bundle(
    bundle: Bundle,
    trust: Trust,
    *,
    now: datetime,
    at: datetime | None = None,
    opening: Opening | None = None,
    committed: Digest | None = None,
    checker: Checker = CHECKER,
) -> Verdict:
    """Judge a bundle against a trust file; see the module's steps.

    No network, no clock, no files; where the bundle has proofs, a process of its own
    verifies them.

    Args:
        bundle: As parsed; nothing in it is trusted.
        trust: The caller's.
        now: The caller's clock, with a time zone. Judges deadlines of attachments.
        at: The time that evidence is judged for. Left out, it is the receipt's time
            of issue, which the issuer asserts.
        opening: Bodies or tensors that the caller holds, to be compared.
        committed: The commitment that the caller was given before it drew its nonce, to
            be compared with the draw's. Without it nobody can tell when the entry drew.
        checker: What proofs are verified with.

    Returns:
        The verdict, accepted or provisional.

    Raises:
        ReceiptError: Rejected; ``findings`` lists every failing point.
        UnavailableError: Nothing failed, but evidence could not be judged without an
            endorsement that the bundle lacks; or proofs could not be verified for want
            of memory or time.
        MissingDependencyError: Nothing failed, but there are proofs, and what verifies
            them is not installed.
    """
    try:
        receipt = parse_receipt(bundle.receipt)
    except MalformedInputError as error:
        raise ReceiptError(
            "receipt cannot be read",
            [Finding("receipt", str(error), "the form of receipt/v1")],
        ) from error
    issued = parse_time(receipt.issued_at, what="issued_at")
    try:
        case = Case.of(bundle, receipt, trust, at=at or issued, now=now)
    except MalformedInputError as error:
        raise ReceiptError(
            "configuration cannot be read",
            [Finding("configuration", str(error), "one of a deployment")],
        ) from error
    report = Report()
    _judge_documents(case, report)
    results, unavailable = judge_parties(case, report)
    _judge_signature(case, report)
    judge_draw(case, report, committed)
    judgement = Judgement(case=case, results=results, report=report)
    judge_rounds(judgement)
    judge_attachments(judgement)
    judge_proofs(judgement, opening, checker)
    _judge_times(case, report)
    if opening is not None:
        served = SERVED_PURPOSE if bundle.scenario.serve_proven else TENSOR_PURPOSE
        try:
            judge_opening(opening, receipt, report, served=served)
        except MissingDependencyError as error:
            report.unjudged.append(error)
    if report.findings:
        raise ReceiptError(f"receipt {receipt.receipt_id} rejected", report.findings)
    if unavailable is not None:
        raise unavailable
    if report.unjudged:
        raise report.unjudged[0]
    return Verdict(
        state=State.PROVISIONAL if report.late else State.ACCEPTED,
        receipt_id=receipt.receipt_id,
        receipt_digest=case.receipt_digest,
        simulated=any(
            result.simulated
            for result in (*results.values(), *judgement.provers.values())
        ),
        claims={
            **_claims(case, report, results),
            **_labels(
                receipt,
                given=at is not None,
                opened=opening is not None,
                committed=committed is not None,
            ),
        },
        unchecked=tuple(report.unchecked),
    )


def _judge_documents(case: Case, report: Report) -> None:
    bundle, receipt, trust = case.bundle, case.receipt, case.trust
    scenario = bundle.scenario
    report.require("plan_digest", receipt.plan_digest, bundle.plan.digest)
    report.require("scenario digest", receipt.scenario_digest, scenario.digest)
    report.require("scenario name", receipt.scenario_name, scenario.name)
    config = digest_json(bundle.configuration)
    report.require("config_digest", receipt.config_digest, config)
    _judge_configuration(case, report)
    require_listed(report, "plan_digest", receipt.plan_digest, trust.plan_digests)
    require_listed(report, "config_digest", receipt.config_digest, trust.config_digests)
    if isinstance(trust.scenarios, Unchecked):
        report.unchecked.append(
            UncheckedField(field="scenarios", reason=trust.scenarios.reason)
        )
    else:
        want = trust.scenarios.get(receipt.scenario_name, "a scenario of that name")
        report.require("scenario in the trust file", receipt.scenario_digest, want)
    _judge_commitments(case, report)
    if scenario.quorum < trust.minimum_quorum:
        want = f"at least {trust.minimum_quorum} (minimum_quorum)"
        report.add("scenario quorum", scenario.quorum, want)


def _judge_commitments(case: Case, report: Report) -> None:
    receipt, want = case.receipt, case.bundle.scenario.commitments
    named = {"request": receipt.request, "response": receipt.response}
    for infer in receipt.infers:
        for side, tensors in (("input", infer.inputs), ("output", infer.outputs)):
            named |= {f"infer {infer.index} {side} {n}": d for n, d in tensors.items()}
    for where, commitment in named.items():
        report.require(f"{where} commitment", Scheme.of(commitment), want)


def _judge_configuration(case: Case, report: Report) -> None:
    bundle, topology = case.bundle, case.topology
    if topology is None:
        return
    report.require("configuration service", topology.service, case.receipt.service)
    report.require(
        "configuration segments", topology.segments, len(bundle.plan.segments)
    )
    offered = bundle.configuration.get("scenarios")
    if not isinstance(offered, list) or bundle.scenario.to_json() not in offered:
        report.add("scenario", bundle.scenario.name, "one that the configuration has")


def _judge_signature(case: Case, report: Report) -> None:
    key = case.keys.get(case.receipt.service)
    if key is None:
        report.add("receipt signature", "no key document of the entry", "one")
        return
    try:
        verify(case.bundle.receipt, key, payload_type=INTOTO_TYPE)
    except VerificationError as error:
        report.add("receipt signature", str(error), "one by the entry's key")


def _judge_times(case: Case, report: Report) -> None:
    receipt = case.receipt
    if receipt.started_at > receipt.issued_at:
        report.add("started_at", receipt.started_at, f"at most {receipt.issued_at}")
    latest = format_time(case.now + timedelta(seconds=CLOCK_SKEW_SECONDS))
    if receipt.issued_at > latest:
        report.add("issued_at", receipt.issued_at, f"at most {latest}")


def _claims(
    case: Case, report: Report, results: Mapping[str, AttestationResult]
) -> dict[str, Any]:
    receipt, scenario = case.receipt, case.bundle.scenario
    return {
        "service": receipt.service,
        "api": receipt.api,
        "status": receipt.status,
        "scenario": {
            "name": receipt.scenario_name,
            "digest": receipt.scenario_digest,
        },
        "plan_digest": receipt.plan_digest,
        "config_digest": receipt.config_digest,
        "client_nonce": receipt.client_nonce,
        "started_at": receipt.started_at,
        "issued_at": receipt.issued_at,
        "infers": len(receipt.infers),
        "segments": len(case.bundle.plan.segments),
        "replicas": scenario.replicas,
        "quorum": scenario.quorum,
        "independence": scenario.independence.value,
        "mode": scenario.mode.value,
        "parties": [
            {
                "name": name,
                "role": case.parties[name].role,
                "platform": result.kind,
                "platform_id": result.claims.platform_id,
                "vendor": result.claims.vendor,
                "root": result.claims.root,
                "evidence": case.parties[name].evidence,
                "verified_at": format_seconds(result.verified_at),
                "expires_at": format_seconds(result.expires_at),
                "simulated": result.simulated,
            }
            for name, result in sorted(results.items())
        ],
        "dissenters": report.dissenters,
        "skipped": report.skipped,
        "ruled": report.ruled,
        "not_blind": report.sighted,
        "dissenting_chains": report.doubts,
        "audited": report.audited,
        **({"epoch": report.gathered} if report.gathered else {}),
        **_proven(report),
        "absent": report.absent,
        "missing_attachments": report.late,
    }


def _proven(report: Report) -> dict[str, Any]:
    """Return what proofs come to, if there are any; what is unsafe stands on top."""
    if not report.proven:
        return {}
    proven = {name: v for name, v in report.proven.items() if name not in _ON_TOP}
    return {
        "proofs": proven,
        "proof_opening": report.proven["opening"],
        "unsafe_srs": report.proven["unsafe_srs"],
    }


_ON_TOP = frozenset({"opening", "unsafe_srs"})


def _labels(
    receipt: Receipt, *, given: bool, opened: bool, committed: bool
) -> dict[str, Any]:
    """Say of each claim that rests on somebody's word whose word it is."""
    asserted, draw = "asserted by the entry", "committed; when, is not checked"
    if receipt.draw.asserted:
        draw = asserted
    elif committed:
        draw = "committed before the nonce"
    return {
        "labels": {
            "distances": asserted,
            "weights": asserted,
            "reasons of skips and absences": asserted,
            "commitments before reveals": asserted,
            "nonces of runners": asserted,
            "bodies and tensors belong together": asserted,
            "draw": draw,
            "nonce": f"drawn by the {receipt.nonce_drawn_by}",
            "salt": f"drawn by the {receipt.salt_drawn_by}",
            "first hop": receipt.first_hop,
            "evidence time": "given" if given else "asserted by the issuer",
            "opening": "checked" if opened else "not checked",
        }
    }
