"""Proofs of receipts: read back as they were read, whoever wrote them."""

from __future__ import annotations

from contextlib import suppress

from bentoml_secure.digest import Digest, canonical_json, digest_json, parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.proofs.backends.ezkl import require_settings
from bentoml_secure.proofs.proof import Facts, SegmentProof
from bentoml_secure.receipts.attachments import parse_attachment, signer_of
from bentoml_secure.receipts.proof_files import ProofFile, parse_proof_file
from bentoml_secure.receipts.proofs import ProofRecord, issue_proof
from bentoml_secure.testing.deployment import build_deployment
from fuzz._same import require_same

MAX_BYTES = 1 << 20
_DEPLOYMENT = build_deployment()
_PROVER = _DEPLOYMENT.runners[0][0]


_OUTPUTS = {"y": Digest("hmac-sha256-tensors-v1:" + "0" * 64)}


def _record(*, last: bool) -> ProofRecord:
    return ProofRecord(
        receipt_id="00" * 16,
        receipt_digest=digest_json("a receipt"),
        issued_at="2026-06-01T12:00:00.000Z",
        infer=0,
        segment=1,
        nonce="00" * 32,
        manifest=digest_json("a manifest"),
        proof=SegmentProof(
            backend="ezkl", facts=Facts(*["0" * 64] * 3), proof=b"proof"
        ),
        key_document=_PROVER.document,
        evidence=_PROVER.party(bytes(32), _DEPLOYMENT.now)[1],
        outputs=_OUTPUTS if last else None,
        deviation={"y": 0.5} if last else None,
        opening=b"sealed" if last else None,
    )


def seeds() -> list[bytes]:
    """Return proofs' statements, files of them, and settings."""
    records = [_record(last=last) for last in (False, True)]
    statements = [issue_proof(record, _PROVER.signing).payload for record in records]
    files = [canonical_json(ProofFile.of(record).to_json()) for record in records]
    return [*statements, *files, b'{"run_args": {}}']


def one(data: bytes) -> None:
    """Read bytes as a proof's statement, as a file of one, and as settings."""
    with suppress(SecureError):
        document = parse_json(data, what="proof", max_bytes=MAX_BYTES)
        attachment = parse_attachment(document)
        if attachment.kind == "proof":
            record = ProofRecord.from_attachment(attachment)
            signer_of(attachment)
            require_same(
                canonical_json(record.to_json()), canonical_json(attachment.content)
            )
    with suppress(SecureError):
        file = parse_proof_file(data)
        again = parse_proof_file(canonical_json(file.to_json()))
        require_same(again.to_json(), file.to_json())
    with suppress(SecureError):
        require_settings(data)
