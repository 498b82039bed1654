"""One proof by itself: a file of it, and judging it without its receipt.

    {"version": 1, "receipt_id": hex, "receipt_digest": digest, "infer": 0,
     "segment": 0, "proof": {...}, "opening": base64 or null}

The attachment "proof" of a receipt is read as one too. Who proved it, and for which
answer, its receipt says and ``verify receipt`` judges; this says that the segment maps
what hashes to the one to what hashes to the other, and to whom has the root salt, that
these are the tensors in hand:

1. the manifest is signed by somebody whom the trust file lists, of a plan and under a
   reference string that it lists; an unsafe one only where it allows that
2. settings and verification key are those that the manifest pins for the segment
3. the proof verifies
4. with the root salt: the salts are the request's; at the chain's ends, the input is
   what was hashed, and the output is what came out, as far as the manifest's bound goes
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bentoml_secure.attestation.evidence import UncheckedField
from bentoml_secure.digest import digest_file_bytes, parse_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    ProofError,
    VerificationError,
)
from bentoml_secure.proofs.boundary import activations_of
from bentoml_secure.proofs.field import is_commitment
from bentoml_secure.proofs.linking import verify_segment
from bentoml_secure.proofs.manifest import Manifest, verify_manifest
from bentoml_secure.proofs.orders import About
from bentoml_secure.proofs.proof import BoundaryValues, SegmentProof, VerificationKey
from bentoml_secure.proofs.sealing import PROVEN, open_opening
from bentoml_secure.proofs.srs import verifier_digest
from bentoml_secure.receipts.attachments import read_attachment
from bentoml_secure.receipts.case import Report
from bentoml_secure.receipts.parties import require_listed
from bentoml_secure.receipts.proof_opening import (
    Expected,
    Secrets,
    judge_deviation,
    require_hashes,
)
from bentoml_secure.receipts.proofs import MAX_OPENING_BYTES, PROOF, ProofRecord
from bentoml_secure.receipts.proving import (
    CHECKER,
    Checker,
    set_up_warnings,
    trust_findings,
)
from bentoml_secure.receipts.strict import fields, whole
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.signing import (
    MAX_ENVELOPE_BYTES,
    Envelope,
    decode_base64,
    parse_envelope,
)
from bentoml_secure.tensors import Array

MAX_PROOF_FILE_BYTES = 2 * MAX_ENVELOPE_BYTES
_ABOUT = ("receipt_id", "receipt_digest", "infer", "segment")
_FIELDS = ("version", *_ABOUT, "proof", "opening")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofFile:
    """One proof, and which it is said to be; nothing of it is verified.

    Attributes:
        about: Which proof.
        proof: Of the segment.
        opening: Sealed for who has the root salt; None between the chain's ends.
    """

    about: About
    proof: SegmentProof
    opening: bytes | None

    @classmethod
    def of(cls, record: ProofRecord) -> ProofFile:
        """Return what a prover's record has of it."""
        return cls(about=record.about, proof=record.proof, opening=record.opening)

    def to_json(self) -> dict[str, Any]:
        """Return the document of a file."""
        opening = self.opening
        return {
            "version": 1,
            **self.about.to_json(),
            "proof": self.proof.to_json(),
            "opening": None if opening is None else base64.b64encode(opening).decode(),
        }


def parse_proof_file(data: bytes) -> ProofFile:
    """Parse a proof's file, or the attachment of a receipt as JSON.

    Raises:
        MalformedInputError: Neither; a field missing, unknown or of another form.
    """
    document = parse_json(data, what=PROOF, max_bytes=MAX_PROOF_FILE_BYTES)
    if isinstance(document, dict) and "payload" in document:
        attachment = read_attachment(parse_envelope(document, what=PROOF))
        if attachment.kind != PROOF:
            raise MalformedInputError(
                f"attachment: got kind {attachment.kind!r:.60}, want {PROOF!r}"
            )
        return ProofFile.of(ProofRecord.from_attachment(attachment))
    got = fields(document, _FIELDS, what=PROOF)
    whole(got["version"], what=f"{PROOF} version", low=1, high=1)
    opening = got["opening"]
    return ProofFile(
        about=About(**{name: got[name] for name in _ABOUT}),
        proof=SegmentProof.from_json(got["proof"]),
        opening=None
        if opening is None
        else decode_base64(
            opening, what=f"{PROOF} opening", max_bytes=MAX_OPENING_BYTES
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the caller holds of a request.

    Attributes:
        salt: The 32-byte root salt.
        inputs: Tensors that went into the plan, by name.
        outputs: Tensors that came out of it.

    Raises:
        ConfigurationError: Tensors and no salt: nothing to compare them with.
    """

    salt: bytes | None = None
    inputs: Mapping[str, Array] | None = None
    outputs: Mapping[str, Array] | None = None

    def __post_init__(self) -> None:
        if self.salt is None and (self.inputs is not None or self.outputs is not None):
            raise ConfigurationError("proof: input and output need the root salt.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What a proof is judged against.

    Attributes:
        manifest: Of the proof set-up, signed.
        key: Settings and verification key of the proof's segment.
        srs: The verifier's part of the structured reference string.
        trust: The caller's.
    """

    manifest: Envelope
    key: VerificationKey
    srs: bytes
    trust: Trust


def verify_proof_file(
    file: ProofFile,
    against: Against,
    held: Held | None = None,
    checker: Checker = CHECKER,
) -> dict[str, Any]:
    """Judge one proof; see the module's steps.

    Args:
        file: As parsed.
        against: What it is judged against.
        held: What the caller holds of the request.
        checker: What proofs are verified with.

    Returns:
        What it shows, JSON-able.

    Raises:
        ProofError: Rejected; ``findings`` lists every failing point.
        VerificationError: The manifest is not signed by the key that it names.
        ConfigurationError: An input or output for a segment that is not at that end.
        MissingDependencyError: What verifies it is not installed.
        UnavailableError: The process that verifies was killed, by its limits or
            otherwise.
    """
    report, held = Report(), held or Held()
    manifest = verify_manifest(against.manifest)
    index = file.about.segment
    if index >= len(manifest.segments):
        count = len(manifest.segments)
        raise ProofError(f"proof segment: got {index}, the manifest has {count}")
    _require_end(held, index, len(manifest.segments))
    _judge_set_up(manifest, index, against, report)
    _raise(report)
    backend = checker.open(manifest.backend)
    verify_segment(
        manifest,
        index,
        against.key,
        file.proof,
        backend=backend,
        limits=checker.limits,
    )
    if held.salt is not None:
        expected = list(_opened(file, manifest, held.salt, held, report))
        require_hashes(expected, backend, checker.limits, report)
        _raise(report)
    return {
        "segment": index,
        "segments": len(manifest.segments),
        "receipt_id": file.about.receipt_id,
        "infer": file.about.infer,
        "plan_digest": manifest.plan,
        "manifest": manifest.digest,
        "signer": manifest.signer_id,
        "backend": f"{manifest.backend} {manifest.backend_version}",
        "srs": manifest.srs.digest,
        "unsafe_srs": manifest.srs.unsafe,
        "links": str(manifest.link),
        "instances": file.proof.facts.to_json(),
        "proof_opening": "not checked" if held.salt is None else "checked",
        "unchecked": [left.to_json() for left in report.unchecked],
    }


def _require_end(held: Held, index: int, count: int) -> None:
    for what, tensors, at_end in (
        ("input", held.inputs, index == 0),
        ("output", held.outputs, index == count - 1),
    ):
        if tensors is not None and not at_end:
            raise ConfigurationError(
                f"proof {what}: segment {index} of {count} is not at that end.",
                remedy="Give it with the proof of the first or last segment.",
            )


def _judge_set_up(
    manifest: Manifest, index: int, against: Against, report: Report
) -> None:
    trust, pinned = against.trust, manifest.segments[index]
    for finding in trust_findings(manifest, trust):
        report.add(finding.field, finding.got, finding.want)
    report.unchecked += set_up_warnings(manifest)
    require_listed(report, "plan_digest", manifest.plan, trust.plan_digests)
    for name, got, want in (
        ("settings", digest_file_bytes(against.key.settings), pinned.settings),
        ("vk", digest_file_bytes(against.key.key), pinned.key),
        ("srs file", verifier_digest(against.srs), manifest.srs.digest),
    ):
        report.require(name, got, want)
    report.unchecked.append(
        UncheckedField(
            field="prover",
            reason="who proved it and for which answer, `verify receipt` judges",
        )
    )


def _opened(
    file: ProofFile, manifest: Manifest, salt: bytes, held: Held, report: Report
) -> Iterator[Expected]:
    """Yield what the proof's hashes have to be of, by the root salt."""
    index, facts, form = file.about.segment, file.proof.facts, manifest.salt
    request_id = bytes.fromhex(file.about.receipt_id)
    secrets = Secrets(root=salt, request_id=request_id, infer=file.about.infer)
    after = form.expand(secrets.boundary(index + 1))
    if not is_commitment(facts.salt):
        yield Expected("salt", facts.salt, after)
    try:
        if held.inputs is not None:
            first = manifest.segments[0].inputs
            values = activations_of(held.inputs, first, manifest.scale)
            before = form.expand(secrets.boundary(0))
            yield Expected("input", facts.input, (*values, *before))
        if held.outputs is not None:
            proven = _proven(file, secrets)
            yield Expected("output", facts.output, (*proven, *after))
            judge_deviation(manifest, proven, held.outputs, "output", report)
    except (VerificationError, MalformedInputError) as error:
        report.add("opening", str(error), "what the prover proved")


def _proven(file: ProofFile, secrets: Secrets) -> BoundaryValues:
    if file.opening is None:
        raise MalformedInputError("opening: got none, want one to compare with")
    key = secrets.opening_key(last=True)
    opened = open_opening(key, file.opening, file.about)
    if PROVEN not in opened:
        raise MalformedInputError(f"opening: holds no tensor {PROVEN!r}")
    return tuple(int(value) for value in opened[PROVEN])


def _raise(report: Report) -> None:
    if report.findings:
        raise ProofError("proof rejected", report.findings)
