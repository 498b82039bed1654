"""Judging the parties: who they are, what evidence binds, whether they are distinct.

For every party of the receipt:

    1. the bundle holds the key document and the evidence that the receipt names
    2. the evidence verifies, binds that document to the nonce and is acceptable under
       the trust file's policy, at the time asked for
    3. at the time of issue it was no older than the scenario allows
    4. the document names that role and service, the receipt's plan and configuration,
       and a package of the trust file
    5. no key document and no Ed25519 key stands under two names
    6. there is one entry, it is the receipt's service; every other is a runner
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from bentoml_secure.attestation.evidence import AttestationResult, UncheckedField
from bentoml_secure.attestation.reference_values import References, compare_reference
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.errors import (
    MalformedInputError,
    PolicyRejected,
    UnavailableError,
    UnknownKindError,
    VerificationError,
)
from bentoml_secure.receipts.case import Case, Report
from bentoml_secure.receipts.receipt import ENTRY, Party
from bentoml_secure.statements import parse_time


def judge_parties(
    case: Case, report: Report
) -> tuple[dict[str, AttestationResult], UnavailableError | None]:
    """Judge every party; see the module's steps.

    Returns:
        What was accepted, by name; and why evidence could not be judged at all, if
        some could not: an endorsement was missing, which is no fault of the party.
    """
    results: dict[str, AttestationResult] = {}
    unavailable: UnavailableError | None = None
    _require_one_entry(case, report)
    _require_named_only(case, report)
    for party in case.receipt.parties:
        _require_age(party, case, report)
        _require_document(party, case, report)
        try:
            if (result := _appraise(party, case, report)) is not None:
                results[party.name] = result
        except UnavailableError as error:
            unavailable = error
    _require_distinct(case, report)
    return results, unavailable


def require_listed(report: Report, name: str, got: str, references: References) -> None:
    """Note a value that the trust file does not list, or that it lists none."""
    comparison = compare_reference(name, got, references)
    for finding in comparison.findings:
        report.add(finding.field, finding.got, finding.want)
    report.unchecked += comparison.unchecked


def _require_one_entry(case: Case, report: Report) -> None:
    entries = [party.name for party in case.receipt.parties if party.role == ENTRY]
    report.require("parties entry", entries, [case.receipt.service])


def _require_named_only(case: Case, report: Report) -> None:
    parties, bundle = case.receipt.parties, case.bundle
    for what, held, named in (
        (
            "key_documents",
            [document.digest for document in bundle.key_documents],
            {party.key_document for party in parties},
        ),
        (
            "evidence",
            [record.digest for record in bundle.evidence],
            {party.evidence for party in parties},
        ),
    ):
        if extra := sorted(set(held) - named):
            report.add(f"bundle {what}", extra[0], "only what the receipt names")
        if len(set(held)) != len(held):
            report.add(f"bundle {what}", "one of them twice", "each once")


def _require_age(party: Party, case: Case, report: Report) -> None:
    issued = parse_time(case.receipt.issued_at, what="issued_at")
    drawn = parse_time(party.nonce_issued_at, what="nonce_issued_at")
    oldest = timedelta(seconds=case.bundle.scenario.evidence_max_age_seconds)
    if not timedelta(0) <= issued - drawn <= oldest:
        report.add(
            f"party {party.name} nonce_issued_at",
            party.nonce_issued_at,
            f"at most {oldest.total_seconds():.0f} s before {case.receipt.issued_at}",
        )


def _require_document(party: Party, case: Case, report: Report) -> None:
    where = f"party {party.name}"
    document = case.key_documents.get(party.name)
    if document is None:
        report.add(f"{where} key_document", "not in the bundle", party.key_document)
        return
    report.require(f"{where} role", document.role.value, party.role)
    report.require(f"{where} service", document.service, party.name)
    report.require(f"{where} plan", document.plan, case.receipt.plan_digest)
    report.require(
        f"{where} config_digest", document.config_digest, case.receipt.config_digest
    )
    require_listed(
        report, f"{where} package", document.package, case.trust.package_digests
    )


def _appraise(party: Party, case: Case, report: Report) -> AttestationResult | None:
    where = f"party {party.name}"
    document = case.key_documents.get(party.name)
    record = case.evidence.get(party.name)
    if record is None:
        report.add(f"{where} evidence", "not in the bundle", party.evidence)
    if record is None or document is None:
        return None
    try:
        result = verify_key_document(
            document,
            record.evidence,
            record.endorsements,
            case.trust.policy,
            nonce=bytes.fromhex(party.evidence_nonce),
            now=case.at,
            nonce_issued_at=parse_time(party.nonce_issued_at, what="nonce_issued_at"),
            gpu=record.gpu,
        )
    except PolicyRejected as rejection:
        report.adopt(f"{where} evidence", rejection.findings)
    except (VerificationError, MalformedInputError, UnknownKindError) as error:
        report.add(f"{where} evidence", str(error), "evidence that verifies")
    else:
        report.unchecked += [
            UncheckedField(field=f"{where} {left.field}", reason=left.reason)
            for left in result.unchecked
        ]
        return result
    return None


def _require_distinct(case: Case, report: Report) -> None:
    for what, values in (
        ("key_document", {p.name: p.key_document for p in case.receipt.parties}),
        ("ed25519", {name: d.ed25519 for name, d in case.key_documents.items()}),
    ):
        first: dict[str, str] = {}
        for name, value in _sorted(values):
            if (other := first.setdefault(value, name)) != name:
                report.add(f"party {name} {what}", f"that of {other}", "one of its own")


def _sorted(values: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted(values.items())
