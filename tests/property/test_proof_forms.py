"""Edited proofs, keys and files: refused, or read as nothing but what they say."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bentoml_secure.digest import canonical_json, digest_json
from bentoml_secure.errors import MalformedInputError, SecureError
from bentoml_secure.proofs.backends.ezkl import require_settings
from bentoml_secure.proofs.orders import About
from bentoml_secure.proofs.proof import Facts, SegmentProof
from bentoml_secure.receipts.attachments import Attachment, parse_attachment
from bentoml_secure.receipts.proof_files import ProofFile, parse_proof_file
from bentoml_secure.receipts.proofs import ProofRecord, issue_proof, prover_key
from bentoml_secure.testing.deployment import build_deployment
from tests.property.test_receipts_forms import edits

DEPLOYMENT = build_deployment()
COMMITMENTS = st.binary(min_size=64, max_size=64).map(bytes.hex)
HASHES = st.integers(0, 2**250).map(lambda value: value.to_bytes(32, "little").hex())
PROOFS = st.builds(
    SegmentProof,
    backend=st.just("ezkl"),
    facts=st.builds(Facts, *[HASHES | COMMITMENTS] * 3),
    proof=st.binary(min_size=1, max_size=64),
)
OPENINGS = st.none() | st.binary(max_size=64)


def record_of(proof: SegmentProof, opening: bytes | None) -> ProofRecord:
    process = DEPLOYMENT.runners[0][0]
    _, evidence = process.party(bytes(32), DEPLOYMENT.now)
    return ProofRecord(
        receipt_id="00" * 16,
        receipt_digest=digest_json("a receipt"),
        issued_at="2026-06-01T12:00:00.000Z",
        infer=0,
        segment=1,
        nonce="00" * 32,
        manifest=digest_json("a manifest"),
        proof=proof,
        key_document=process.document,
        evidence=evidence,
        deviation={"y": 0.5},
        outputs=DEPLOYMENT_OUTPUTS,
        opening=opening,
    )


DEPLOYMENT_OUTPUTS: dict[str, Any] = {"y": "hmac-sha256-tensors-v1:" + "0" * 64}
SEED = record_of(
    SegmentProof(backend="ezkl", facts=Facts(*["0" * 64] * 3), proof=b"proof"), b"seal"
)
STATEMENT = json.loads(issue_proof(SEED, DEPLOYMENT.entry.signing).payload)


@settings(max_examples=50)
@given(PROOFS, OPENINGS)
def test_a_record_parses_back(proof: SegmentProof, opening: bytes | None) -> None:
    record = record_of(proof, opening)
    envelope = issue_proof(record, DEPLOYMENT.entry.signing)
    attachment = parse_attachment(json.loads(envelope.payload))
    assert ProofRecord.from_attachment(attachment) == record


@settings(max_examples=200)
@given(st.data())
def test_an_edited_record_parses_back_or_is_refused(data: st.DataObject) -> None:
    changed = data.draw(edits(copy.deepcopy(STATEMENT["predicate"])))
    if not isinstance(changed, dict):
        return
    content = {k: v for k, v in changed.items() if k in SEED.to_json()}
    attachment = Attachment(
        kind="proof",
        receipt_digest=SEED.receipt_digest,
        receipt_id=SEED.receipt_id,
        issued_at=SEED.issued_at,
        content=content,
    )
    try:
        record = ProofRecord.from_attachment(attachment)
        prover_key(attachment)
    except SecureError:
        return
    assert record.to_json() == content


@settings(max_examples=50)
@given(PROOFS, OPENINGS)
def test_a_file_parses_back(proof: SegmentProof, opening: bytes | None) -> None:
    about = About(
        receipt_id="00" * 16,
        receipt_digest=digest_json("a receipt"),
        infer=0,
        segment=0,
    )
    file = ProofFile(about=about, proof=proof, opening=opening)
    assert parse_proof_file(canonical_json(file.to_json())) == file


@settings(max_examples=200)
@given(st.data())
def test_an_edited_file_parses_back_or_is_refused(data: st.DataObject) -> None:
    changed = data.draw(edits(ProofFile.of(SEED).to_json()))
    try:
        text = json.dumps(changed).encode()
        file = parse_proof_file(text)
    except (SecureError, ValueError):
        return
    assert file.to_json() == changed


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_bytes_are_no_proof(data: bytes) -> None:
    for parse in (parse_proof_file, require_settings):
        try:
            parse(data)
        except SecureError:
            continue
        raise AssertionError(base64.b64encode(data))


def settings_document() -> dict[str, Any]:
    """Return settings that are accepted."""
    return {
        "run_args": {
            "input_visibility": {"Hashed": {"hash_is_public": True, "outlets": []}},
            "param_visibility": "Fixed",
            "output_visibility": {"Hashed": {"hash_is_public": True, "outlets": []}},
            "num_inner_cols": 2,
            "logrows": 11,
            "lookup_range": [-8, 8],
        },
        "num_rows": 100,
        "total_assignments": 200,
        "required_range_checks": [[-1, 1], [0, 255]],
        "required_lookups": [],
        "module_sizes": {"poseidon": [64, [2]], "polycommit": []},
        "model_input_scales": [7, 7],
        "model_output_scales": [7],
    }


@settings(max_examples=200)
@given(st.data())
def test_edited_settings_are_read_or_refused(data: st.DataObject) -> None:
    document = settings_document()
    assert require_settings(json.dumps(document).encode()).input_scale == 7
    changed = data.draw(edits(document))
    try:
        text = json.dumps(changed).encode()
        require_settings(text)
    except (SecureError, ValueError):
        return
    assert isinstance(changed, dict)
    assert changed["run_args"]["param_visibility"] == "Fixed"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("module_sizes", "poseidon"), []),
        (("module_sizes", "polycommit"), ["many"]),
        (("run_args", "num_inner_cols"), 0),
        (("run_args", "logrows"), 1 << 40),
        (("run_args", "logrows"), -1),
    ],
)
def test_settings_that_count_in_vain_are_refused(
    path: tuple[str, str], value: object
) -> None:
    document = settings_document()
    document[path[0]][path[1]] = value
    with pytest.raises(MalformedInputError, match="settings"):
        require_settings(json.dumps(document).encode())
