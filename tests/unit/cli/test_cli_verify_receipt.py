"""``verify receipt``: verdicts, exit codes, what is printed where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.tees.simulated import Simulated
from bentoml_secure.errors import MissingEndorsementError
from bentoml_secure.scenario import Independence, Mode
from bentoml_secure.signing import SigningKey
from bentoml_secure.tensors import encode
from bentoml_secure.testing.audits import attach_audit, recompute_draft, require_audit
from bentoml_secure.testing.deployment import Deployment, build_deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from bentoml_secure.testing.tampering import with_record
from tests.unit.cli.conftest import Run, Write

ENDORSE = "--endorsements"


@pytest.fixture
def draft(deployment: Deployment) -> Draft:
    return build_draft(deployment)


def test_an_honest_receipt_is_accepted(
    run: Run, write: Write, trust_file: Path, draft: Draft
) -> None:
    result = run("verify", "receipt", write(draft.bundle()), "--trust", trust_file)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "ACCEPTED  receipt"
    assert "SIMULATED - NOT HARDWARE" in result.stdout
    assert f"receipt {draft.receipt.receipt_id}" in result.stdout
    assert "not checked: opening" in result.stdout
    assert "attested: 7 parties on 7 platforms" in result.stdout


@pytest.mark.parametrize(
    ("independence", "said"),
    [
        (Independence.NONE, "at least 2 of 3 replicas agree, for each of 2 segments"),
        (
            Independence.PLATFORM,
            "at least 2 of 3 replicas agree, on as many platforms, for each of 2",
        ),
    ],
)
def test_what_a_quorum_is_made_of_is_said(
    run: Run, write: Write, tmp_path: Path, independence: Independence, said: str
) -> None:
    deployment = build_deployment(independence=independence)
    trust = tmp_path / "trust-of-it.toml"
    trust.write_text(deployment.trust_file)
    file = write(build_draft(deployment).bundle())
    result = run("verify", "receipt", file, "--trust", trust)
    assert result.exit_code == 0
    assert said in result.stdout


def test_liars_and_the_dead_are_named(
    run: Run, write: Write, trust_file: Path, deployment: Deployment
) -> None:
    draft = build_draft(
        deployment,
        behaviours={(0, 0, 1): Behaviour.LIAR, (0, 1, 2): Behaviour.ABSENT},
    )
    result = run("verify", "receipt", write(draft.bundle()), "--trust", trust_file)
    assert result.exit_code == 0
    assert "dissent: DSegment0Replica1, segment 0 of infer 0 (receipt)" in result.stdout
    assert (
        "no answer: DSegment1Replica2, segment 1 of infer 0 (receipt): connection"
        " refused"
    ) in result.stdout


def shown(run: Run, write: Write, tmp_path: Path, draft: Draft) -> str:
    """Return what `verify receipt` says to a caller who takes a referee's word."""
    trust = tmp_path / "trust-of-it.toml"
    text = draft.deployment.trust_file
    trust.write_text(text.replace("referee = false", "referee = true"))
    bundle = draft.bundle()
    if draft.deployment.scenario.audit_rate:
        audited = require_audit(draft)
        bundle = attach_audit(audited, recompute_draft(audited))
    result = run("verify", "receipt", write(bundle), "--trust", trust)
    assert result.exit_code == 0, result.stdout
    return result.stdout


def test_who_decided_in_place_of_a_quorum_is_said(
    run: Run, write: Write, tmp_path: Path
) -> None:
    deployment = build_deployment(audit_rate=0.0, terms={"referee": True})
    apart = {(0, 0, 0): Behaviour.LIAR, (0, 0, 1): Behaviour.OTHER_LIAR}
    said = shown(run, write, tmp_path, build_draft(deployment, behaviours=apart))
    assert "for each of 2 segments, or its referee decides\n" in said
    line = "no quorum: DSegment0Referee decided alone, segment 0 of infer 0\n"
    assert line in said
    assert "dissent: DSegment0Replica1, segment 0 of infer 0 (referee)\n" in said


def test_who_was_skipped_is_said(run: Run, write: Write, tmp_path: Path) -> None:
    deployment = build_deployment(replicas=5, committee=3, terms={"spares": 1})
    names = [runner.name for runner in deployment.runners[0]]
    draft = build_draft(
        deployment,
        behaviours={(0, 0, 0): Behaviour.ABSENT},
        # The first is drawn as good as surely.
        weights=dict.fromkeys(names, 0.01) | {names[0]: 2.0},
    )
    said = shown(run, write, tmp_path, draft)
    line = "skipped: DSegment0Replica0, segment 0 of infer 0: connection refused\n"
    assert line in said


def test_which_chain_ended_apart_is_said(
    run: Run, write: Write, tmp_path: Path
) -> None:
    terms = {"mode": Mode.END_TO_END, "referee": True}
    deployment = build_deployment(audit_rate=0.0, terms=terms)
    liar = {(0, 0, 0): Behaviour.LIAR}
    said = shown(run, write, tmp_path, build_draft(deployment, behaviours=liar))
    assert "at least 2 of 3 chains of replicas agree at their ends, after 2" in said
    assert "ended apart: DSegment0Replica0 > DSegment1Replica" in said
    assert "dissent: DSegment0Replica0, segment 0 of infer 0 (localisation)" in said


def test_what_was_audited_is_said(run: Run, write: Write, tmp_path: Path) -> None:
    draft = build_draft(build_deployment(audit_rate=1.0))
    said = shown(run, write, tmp_path, draft)
    assert "audited: 2 of 2 segments computed again, and agree\n" in said


def test_who_was_not_blind_is_said(run: Run, write: Write, tmp_path: Path) -> None:
    draft = build_draft(build_deployment(terms={"commit_reveal": True}))
    made = draft.receipt.infers[0].segments[0].commitments
    seen = {name: replace(revealed, blind=False) for name, revealed in made.items()}
    said = shown(run, write, tmp_path, with_record(draft, 0, commitments=seen))
    assert "not blind: DSegment0Replica0, segment 0 of infer 0\n" in said


def test_json_is_one_object_and_nothing_else(
    run: Run, write: Write, trust_file: Path, draft: Draft
) -> None:
    file = write(draft.bundle())
    result = run("verify", "receipt", file, "--trust", trust_file, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (document["verdict"], document["kind"]) == ("accepted", "receipt")
    assert document["findings"] == []
    assert document["simulated"] is True
    assert document["receipt_id"] == draft.receipt.receipt_id


def test_a_receipt_under_another_key_is_rejected_with_its_finding(
    run: Run, write: Write, trust_file: Path, draft: Draft
) -> None:
    file = write(draft.bundle(key=SigningKey.generate()))
    result = run("verify", "receipt", file, "--trust", trust_file, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (1, "")
    assert document["verdict"] == "rejected"
    (finding,) = document["findings"]
    assert finding.keys() == {"field", "got", "want"}
    assert finding["field"] == "receipt signature"


def test_every_finding_has_a_line_for_people(
    run: Run, write: Write, trust_file: Path, draft: Draft
) -> None:
    forged = replace(
        draft,
        receipt=replace(draft.receipt, client_nonce="00" * 32),
    )
    file = write(forged.bundle(key=SigningKey.generate()))
    result = run("verify", "receipt", file, "--trust", trust_file)
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert result.exit_code == 1
    assert any("receipt_id" in line for line in failed)
    assert any("receipt signature" in line for line in failed)
    assert f"REJECTED  receipt: {len(failed)} findings" in result.stdout


def test_a_missing_attachment_is_provisional_within_its_deadline(
    run: Run, write: Write, trust_file: Path, deployment: Deployment
) -> None:
    draft = build_draft(deployment, behaviours={(0, 0, 2): Behaviour.LATE})
    file = write(draft.bundle(attach=False))
    result = run("verify", "receipt", file, "--trust", trust_file, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 3
    assert document["verdict"] == "provisional"
    assert document["missing_attachments"] == ["late-votes"]


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b"[" * 1000])
def test_a_malformed_receipt_is_rejected(
    run: Run, trust_file: Path, tmp_path: Path, data: bytes
) -> None:
    file = tmp_path / "receipt.json"
    file.write_bytes(data)
    result = run("verify", "receipt", file, "--trust", trust_file, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["verdict"] == "rejected"


def test_an_unreadable_receipt_is_a_usage_error(
    run: Run, trust_file: Path, tmp_path: Path
) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        result = run("verify", "receipt", path, "--trust", trust_file, "--json")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "cannot be read" in result.stderr


def test_a_bad_trust_file_is_a_usage_error(
    run: Run, write: Write, draft: Draft, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("version = 1\nplan_digests = []\n")
    result = run("verify", "receipt", write(draft.bundle()), "--trust", bad)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "missing" in result.stderr


class TestEndorsements:
    @pytest.fixture(autouse=True)
    def _needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the simulated kind want an endorsement, as real ones do."""
        verify = Simulated.verify

        def wanting(
            self: Simulated,
            evidence: Evidence,
            endorsements: Sequence[bytes],
            *,
            now: datetime,
        ) -> VerifiedClaims:
            if b"collateral" not in endorsements:
                raise MissingEndorsementError("simulated: no collateral was given")
            return verify(self, evidence, endorsements, now=now)

        monkeypatch.setattr(Simulated, "verify", wanting)

    def test_what_the_bundle_lacks_may_be_given(
        self, run: Run, write: Write, trust_file: Path, draft: Draft, tmp_path: Path
    ) -> None:
        arguments = ("verify", "receipt", write(draft.bundle()), "--trust", trust_file)
        without = run(*arguments)
        assert without.exit_code == 3
        assert "no collateral was given" in without.stdout
        (tmp_path / "other").write_bytes(b"other")
        (tmp_path / "needed").write_bytes(b"collateral")
        given = (ENDORSE, tmp_path / "other", ENDORSE, tmp_path / "needed")
        assert run(*arguments, *given).exit_code == 0

    def test_no_more_than_a_record_holds(
        self, run: Run, write: Write, trust_file: Path, draft: Draft, tmp_path: Path
    ) -> None:
        (tmp_path / "needed").write_bytes(b"collateral")
        given: list[str | Path] = [ENDORSE, tmp_path / "needed"] * 65
        result = run(
            *("verify", "receipt", write(draft.bundle())),
            *("--trust", trust_file, *given),
        )
        assert result.exit_code == 2
        assert "at most 64 files" in result.stderr


class TestOpening:
    def test_bodies_and_salt_are_compared(
        self, run: Run, write: Write, trust_file: Path, draft: Draft, tmp_path: Path
    ) -> None:
        (tmp_path / "in").write_bytes(draft.request)
        (tmp_path / "out").write_bytes(draft.response)
        result = run(
            *("verify", "receipt", write(draft.bundle()), "--trust", trust_file),
            *("--input", tmp_path / "in", "--output", tmp_path / "out"),
            env={"BENTOML_SECURE_SALT": draft.salt.hex()},
        )
        assert result.exit_code == 0
        assert "\nchecked: opening" in result.stdout

    def test_another_response_is_rejected(
        self, run: Run, write: Write, trust_file: Path, draft: Draft, tmp_path: Path
    ) -> None:
        (tmp_path / "out").write_bytes(draft.response + b" ")
        result = run(
            *("verify", "receipt", write(draft.bundle()), "--trust", trust_file),
            *("--output", tmp_path / "out", "--salt", draft.salt.hex(), "--json"),
        )
        (finding,) = json.loads(result.stdout)["findings"]
        assert result.exit_code == 1
        assert finding["field"] == "opening response"

    @pytest.mark.parametrize(("shift", "code"), [(0.0, 0), (1e-6, 1)])
    def test_tensors_are_compared(
        self,
        run: Run,
        write: Write,
        trust_file: Path,
        draft: Draft,
        tmp_path: Path,
        shift: float,
        code: int,
    ) -> None:
        held = {
            name: np.asarray(array + np.float32(shift), np.float32)
            for name, array in draft.inputs.items()
        }
        (tmp_path / "in.safetensors").write_bytes(encode(held))
        result = run(
            *("verify", "receipt", write(draft.bundle()), "--trust", trust_file),
            *("--input", tmp_path / "in.safetensors", "--salt", draft.salt.hex()),
        )
        assert result.exit_code == code

    def test_an_opening_without_salt_is_a_usage_error(
        self, run: Run, write: Write, trust_file: Path, draft: Draft, tmp_path: Path
    ) -> None:
        (tmp_path / "in").write_bytes(draft.request)
        result = run(
            *("verify", "receipt", write(draft.bundle()), "--trust", trust_file),
            *("--input", tmp_path / "in"),
        )
        assert result.exit_code == 2
        assert "--salt" in result.stderr

    def test_a_wrong_salt_is_not_repeated(
        self, run: Run, write: Write, trust_file: Path, draft: Draft
    ) -> None:
        result = run(
            *("verify", "receipt", write(draft.bundle()), "--trust", trust_file),
            *("--salt", "5ec2e7"),
        )
        assert result.exit_code == 2
        assert "5ec2e7" not in result.output


def test_evidence_is_judged_for_the_time_given(
    run: Run, write: Write, trust_file: Path, draft: Draft
) -> None:
    result = run(
        *("verify", "receipt", write(draft.bundle()), "--trust", trust_file),
        *("--at", "2050-01-01T00:00:00Z", "--json"),
    )
    findings = json.loads(result.stdout)["findings"]
    assert result.exit_code == 1
    # Of the entry and both segments' three runners.
    assert sum("certificate is good" in finding["got"] for finding in findings) == 7
