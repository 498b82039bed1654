"""One proof by itself: what a file of it may say, and what it is judged against."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bentoml_secure.digest import canonical_json, digest_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    ProofError,
    VerificationError,
)
from bentoml_secure.proofs.sealing import seal_opening
from bentoml_secure.receipts.attachments import (
    Attachment,
    issue_attachment,
)
from bentoml_secure.receipts.proof_files import (
    Against,
    Held,
    ProofFile,
    parse_proof_file,
    verify_proof_file,
)
from bentoml_secure.testing.proofs import secrets_of
from bentoml_secure.testing.receipts import Draft
from tests import proven_case


@pytest.fixture
def draft() -> Draft:
    return proven_case.proven()[0]


def file_of(segment: int) -> ProofFile:
    return ProofFile.of(proven_case.proven()[1][0, segment])


def against(draft: Draft, segment: int) -> Against:
    made = proven_case.set_up()
    return Against(
        manifest=made.envelope,
        key=made.keys[segment].verification,
        srs=made.manifest.srs.verifier,
        trust=draft.deployment.trust,
    )


@pytest.mark.parametrize("segment", [0, 1])
def test_a_file_is_verified(draft: Draft, segment: int) -> None:
    file = parse_proof_file(canonical_json(file_of(segment).to_json()))
    claims = verify_proof_file(file, against(draft, segment))
    assert claims["segment"] == segment
    assert claims["segments"] == 2
    assert claims["instances"] == file.proof.facts.to_json()
    assert claims["proof_opening"] == "not checked"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": 2}, "version"),
        ({"receipt_id": "00"}, "receipt_id"),
        ({"receipt_digest": None}, "receipt_digest"),
        ({"infer": -1}, "infer"),
        ({"segment": True}, "segment"),
        ({"proof": []}, "proof"),
        ({"opening": "?"}, "opening"),
        ({"more": 1}, "unknown field"),
    ],
)
def test_files_that_are_none(changes: Mapping[str, Any], match: str) -> None:
    document = {**file_of(0).to_json(), **changes}
    with pytest.raises(MalformedInputError, match=match):
        parse_proof_file(json.dumps(document).encode())


def test_attachments_of_another_kind_are_none(draft: Draft) -> None:
    attachment = Attachment(
        kind="audit",
        receipt_digest=digest_json("a receipt"),
        receipt_id=draft.receipt.receipt_id,
        issued_at=draft.receipt.issued_at,
        content={},
    )
    envelope = issue_attachment(attachment, draft.deployment.entry.signing)
    with pytest.raises(MalformedInputError, match="got kind 'audit', want 'proof'"):
        parse_proof_file(json.dumps(envelope.to_json()).encode())


def test_of_a_segment_that_the_set_up_does_not_have(draft: Draft) -> None:
    file = replace(file_of(0), about=replace(file_of(0).about, segment=2))
    with pytest.raises(ProofError, match="segment: got 2, the manifest has 2"):
        verify_proof_file(file, against(draft, 0))


def test_a_manifest_that_its_signer_did_not_sign(draft: Draft) -> None:
    made = against(draft, 0)
    forged = replace(made.manifest, signature=bytes(64))
    with pytest.raises(VerificationError, match="does not verify"):
        verify_proof_file(file_of(0), replace(made, manifest=forged))


def test_a_plan_that_the_trust_file_does_not_list(draft: Draft) -> None:
    made = against(draft, 0)
    other = replace(made.trust, plan_digests=(digest_json("another plan"),))
    with pytest.raises(ProofError, match="plan_digest") as error:
        verify_proof_file(file_of(0), replace(made, trust=other))
    assert [finding.field for finding in error.value.findings] == ["plan_digest"]


def test_of_another_backend(draft: Draft) -> None:
    file = file_of(0)
    other = replace(file, proof=replace(file.proof, backend="other"))
    with pytest.raises(ProofError, match="segment 0 backend: got other, want ezkl"):
        verify_proof_file(other, against(draft, 0))


class TestOpening:
    def judge(self, draft: Draft, file: ProofFile, outputs: Any = None) -> None:
        given = {"y": draft.outputs["y"]} if outputs is None else outputs
        held = Held(salt=draft.salt, outputs=given)
        verify_proof_file(file, against(draft, 1), held)

    def test_it_fits(self, draft: Draft) -> None:
        self.judge(draft, file_of(1))

    def test_it_lacks_one(self, draft: Draft) -> None:
        with pytest.raises(ProofError, match="opening: got none"):
            self.judge(draft, replace(file_of(1), opening=None))

    def test_it_is_anothers(self, draft: Draft) -> None:
        other = proven_case.proven("another request")[1][0, 1]
        with pytest.raises(ProofError, match="does not open under this key"):
            self.judge(draft, replace(file_of(1), opening=other.opening))

    def test_it_lacks_what_was_proven(self, draft: Draft) -> None:
        key = secrets_of(draft, 0).opening_key(last=True)
        served = {"served.y": draft.outputs["y"]}
        opening = seal_opening(key, served, file_of(1).about)
        with pytest.raises(ProofError, match="holds no tensor 'proven'"):
            self.judge(draft, replace(file_of(1), opening=opening))

    @pytest.mark.parametrize(
        ("outputs", "match"),
        [
            ({"z": np.zeros((1, 4), np.float32)}, "not the same tensors"),
            ({"y": np.zeros((4,), np.float32)}, "got shape"),
            ({"y": np.full((1, 4), np.nan, np.float32)}, "deviation y: got inf"),
        ],
    )
    def test_it_is_of_other_tensors(
        self, draft: Draft, outputs: Mapping[str, Any], match: str
    ) -> None:
        with pytest.raises(ProofError, match=match):
            self.judge(draft, file_of(1), outputs)


def test_tensors_without_salt_have_nothing_to_be_compared_with(draft: Draft) -> None:
    with pytest.raises(ConfigurationError, match="need the root salt"):
        Held(inputs=draft.inputs)
