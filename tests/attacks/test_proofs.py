"""Real proofs, forged, swapped, replayed and withheld, and what stops each of them.

Whoever attacks here has a prover's key: what it changes, it signs anew. Where only the
holder of the root salt can tell, both are shown: what a stranger reads, and what not.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import MalformedInputError, ProofError, ReceiptError
from bentoml_secure.proofs.boundary import activations_of
from bentoml_secure.proofs.linking import find_in_settings, verify_chain
from bentoml_secure.proofs.proof import (
    FIELD_MODULUS,
    MAX_PROOF_BYTES,
    SegmentProof,
)
from bentoml_secure.proofs.sealing import seal_opening
from bentoml_secure.proofs.srs import verifier_digest, verifier_part
from bentoml_secure.proofs.srs_folder import SrsFolder
from bentoml_secure.receipts.attachments import issue_attachment, read_attachment
from bentoml_secure.receipts.bundle import Bundle, parse_bundle
from bentoml_secure.receipts.opening import Opened, Opening
from bentoml_secure.receipts.proof_opening import SERVED_PURPOSE
from bentoml_secure.receipts.proofs import (
    MAX_OPENING_BYTES,
    ProofRecord,
    issue_proof,
)
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.receipts.verify import State, Verdict, verify_bundle
from bentoml_secure.statements import format_time
from bentoml_secure.testing.deployment import make_plan
from bentoml_secure.testing.proof_set_up import LIMITS, make_set_up
from bentoml_secure.testing.proofs import (
    Records,
    attach,
    attested,
    prove_draft,
    record_of,
    run_chain,
    secrets_of,
)
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from tests import proven_case
from tests.proven_case import IDENTITY

Change = Callable[[ProofRecord], ProofRecord]
OTHER = "another request"


@pytest.fixture
def draft() -> Draft:
    return proven_case.proven()[0]


@pytest.fixture
def records() -> Records:
    return dict(proven_case.proven()[1])


def judge(
    draft: Draft,
    records: Mapping[tuple[int, int], ProofRecord] | Sequence[ProofRecord],
    *,
    trust: Trust | None = None,
    opened: bool = False,
    seconds: float = 5,
    bundle: Bundle | None = None,
    response: Opened | None = None,
) -> Verdict:
    """Judge a receipt with these proofs, as it would travel."""
    deployment = draft.deployment
    whole = attach(bundle or draft.bundle(), deployment, records)
    opening = Opening(
        salt=draft.salt, request=draft.request, response=response or draft.response
    )
    return verify_bundle(
        parse_bundle(canonical_json(whole.to_json())),
        trust or deployment.trust,
        now=deployment.now + timedelta(seconds=seconds),
        opening=opening if opened else None,
    )


def findings(draft: Draft, records: Any, **options: Any) -> dict[str, str]:
    with pytest.raises(ReceiptError, match="rejected") as rejected:
        judge(draft, records, **options)
    return {finding.field: finding.got for finding in rejected.value.findings}


def with_proof(record: ProofRecord, proof: bytes) -> ProofRecord:
    return replace(record, proof=replace(record.proof, proof=proof))


def with_facts(record: ProofRecord, **facts: str) -> ProofRecord:
    changed = replace(record.proof.facts, **facts)
    return replace(record, proof=replace(record.proof, facts=changed))


def test_proofs_as_they_are_hold(draft: Draft, records: Records) -> None:
    verdict = judge(draft, records)
    assert verdict.state is State.ACCEPTED
    assert verdict.claims["proofs"]["verified"] == 2
    assert verdict.claims["proof_opening"] == "not checked"


def test_who_has_the_root_salt_needs_nobodys_word(
    draft: Draft, records: Records
) -> None:
    verdict = judge(draft, records, opened=True)
    assert verdict.claims["proof_opening"] == "checked"
    assert verdict.claims["proofs"]["deviation"] == {"y": 0.0}


class TestOneProof:
    @pytest.mark.parametrize(
        ("change", "got"),
        {
            "flipped": (
                lambda r: with_proof(
                    r, bytes([r.proof.proof[0] ^ 1]) + r.proof.proof[1:]
                ),
                "does not verify",
            ),
            "cut": (lambda r: with_proof(r, r.proof.proof[:-1]), "does not verify"),
            "of what came out": (
                lambda r: with_facts(r, output=r.proof.facts.salt),
                "does not verify",
            ),
            "of the salt": (
                lambda r: with_facts(r, salt=r.proof.facts.output),
                "does not verify",
            ),
        }.values(),
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_altered(
        self, draft: Draft, records: Records, change: Change, got: str
    ) -> None:
        records[0, 1] = change(records[0, 1])
        assert got in findings(draft, records)["proof"]

    def test_what_stands_behind_a_proof_shows_nothing(
        self, draft: Draft, records: Records
    ) -> None:
        # ezkl does not read it. The prover has signed it, and no proof is a name.
        proof = records[0, 1].proof.proof
        records[0, 1] = with_proof(records[0, 1], proof + b"and more")
        assert judge(draft, records).state is State.ACCEPTED

    def test_emptied(self, draft: Draft, records: Records) -> None:
        records[0, 1] = with_proof(records[0, 1], b"")
        assert "it is empty" in findings(draft, records)["attachment 1"]

    def test_oversized(self, draft: Draft, records: Records) -> None:
        records[0, 1] = with_proof(records[0, 1], bytes(MAX_PROOF_BYTES + 3))
        assert "at most" in findings(draft, records)["attachment 1"]

    def test_swapped_with_that_of_the_other_segment(
        self, draft: Draft, records: Records
    ) -> None:
        first, second = records[0, 0], records[0, 1]
        records[0, 0] = replace(first, proof=second.proof)
        records[0, 1] = replace(second, proof=first.proof)
        found = findings(draft, records)
        assert "does not verify" in found["proof"]
        assert "proof infer 0 link 0 to 1" in found

    @pytest.mark.parametrize(
        ("edit", "got"),
        [
            (
                lambda instances: instances.update(
                    output=(
                        int.from_bytes(bytes.fromhex(instances["output"]), "little")
                        + FIELD_MODULUS
                    )
                    .to_bytes(32, "little")
                    .hex()
                ),
                "not below the field's modulus",
            ),
            (lambda instances: instances.pop("salt"), "field 'salt' is missing"),
            (lambda instances: instances.update(more="0" * 64), "unknown field 'more'"),
        ],
        ids=["of another spelling", "missing", "one more"],
    )
    def test_an_instance(
        self,
        draft: Draft,
        records: Records,
        edit: Callable[[dict[str, str]], object],
        got: str,
    ) -> None:
        key = draft.deployment.provers[1].signing
        attachment = read_attachment(issue_proof(records.pop((0, 1)), key))
        content = json.loads(json.dumps(attachment.content))
        edit(content["proof"]["instances"])
        forged = issue_attachment(replace(attachment, content=content), key)
        bundle = draft.bundle()
        bundle = replace(bundle, attachments=(forged,))
        found = findings(draft, records, bundle=bundle)
        assert got in found["attachment 0"]


class TestWhatNoProofCovers:
    """A file of ezkl holds more than the proof covers; none of that is read."""

    def test_what_is_pretty_is_not_proven(
        self, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EZKL_REPO_PATH", str(tmp_path))
        import ezkl

        proof, key = records[0, 0].proof, proven_case.set_up().keys[0]
        facts = proof.facts
        document = {
            "protocol": None,
            "instances": [[facts.input, facts.salt, facts.output]],
            "proof": list(proof.proof),
            "hex_proof": "0x00",
            "split": None,
            "pretty_public_inputs": {
                "rescaled_inputs": [["1", "2"]],
                "inputs": [["0x01"]],
                "processed_inputs": [["0x02"]],
                "processed_params": [],
                "processed_outputs": [["0x03"]],
                "rescaled_outputs": [["a lie"]],
                "outputs": [["0x04"]],
            },
            "timestamp": None,
            "version": None,
        }
        files = {
            "proof": json.dumps(document).encode(),
            "settings": key.verification.settings,
            "vk": key.verification.key,
        }
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        assert ezkl.verify(
            str(tmp_path / "proof"),
            str(tmp_path / "settings"),
            str(tmp_path / "vk"),
            srs_path=str(key.srs),
        )
        assert proof.to_json().keys() == {"backend", "instances", "proof"}
        with pytest.raises(MalformedInputError, match="unknown field 'pretty"):
            SegmentProof.from_json({**proof.to_json(), "pretty_public_inputs": {}})


class TestReplay:
    def test_another_requests_attachment_is_of_that_request(
        self, draft: Draft, records: Records
    ) -> None:
        records[0, 0] = proven_case.proven(OTHER)[1][0, 0]
        found = findings(draft, records)
        assert "attachment 0 (proof) subject" in found
        assert "attachment 0 (proof) receipt_id" in found
        assert "proof infer 0 segment 0 nonce" in found
        assert "proof infer 0 segment 0 prover evidence report_data" in found

    def test_another_requests_segment_links_nothing(
        self, draft: Draft, records: Records
    ) -> None:
        other = proven_case.proven(OTHER)[1]
        records[0, 1] = replace(records[0, 1], proof=other[0, 1].proof)
        assert findings(draft, records).keys() == {"proof infer 0 link 0 to 1"}

    def test_another_requests_whole_chain_shows_in_its_salts(
        self, draft: Draft, records: Records
    ) -> None:
        for place, record in proven_case.proven(OTHER)[1].items():
            records[place] = replace(records[place], proof=record.proof)
        # The same input, proven truly: who has no salt takes its provers' word for it.
        assert judge(draft, records).claims["proof_opening"] == "not checked"
        assert findings(draft, records, opened=True).keys() == {
            "proof opening infer 0 segment 0 salt",
            "proof opening infer 0 segment 0 boundary in",
            "proof opening infer 0 segment 1 salt",
            "proof opening infer 0 segment 1 boundary out",
        }

    def test_an_opening_is_of_its_proof(self, draft: Draft, records: Records) -> None:
        other = proven_case.proven(OTHER)[1]
        records[0, 1] = replace(records[0, 1], opening=other[0, 1].opening)
        found = findings(draft, records, opened=True)
        assert "does not open" in found["proof opening infer 0 segment 1"]


class TestOtherPlaces:
    """Of one request, whose every proof is genuine, and in another place."""

    def test_infers_mixed(self) -> None:
        draft, records = proven_case.proven(infers=2)
        assert judge(draft, records, opened=True).claims["proofs"]["verified"] == 4
        first, second = records[0, 1], records[1, 1]
        mixed = {
            **records,
            (0, 1): replace(first, proof=second.proof),
            (1, 1): replace(second, proof=first.proof),
        }
        assert findings(draft, mixed).keys() == {
            "proof infer 0 link 0 to 1",
            "proof infer 1 link 0 to 1",
        }

    def test_a_plan_of_one_segment_has_both_ends(self) -> None:
        made = proven_case.set_up_with([proven_case.circuit(IDENTITY)], "one")
        draft = build_draft(proven_case.deploy(made))
        records = prove_draft(draft)
        verdict = judge(draft, records, opened=True)
        assert verdict.claims["proof_opening"] == "checked"
        other = record_of(
            draft,
            records[0, 0].receipt_digest,
            (0, 0),
            records[0, 0].proof,
            (0, 0, 0, 0),
            draft.outputs,
        )
        found = findings(draft, [replace(other, deviation={"y": 0.0})], opened=True)
        assert found.keys() == {
            "proof opening infer 0 segment 0 boundary out",
            "proof opening infer 0 segment 0 deviation",
            "proof opening infer 0 segment 0 deviation y",
        }


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


class TestWithheld:
    @pytest.mark.parametrize("segment", [0, 1])
    def test_a_segment_left_out(
        self, draft: Draft, records: Records, segment: int
    ) -> None:
        del records[0, segment]
        verdict = judge(draft, records, opened=True)
        assert verdict.state is State.PROVISIONAL
        assert verdict.claims["proof_opening"] == "not checked"
        late = draft.deployment.scenario.proof_deadline_seconds + 2
        found = findings(draft, records, seconds=late)
        assert found == {"attachments proof": "missing"}

    def test_one_twice_is_not_both(self, draft: Draft, records: Records) -> None:
        twice = [records[0, 0], records[0, 0]]
        late = draft.deployment.scenario.proof_deadline_seconds + 2
        found = findings(draft, twice, seconds=late)
        assert found["proof infer 0 segment 0"] == "two of them"
        assert found["attachments proof"] == "missing"

    @pytest.mark.parametrize("after", [-70, 602], ids=["before it", "too late"])
    def test_signed_at_another_time(
        self, draft: Draft, records: Records, after: int
    ) -> None:
        moment = format_time(draft.deployment.now + timedelta(seconds=after))
        records[0, 1] = replace(records[0, 1], issued_at=moment)
        found = findings(draft, records, seconds=700)
        assert found["attachment 1 (proof) issued_at"] == moment

    def test_signed_in_the_future(self, draft: Draft, records: Records) -> None:
        moment = format_time(draft.deployment.now + timedelta(seconds=300))
        records[0, 1] = replace(records[0, 1], issued_at=moment)
        found = findings(draft, records)
        assert found["attachment 1 (proof) issued_at"] == moment

    def test_an_entry_that_wants_none_is_refused(self, draft: Draft) -> None:
        receipt = replace(draft.receipt, attachments=())
        found = findings(replace(draft, receipt=receipt), [])
        assert found == {"attachments required": "none"}

    def test_an_entry_that_waits_for_ever_is_refused(self, draft: Draft) -> None:
        (due,) = draft.receipt.attachments
        never = replace(due, deadline="2999-01-01T00:00:00.000Z")
        receipt = replace(draft.receipt, attachments=(never,))
        found = findings(replace(draft, receipt=receipt), [])
        assert "attachments proof deadline" in found


class TestTheProver:
    @pytest.mark.parametrize(
        ("who", "fields"),
        [
            ("runner", {"role", "service", "ed25519"}),
            ("entry", {"role", "service", "segment", "ed25519"}),
            ("prover of the next", {"service", "segment", "ed25519"}),
        ],
    )
    def test_is_somebody_else(
        self, draft: Draft, records: Records, who: str, fields: set[str]
    ) -> None:
        deployment = draft.deployment
        process = {
            "runner": deployment.runners[0][0],
            "entry": deployment.entry,
            "prover of the next": deployment.provers[1],
        }[who]
        forged = issue_proof(attested(records.pop((0, 0)), process), process.signing)
        bundle = replace(draft.bundle(), attachments=(forged,))
        found = findings(draft, records, bundle=bundle)
        named = {name.rpartition(" ")[2] for name in found}
        assert fields <= named

    def test_signs_with_another_key(self, draft: Draft, records: Records) -> None:
        forged = issue_proof(records.pop((0, 0)), draft.deployment.provers[1].signing)
        bundle = replace(draft.bundle(), attachments=(forged,))
        assert "keyid" in findings(draft, records, bundle=bundle)["attachment 0"]

    def test_the_entry_signs_in_its_place(self, draft: Draft, records: Records) -> None:
        forged = issue_proof(records.pop((0, 0)), draft.deployment.entry.signing)
        bundle = replace(draft.bundle(), attachments=(forged,))
        assert "keyid" in findings(draft, records, bundle=bundle)["attachment 0"]

    def test_shows_evidence_from_before(self, draft: Draft, records: Records) -> None:
        old = attested(
            replace(records[0, 0], receipt_digest=draft.deployment.plan.digest),
            draft.deployment.provers[0],
        )
        records[0, 0] = replace(records[0, 0], evidence=old.evidence)
        found = findings(draft, records)
        assert "proof infer 0 segment 0 prover evidence report_data" in found

    def test_shows_evidence_of_another_place(
        self, draft: Draft, records: Records
    ) -> None:
        other = attested(replace(records[0, 0], infer=1), draft.deployment.provers[0])
        records[0, 0] = replace(records[0, 0], evidence=other.evidence)
        found = findings(draft, records)
        assert "proof infer 0 segment 0 prover evidence report_data" in found

    def test_a_place_that_the_receipt_does_not_have(
        self, draft: Draft, records: Records
    ) -> None:
        beyond = replace(records[0, 0], infer=1)
        found = findings(draft, [*records.values(), beyond])
        assert found == {"proof infer 1 segment 0": "no such place"}


class TestTheSetUp:
    def test_no_keys(self, draft: Draft, records: Records) -> None:
        bundle = replace(draft.bundle(), verification_keys=None)
        found = findings(draft, records, bundle=bundle)
        assert found == {"bundle verification_keys": "none"}

    @pytest.mark.parametrize("what", ["key", "settings"])
    def test_another_models(self, draft: Draft, records: Records, what: str) -> None:
        document = proven_case.set_up().document
        first, second = document["segments"]
        first[what] = second[what] if what == "key" else _edited(second[what])
        bundle = replace(draft.bundle(), verification_keys=document)
        assert "bundle verification_keys" in findings(draft, records, bundle=bundle)

    def test_the_provers_own(self, draft: Draft, records: Records) -> None:
        own = proven_case.set_up().signed_by("a prover")
        bundle = replace(draft.bundle(), verification_keys=own.document)
        found = findings(draft, records, bundle=bundle)
        assert found["manifest signer"] == own.manifest.signer_id
        assert found["manifest"] == own.manifest.digest

    def test_of_an_operator_who_is_not_the_owner(self) -> None:
        own = proven_case.set_up().signed_by("an operator")
        honest = proven_case.proven()[0].deployment.trust
        draft = build_draft(proven_case.deploy(own))
        trust = replace(
            draft.deployment.trust, manifest_signers=honest.manifest_signers
        )
        honest_records = proven_case.proven()[1]
        digest = draft.bundle().receipt.payload_digest
        records = {
            place: record_of(
                draft, digest, place, record.proof, (0,) * 4, draft.outputs
            )
            for place, record in honest_records.items()
        }
        found = findings(draft, records, trust=trust)
        assert found["manifest signer"] == own.manifest.signer_id

    def test_the_owners_with_a_wider_bound(
        self, draft: Draft, records: Records
    ) -> None:
        own = proven_case.set_up()
        accuracy = replace(own.manifest.accuracy, bound=100.0)
        wider = own.altered(accuracy=accuracy)
        bundle = replace(draft.bundle(), verification_keys=wider.document)
        found = findings(draft, records, bundle=bundle)
        assert found == {"manifest": wider.manifest.digest}

    def test_a_string_that_nobody_listed(self, draft: Draft, records: Records) -> None:
        trust = replace(draft.deployment.trust, srs=("sha256-srs-v1:" + "0" * 64,))
        found = findings(draft, records, trust=trust)
        assert found == {"srs": proven_case.srs()[0].digest}

    def test_a_string_whose_secret_somebody_knows(
        self, draft: Draft, records: Records
    ) -> None:
        trust = replace(draft.deployment.trust, unsafe_srs=False)
        assert findings(draft, records, trust=trust) == {"srs": "unsafe"}
        verdict = judge(draft, records)
        assert verdict.claims["unsafe_srs"] is True
        assert any(left.field == "srs" for left in verdict.unchecked)

    def test_a_trust_file_that_says_nothing_of_proofs(
        self, draft: Draft, records: Records
    ) -> None:
        trust = replace(
            draft.deployment.trust, manifest_signers=(), srs=(), unsafe_srs=False
        )
        found = findings(draft, records, trust=trust)
        assert found.keys() == {"manifest signer", "srs"}


def _edited(settings: str) -> str:
    import base64

    document = json.loads(base64.b64decode(settings))
    document["run_args"]["param_visibility"] = "Private"
    return base64.b64encode(json.dumps(document).encode()).decode()


def test_private_weights_would_prove_any_model(tmp_path: Path) -> None:
    """With weights as a witness, one verification key fits every model."""
    backend, parameters = proven_case.set_up().backend, proven_case.PARAMETERS
    model = proven_case.circuit(proven_case.IDENTITY)
    settings, _ = backend.measure(model, parameters, LIMITS)
    document = json.loads(settings)
    document["run_args"]["param_visibility"] = "Private"
    private = json.dumps(document).encode()
    record, file = proven_case.srs()
    made = make_set_up(
        make_plan(1, provable=True),
        [model],
        parameters,
        salt=proven_case.SALT,
        srs=record,
        srs_file=file,
        folder=tmp_path,
        backend=backend,
        settings=[private],
    )
    other = proven_case.circuit(3 * proven_case.IDENTITY)
    cheating = replace(made.keys[0], circuit=backend.compile(other, private, LIMITS))
    out: list[tuple[int, ...]] = []
    salt = proven_case.SALT.expand(bytes(32))
    proof = backend.prove(cheating, (1, 2, 3, 4, *salt), salt, LIMITS, out.append)
    assert out[0][:4] == (3, 6, 9, 12)
    # The key of the honest model takes the other one's proof:
    keys = [made.keys[0].verification]
    backend.verify([(proof, keys[0])], record.verifier, LIMITS)
    (finding,) = find_in_settings(made.manifest, keys, backend)
    assert "param_visibility" in finding.got
    with pytest.raises(ProofError, match="param_visibility"):
        verify_chain(made.manifest, keys, [proof], backend=backend)


def test_another_string_shows_nothing(draft: Draft, tmp_path: Path) -> None:
    """Who has made a string can forge: so its proofs verify under no other one."""
    file = SrsFolder(tmp_path).generate(proven_case.PARAMETERS.logrows)
    honest = proven_case.set_up()
    record = SrsFolder(tmp_path).record([proven_case.PARAMETERS.logrows])
    keys = tmp_path / "keys"
    keys.mkdir()
    made = make_set_up(
        make_plan(1, provable=True),
        [proven_case.circuit(proven_case.IDENTITY)],
        proven_case.PARAMETERS,
        salt=proven_case.SALT,
        srs=record,
        srs_file=file.path,
        folder=keys,
        backend=honest.backend,
    )
    (proof,), _ = run_chain(made, draft.inputs, secrets_of(draft, 0))
    verifier = verifier_part(file.path)
    assert verifier_digest(verifier) != honest.manifest.srs.digest
    own = [(proof, made.keys[0].verification)]
    honest.backend.verify(own, verifier, LIMITS)
    with pytest.raises(ProofError, match="does not verify"):
        honest.backend.verify(own, honest.manifest.srs.verifier, LIMITS)


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
