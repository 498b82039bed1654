"""Real proofs, forged, swapped, replayed and withheld, and what stops each of them.

Whoever attacks here has a prover's key: what it changes, it signs anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bentoml_secure.errors import MalformedInputError
from bentoml_secure.proofs.field import FIELD_MODULUS
from bentoml_secure.proofs.proof import (
    MAX_PROOF_BYTES,
    SegmentProof,
)
from bentoml_secure.receipts.attachments import issue_attachment, read_attachment
from bentoml_secure.receipts.proofs import (
    issue_proof,
)
from bentoml_secure.receipts.verify import State
from bentoml_secure.statements import format_time
from bentoml_secure.testing.proofs import (
    Records,
    attested,
    prove_draft,
    record_of,
)
from bentoml_secure.testing.receipts import Draft, build_draft
from tests import proven_case
from tests.attacks.proofs import OTHER, Change, findings, judge, with_facts, with_proof
from tests.proven_case import IDENTITY


@pytest.fixture
def draft() -> Draft:
    return proven_case.proven()[0]


@pytest.fixture
def records() -> Records:
    return dict(proven_case.proven()[1])


def test_proofs_as_they_are_hold(draft: Draft, records: Records) -> None:
    verdict = judge(draft, records)
    assert verdict.state is State.ACCEPTED
    assert verdict.claims["proofs"]["verified"] == 2
    assert verdict.claims["proof_opening"] == "not checked"


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

    def test_a_middle_segment_is_missed_like_every_other(self) -> None:
        graph = proven_case.circuit(IDENTITY)
        draft = build_draft(
            proven_case.deploy(proven_case.set_up_with([graph] * 3, "three"))
        )
        records = prove_draft(draft)
        verdict = judge(draft, records, opened=True)
        assert verdict.claims["proof_opening"] == "checked"
        odd = {**records, (0, 1): replace(records[0, 1], opening=b"one more")}
        assert findings(draft, odd) == {"proof infer 0 segment 1 opening": "one"}
        del records[0, 1]
        assert judge(draft, records).state is State.PROVISIONAL
        late = draft.deployment.scenario.proof_deadline_seconds + 2
        found = findings(draft, records, seconds=late)
        assert found == {"attachments proof": "missing"}

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
