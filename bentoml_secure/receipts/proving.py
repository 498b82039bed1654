"""Judging the attachments "proof": every segment's, and all of them together.

Each proof, as it is read:

1. it is of a segment of this plan and an ``infer`` of this receipt, and there once
2. its prover's key document has that role, name and segment, the receipt's plan and
   configuration and a package of the trust file; no other party has its key
3. its prover's evidence verifies and is acceptable, over the nonce that follows from
   the receipt and this place, at the time when the proof was signed, and of a kind
   that may run the segment
4. it names the client's nonce and the manifest of the configuration
5. the first segment's names the commitments of what went in, the last one's those of
   the answer, and how far that is from the proven one

All of them, when they are read:

6. the manifest is the one that the configuration names, of this plan and a backend
   that is known, signed by somebody whom the trust file lists, under a reference
   string that it lists, and an unsafe one only where it allows that
7. no two segments have one prover
8. no answer is further from the proven one than the manifest allows
9. what came out of a segment went into the next; and every proof verifies
                                                           (``proofs.linking``)
10. where the caller has the root salt: what was hashed is what it sent and was answered
                                                           (``proof_opening``)

Where the manifest does not hold, nothing says what a proof would show: 8 to 10 are left
out, and the receipt is rejected for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bentoml_secure.attestation.endorsement_folder import endorsed
from bentoml_secure.attestation.evidence import UncheckedField
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.errors import (
    ConfigurationError,
    Finding,
    MalformedInputError,
    PolicyRejected,
    ProofError,
    UnavailableError,
    UnknownKindError,
    VerificationError,
)
from bentoml_secure.proofs.backends import open_backend
from bentoml_secure.proofs.folder import VerificationKeys, parse_verification_keys
from bentoml_secure.proofs.linking import VERIFYING, find_in_links, verify_each
from bentoml_secure.proofs.links import Link
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.proofs.proof import Limits, ProofBackend
from bentoml_secure.receipts.attachments import Attachment
from bentoml_secure.receipts.parties import require_listed
from bentoml_secure.receipts.proof_opening import judge_proof_openings
from bentoml_secure.receipts.proofs import PROOF, ProofRecord, evidence_nonce
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.statements import parse_time

if TYPE_CHECKING:
    from bentoml_secure.receipts.judgement import Judgement
    from bentoml_secure.receipts.opening import Opening

_FRESH = "age"
"""Evidence over a nonce that follows from the receipt is younger than the receipt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checker:
    """What proofs are verified with.

    Attributes:
        open: Returns the backend of a name.
        limits: Of the process that verifies.
    """

    open: Callable[[str], ProofBackend] = open_backend
    limits: Limits = VERIFYING


CHECKER = Checker()
"""The backends that are installed."""


def judge(attachment: Attachment, judgement: Judgement) -> None:
    """Judge one proof's attachment against its receipt; see the module's steps.

    Raises:
        MalformedInputError: Not of this kind's form.
    """
    record = ProofRecord.from_attachment(attachment)
    where = where_of(record)
    if record.place not in judgement.places:
        want = "a segment of the plan, in an infer of the receipt"
        judgement.report.add(where, "no such place", want)
        return
    if record.place in judgement.proofs:
        judgement.report.add(where, "two of them", "1")
        return
    judgement.proofs[record.place] = record
    _judge_document(judgement, record, where)
    _judge_evidence(judgement, record, where)
    _judge_bindings(judgement, record, where)


def where_of(record: ProofRecord) -> str:
    """Return how findings name a proof."""
    return f"{PROOF} infer {record.infer} segment {record.segment}"


def _judge_document(judgement: Judgement, record: ProofRecord, where: str) -> None:
    case, report, document = judgement.case, judgement.report, record.key_document
    segment = case.bundle.plan.segments[record.segment]
    name = case.topology and case.topology.prover_name(record.segment)
    for field, got, want in (
        ("role", document.role.value, Role.PROVER.value),
        ("service", document.service, name or "nobody: the configuration proves none"),
        ("segment", document.segment, segment.identity),
        ("plan", document.plan, case.receipt.plan_digest),
        ("config_digest", document.config_digest, case.receipt.config_digest),
    ):
        report.require(f"{where} prover {field}", got, want)
    require_listed(
        report, f"{where} prover package", document.package, case.trust.package_digests
    )
    for party, other in sorted(case.key_documents.items()):
        if other.ed25519 == document.ed25519:
            report.add(f"{where} prover ed25519", f"that of {party}", "one of its own")


def _judge_evidence(judgement: Judgement, record: ProofRecord, where: str) -> None:
    case, report = judgement.case, judgement.report
    where = f"{where} prover"
    evidence = endorsed(record.evidence, case.bundle.own)
    issued = parse_time(case.receipt.issued_at, what="issued_at")
    signed = parse_time(record.issued_at, what="issued_at")
    try:
        result = verify_key_document(
            record.key_document,
            evidence.evidence,
            evidence.endorsements,
            case.trust.policy,
            nonce=evidence_nonce(case.receipt_digest, *record.place),
            # Later than the receipt's evidence by as much as the proof took.
            now=case.at + (signed - issued),
            nonce_issued_at=None,
            gpu=evidence.gpu,
        )
    except PolicyRejected as rejection:
        report.adopt(f"{where} evidence", rejection.findings)
    except (VerificationError, MalformedInputError, UnknownKindError) as error:
        report.add(f"{where} evidence", str(error), "evidence that verifies")
    except UnavailableError as error:
        report.unjudged.append(error)
    else:
        judgement.provers[record.place] = result
        report.unchecked += [
            UncheckedField(field=f"{where} {left.field}", reason=left.reason)
            for left in result.unchecked
            if left.field != _FRESH
        ]
        kinds = case.bundle.scenario.kinds(record.segment)
        if kinds is not None and result.kind not in kinds:
            report.add(f"{where} placement", result.kind, f"one of {', '.join(kinds)}")


def _judge_bindings(judgement: Judgement, record: ProofRecord, where: str) -> None:
    case, report = judgement.case, judgement.report
    infer = case.receipt.infers[record.infer]
    first = record.segment == 0
    last = record.segment == len(case.bundle.plan.segments) - 1
    serves = case.bundle.scenario.serve_proven
    for field, got, want in (
        ("nonce", record.nonce, case.receipt.client_nonce),
        ("manifest", record.manifest, _configured_manifest(judgement)),
        ("inputs", record.inputs, infer.inputs if first else None),
        (
            "outputs",
            record.outputs,
            judgement.answers.get(infer.index) if last else None,
        ),
        ("proven", record.proven, infer.outputs if last and serves else None),
    ):
        report.require(f"{where} {field}", got, want)
    if (record.opening is not None) is not (first or last):
        got, want = ("none", "one") if first or last else ("one", "none")
        report.add(f"{where} opening", got, f"{want} at this place of the chain")


def _configured_manifest(judgement: Judgement) -> str:
    said = judgement.case.bundle.configuration.get("proofs")
    manifest = said.get("manifest") if isinstance(said, dict) else None
    return manifest if isinstance(manifest, str) else "none in the configuration"


def judge_proofs(
    judgement: Judgement, opening: Opening | None, checker: Checker
) -> None:
    """Judge all proofs of a receipt together, as far as they are there.

    Args:
        judgement: Every attachment has been judged.
        opening: What the caller holds of the request.
        checker: What proofs are verified with.
    """
    report = judgement.report
    if not judgement.proofs:
        return
    keys = _judge_set_up(judgement)
    _require_distinct(judgement)
    if keys is None:
        return
    manifest = keys.manifest
    _judge_outputs(judgement, manifest)
    chains: dict[int, dict[int, Any]] = {}
    for (infer, segment), record in sorted(judgement.proofs.items()):
        chains.setdefault(infer, {})[segment] = record.proof
    for infer, chain in chains.items():
        found = find_in_links(manifest, chain, where=f"{PROOF} infer {infer}")
        for finding in found:
            report.add(finding.field, finding.got, finding.want)
    report.proven = _claims(judgement, manifest)
    try:
        backend = checker.open(manifest.backend)
        verify_each(
            manifest,
            keys.keys,
            list(chains.values()),
            backend=backend,
            limits=checker.limits,
        )
        if opening is not None and opening.salt is not None:
            judge_proof_openings(
                judgement.proofs,
                manifest,
                opening.salt,
                judgement.case.bundle.scenario.commitments,
                backend,
                checker.limits,
                report,
            )
            if len(judgement.proofs) == len(judgement.places):
                report.proven["opening"] = "checked"
    except (ProofError, MalformedInputError, UnknownKindError) as error:
        report.add(PROOF, str(error), "proofs that verify")
    except (ConfigurationError, UnavailableError) as error:
        # Not installed, or not enough memory: that accepts nothing, and rejects none.
        report.unjudged.append(error)


def _judge_set_up(judgement: Judgement) -> VerificationKeys | None:
    """Return what verifies the proofs, if the caller trusts it."""
    case, report = judgement.case, judgement.report
    what = "bundle verification_keys"
    if case.bundle.verification_keys is None:
        report.add(what, "none", "those that proofs are verified with")
        return None
    try:
        keys = parse_verification_keys(case.bundle.verification_keys)
    except (MalformedInputError, VerificationError) as error:
        report.add(what, str(error), "a signed manifest, and what it pins")
        return None
    findings = [
        *_manifest_findings(judgement, keys.manifest),
        *trust_findings(keys.manifest, case.trust),
    ]
    for finding in findings:
        report.add(finding.field, finding.got, finding.want)
    report.unchecked += set_up_warnings(keys.manifest)
    return None if findings else keys


def _manifest_findings(judgement: Judgement, manifest: Manifest) -> list[Finding]:
    case = judgement.case
    got = [segment.segment for segment in manifest.segments]
    want = [segment.identity for segment in case.bundle.plan.segments]
    pairs: tuple[tuple[str, object, object], ...] = (
        ("manifest", manifest.digest, _configured_manifest(judgement)),
        ("manifest plan", manifest.plan, case.receipt.plan_digest),
        ("manifest segments", got, want),
    )
    return [Finding(f, str(g), str(w)) for f, g, w in pairs if g != w]


def set_up_warnings(manifest: Manifest) -> list[UncheckedField]:
    """Return what a caller accepts who accepts this set-up.

    Args:
        manifest: Whose signature holds.
    """
    warnings = {}
    if manifest.srs.unsafe:
        warnings["srs"] = "unsafe: who generated it can forge proofs (unsafe_srs)"
    if manifest.link is Link.POLYCOMMIT:
        warnings["links"] = (
            "polycommit: proofs tell of what went between segments, and nobody "
            "compared its salts with the root salt (polycommit_links)"
        )
    return [UncheckedField(field=f, reason=reason) for f, reason in warnings.items()]


def trust_findings(manifest: Manifest, trust: Trust) -> list[Finding]:
    """Return why a caller's trust file does not accept a proof set-up.

    Args:
        manifest: Whose signature holds.
        trust: The caller's.
    """
    srs = manifest.srs
    findings = [
        Finding(name, got, f"one that the trust file lists ({key})")
        for name, got, listed, key in (
            ("manifest signer", manifest.signer_id, trust.manifest_signers, _SIGNERS),
            ("srs", srs.digest, trust.srs, "srs"),
        )
        if got not in listed
    ]
    if srs.unsafe and not trust.unsafe_srs:
        want = "one whose secret nobody knows (or unsafe_srs in the trust file)"
        findings.append(Finding("srs", "unsafe", want))
    if manifest.link is Link.POLYCOMMIT and not trust.polycommit_links:
        want = "hashed, which tells nothing (or polycommit_links in the trust file)"
        findings.append(Finding("manifest link", str(manifest.link), want))
    return findings


_SIGNERS = "manifest_signers"


def _require_distinct(judgement: Judgement) -> None:
    first: dict[str, int] = {}
    for (_, segment), record in sorted(judgement.proofs.items()):
        other = first.setdefault(record.key_document.ed25519, segment)
        if other != segment:
            judgement.report.add(
                f"{where_of(record)} prover ed25519",
                f"that of segment {other}",
                "one of its own",
            )


def _judge_outputs(judgement: Judgement, manifest: Manifest) -> None:
    """Refuse tensors that the chain does not prove, and answers too far from it."""
    report, bound = judgement.report, manifest.accuracy.bound
    for record in judgement.proofs.values():
        where = where_of(record)
        for side, named, form in (
            ("inputs", record.inputs, manifest.segments[0].inputs),
            ("outputs", record.outputs, manifest.segments[-1].outputs),
        ):
            if named is not None:
                proven = sorted(tensor.name for tensor in form)
                report.require(f"{where} proven {side}", sorted(named), proven)
        for name, apart in sorted((record.deviation or {}).items()):
            # Not "apart > bound": a comparison with NaN is false.
            if not apart <= bound:
                want = f"at most {bound:g}, the manifest's bound"
                report.add(f"{where} deviation {name}", f"{apart:g}", want)


def _claims(judgement: Judgement, manifest: Manifest) -> dict[str, Any]:
    largest: dict[str, float] = {}
    for record in judgement.proofs.values():
        for name, apart in (record.deviation or {}).items():
            largest[name] = max(apart, largest.get(name, 0.0))
    claims: Mapping[str, Any] = {
        "manifest": manifest.digest,
        "signer": manifest.signer_id,
        "backend": f"{manifest.backend} {manifest.backend_version}",
        "srs": manifest.srs.digest,
        "unsafe_srs": manifest.srs.unsafe,
        "links": str(manifest.link),
        "verified": len(judgement.proofs),
        "of": len(judgement.places),
        "deviation": largest,
        "bound": manifest.accuracy.bound,
        "opening": "not checked",
        "provers": [
            {
                "infer": infer,
                "segment": segment,
                "name": judgement.proofs[infer, segment].key_document.service,
                "platform": result.kind,
                "platform_id": result.claims.platform_id,
                "evidence": judgement.proofs[infer, segment].evidence.digest,
                "simulated": result.simulated,
            }
            for (infer, segment), result in sorted(judgement.provers.items())
        ],
    }
    return dict(claims)
