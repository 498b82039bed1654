"""Answers that are not the proven one, and what only the root salt's holder can tell.

Where that is so, both are shown: what a stranger reads, and what not.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bentoml_secure.errors import MalformedInputError
from bentoml_secure.proofs.boundary import activations_of
from bentoml_secure.proofs.sealing import seal_opening
from bentoml_secure.receipts.proof_opening import SERVED_PURPOSE
from bentoml_secure.receipts.proofs import (
    MAX_OPENING_BYTES,
    ProofRecord,
    issue_proof,
)
from bentoml_secure.receipts.verify import State
from bentoml_secure.testing.proof_set_up import LIMITS
from bentoml_secure.testing.proofs import (
    Records,
    prove_draft,
    record_of,
    secrets_of,
)
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from tests import proven_case
from tests.attacks.proofs import OTHER, findings, judge


@pytest.fixture
def draft() -> Draft:
    return proven_case.proven()[0]


@pytest.fixture
def records() -> Records:
    return dict(proven_case.proven()[1])


def test_who_has_the_root_salt_needs_nobodys_word(
    draft: Draft, records: Records
) -> None:
    verdict = judge(draft, records, opened=True)
    assert verdict.claims["proof_opening"] == "checked"
    assert verdict.claims["proofs"]["deviation"] == {"y": 0.0}


class TestTheAnswer:
    @pytest.fixture
    def lie(self) -> Draft:
        """A quorum of the last segment's replicas lies alike."""
        liars = {(0, 1, replica): Behaviour.LIAR for replica in range(3)}
        draft = proven_case.proven()[0]
        return build_draft(draft.deployment, behaviours=liars)

    def test_a_lie_that_a_quorum_agreed_on_is_not_the_proven_answer(
        self, lie: Draft
    ) -> None:
        found = findings(lie, self.proofs_of(lie))
        assert found["proof infer 0 segment 1 deviation y"] == "2"

    def test_a_prover_who_covers_it_up_is_found_by_who_has_the_salt(
        self, lie: Draft
    ) -> None:
        records = self.proofs_of(lie)
        records[0, 1] = replace(records[0, 1], deviation={"y": 0.0})
        assert judge(lie, records).state is State.ACCEPTED
        found = findings(lie, records, opened=True)
        assert found["proof opening infer 0 segment 1 deviation y"] == "2"
        assert "0.0" in found["proof opening infer 0 segment 1 deviation"]

    @staticmethod
    def proofs_of(lie: Draft) -> Records:
        # The lie's request has the honest one's salts and inputs: one proof for both.
        honest = proven_case.proven()[1]
        digest = lie.bundle().receipt.payload_digest
        proven = activations_of(
            {"y": lie.inputs["x"]},
            proven_case.set_up().manifest.segments[-1].outputs,
            proven_case.PARAMETERS.scale,
        )
        return {
            place: record_of(lie, digest, place, record.proof, proven, lie.outputs)
            for place, record in honest.items()
        }

    def test_nan_is_no_answer(self, draft: Draft, records: Records) -> None:
        proven = activations_of(
            {"y": draft.outputs["y"]},
            proven_case.set_up().manifest.segments[-1].outputs,
            proven_case.PARAMETERS.scale,
        )
        served = {"y": np.array([[1, np.nan, 3, 4]], np.float32)}
        digest = records[0, 1].receipt_digest
        with pytest.raises(MalformedInputError, match="NaN or infinity"):
            record_of(draft, digest, (0, 1), records[0, 1].proof, proven, served)
        odd = replace(records[0, 1], deviation={"y": np.nan})
        with pytest.raises(MalformedInputError, match="canonical JSON"):
            issue_proof(odd, draft.deployment.provers[1].signing)

    @pytest.mark.parametrize("side", ["inputs", "outputs"])
    def test_of_other_tensors_than_the_receipts(
        self, draft: Draft, records: Records, side: str
    ) -> None:
        segment = 0 if side == "inputs" else 1
        record = records[0, segment]
        commitments = getattr(proven_case.proven(OTHER)[1][0, segment], side)
        records[0, segment] = replace(record, **{side: commitments})
        assert f"proof infer 0 segment {segment} {side}" in findings(draft, records)

    def test_of_no_tensors(self, draft: Draft, records: Records) -> None:
        record = replace(records[0, 1], outputs=None, deviation=None, opening=None)
        records[0, 1] = record
        found = findings(draft, records)
        assert found["proof infer 0 segment 1 outputs"] == "None"
        assert found["proof infer 0 segment 1 opening"] == "none"


class TestTheProvenAnswer:
    """Served itself, where the scenario says so: replicas agreed on one close to it."""

    @staticmethod
    @functools.cache
    def served() -> tuple[Draft, Records]:
        near = {(0, 1, replica): Behaviour.NEAR for replica in range(3)}
        deployment = proven_case.deploy(serve_proven=True)
        draft = build_draft(deployment, behaviours=near)
        answer = secrets_of(draft, 0).commit({"y": draft.inputs["x"]}, SERVED_PURPOSE)
        infers = (replace(draft.receipt.infers[0], outputs=answer),)
        draft = replace(draft, receipt=replace(draft.receipt, infers=infers))
        return draft, prove_draft(draft)

    def test_is_close_to_the_agreed_one(self) -> None:
        draft, records = self.served()
        verdict = judge(draft, records, opened=True)
        assert verdict.claims["proof_opening"] == "checked"
        assert 0 < verdict.claims["proofs"]["deviation"]["y"] < 1e-5
        # The caller has the proven tensors; those that were agreed on, it never had.
        judge(draft, records, opened=True, response={"y": draft.inputs["x"]})
        found = findings(draft, records, opened=True, response=draft.outputs)
        assert found.keys() == {"opening response y"}

    def test_is_not_the_agreed_one(self) -> None:
        draft, records = self.served()
        agreed = records[0, 1].outputs
        lie = {**records, (0, 1): replace(records[0, 1], proven=agreed)}
        assert "proof infer 0 segment 1 proven" in findings(draft, lie)

    def test_is_none_that_a_prover_made_up(self) -> None:
        # Receipt and prover agree on what was served; the proof is of another answer.
        draft, records = self.served()
        made_up = secrets_of(draft, 0).commit(
            {"y": draft.inputs["x"] + 1}, SERVED_PURPOSE
        )
        infers = (replace(draft.receipt.infers[0], outputs=made_up),)
        odd = replace(draft, receipt=replace(draft.receipt, infers=infers))
        proven = activations_of(
            {"y": draft.inputs["x"]},
            proven_case.set_up().manifest.segments[-1].outputs,
            proven_case.PARAMETERS.scale,
        )
        digest = odd.bundle().receipt.payload_digest
        lie = {
            place: record_of(odd, digest, place, record.proof, proven, odd.outputs)
            for place, record in records.items()
        }
        lie[0, 1] = replace(lie[0, 1], proven=made_up)
        assert judge(odd, lie).state is State.ACCEPTED
        assert findings(odd, lie, opened=True).keys() == {
            "proof opening infer 0 segment 1 proven"
        }


class TestOpenings:
    def reseal(
        self, draft: Draft, record: ProofRecord, tensors: Mapping[str, Any]
    ) -> ProofRecord:
        key = secrets_of(draft, 0).opening_key(last=record.segment == 1)
        return replace(record, opening=seal_opening(key, tensors, record.about))

    def test_of_other_tensors(self, draft: Draft, records: Records) -> None:
        other = {"input.z": draft.inputs["x"]}
        records[0, 0] = self.reseal(draft, records[0, 0], other)
        found = findings(draft, records, opened=True)
        assert found.keys() == {"proof opening infer 0 segment 0 tensors"}

    def test_of_another_input(self, draft: Draft, records: Records) -> None:
        other = {"input.x": draft.inputs["x"] + 1}
        records[0, 0] = self.reseal(draft, records[0, 0], other)
        assert judge(draft, records).state is State.ACCEPTED
        assert findings(draft, records, opened=True).keys() == {
            "proof opening infer 0 segment 0 input x",
            "proof opening infer 0 segment 0 boundary in",
        }

    def test_of_another_shape(self, draft: Draft, records: Records) -> None:
        other = {"input.x": draft.inputs["x"].ravel()}
        records[0, 0] = self.reseal(draft, records[0, 0], other)
        found = findings(draft, records, opened=True)
        assert "a proof is of one shape" in found["proof opening infer 0 segment 0"]

    def test_none(self, draft: Draft, records: Records) -> None:
        records[0, 0] = replace(records[0, 0], opening=None)
        assert findings(draft, records)["proof infer 0 segment 0 opening"] == "none"
        found = findings(draft, records, opened=True)
        assert found["proof opening infer 0 segment 0"] == "none"

    def test_too_large_to_be_read(self, draft: Draft, records: Records) -> None:
        odd = replace(records[0, 0], opening=bytes(MAX_OPENING_BYTES + 1))
        with pytest.raises(MalformedInputError, match="want at most"):
            issue_proof(odd, draft.deployment.provers[0].signing)


class TestWhatHashesTell:
    """A hash of few possible inputs is no secret, unless salt is hashed with them."""

    CANDIDATES = tuple(itertools.product((0.0, 1.0), repeat=proven_case.FEATURES))

    def guesses(self, salt: tuple[int, ...]) -> dict[str, tuple[float, ...]]:
        manifest = proven_case.set_up().manifest
        form, scale = manifest.segments[0].inputs, manifest.scale
        values = [
            (*activations_of({"x": np.array([c], np.float32)}, form, scale), *salt)
            for c in self.CANDIDATES
        ]
        hashes = proven_case.set_up().backend.hash(values, LIMITS)
        return dict(zip(hashes, self.CANDIDATES, strict=True))

    def test_without_salt_equal_inputs_show_and_few_are_guessed(self) -> None:
        secret = self.CANDIDATES[11]
        (seen,) = [h for h, c in self.guesses(()).items() if c == secret]
        assert self.guesses(())[seen] == secret

    def test_with_salt_neither(self, records: Records) -> None:
        other = proven_case.proven(OTHER)[1]
        for place, record in records.items():
            mine, theirs = record.proof.facts, other[place].proof.facts
            assert {mine.input, mine.salt, mine.output}.isdisjoint(
                {theirs.input, theirs.salt, theirs.output}
            )
        draft = build_draft(
            proven_case.proven()[0].deployment,
            inputs={"x": np.array([self.CANDIDATES[11]], np.float32)},
            label="few possible",
        )
        manifest = proven_case.set_up().manifest
        salt = manifest.salt.expand(secrets_of(draft, 0).boundary(0))
        (seen,) = [h for h, c in self.guesses(salt).items() if c == self.CANDIDATES[11]]
        # Whoever lacks the salt guesses it as well.
        wrong = manifest.salt.expand(secrets_of(draft, 0).boundary(1))
        assert seen not in self.guesses(())
        assert seen not in self.guesses(wrong)
