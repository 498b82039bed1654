"""``verify proof``, ``inspect proof``, and what ``trust`` and verdicts say of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentoml_secure.digest import canonical_json
from bentoml_secure.proofs.links import Link
from bentoml_secure.proofs.srs_folder import SrsFolder
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.scenario import Proving
from bentoml_secure.tensors import encode
from bentoml_secure.testing.deployment import build_deployment, make_plan
from bentoml_secure.testing.proofs import attach, prove_draft
from bentoml_secure.testing.receipts import Draft, build_draft
from tests import proven_case
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_cli_deployment import SCENARIOS

Arguments = Callable[..., tuple[str | Path, ...]]


@functools.cache
def proven() -> tuple[Draft, Bundle]:
    """Return a request of just now: the command line has the machine's clock."""
    now = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=20)
    deployment = build_deployment(
        segments=2,
        set_up=proven_case.set_up(),
        terms={"proof": Proving.EVERY},
        now=now,
    )
    draft = build_draft(deployment)
    return draft, attach(draft.bundle(), deployment, prove_draft(draft))


@pytest.fixture
def draft() -> Draft:
    return proven()[0]


@pytest.fixture
def bundle_file(tmp_path: Path) -> Path:
    path = tmp_path / "receipt.json"
    path.write_bytes(canonical_json(proven()[1].to_json()))
    return path


@pytest.fixture
def trust(draft: Draft, tmp_path: Path) -> Path:
    path = tmp_path / "trust.toml"
    path.write_text(draft.deployment.trust_file)
    return path


@pytest.fixture
def extracted(run: Run, bundle_file: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "extracted"
    result = run("inspect", "proof", bundle_file, "--extract", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def arguments(extracted: Path, trust: Path) -> Arguments:
    def make(segment: int = 0, **named: str | Path) -> tuple[str | Path, ...]:
        options: dict[str, str | Path] = {
            "manifest": extracted / "manifest.json",
            "vk": extracted / str(segment) / "vk",
            "settings": extracted / str(segment) / "settings.json",
            "srs": proven_case.srs()[1],
            "trust": trust,
            **named,
        }
        file = options.pop("file", extracted / f"0-{segment}.proof.json")
        pairs = [(f"--{name}", value) for name, value in options.items()]
        return ("verify", "proof", file, *(part for pair in pairs for part in pair))

    return make


def tensors(path: Path, array: Any, name: str) -> Path:
    path.write_bytes(encode({name: np.asarray(array, np.float32)}))
    return path


class TestVerifyProof:
    @pytest.mark.parametrize("segment", [0, 1])
    def test_a_proof_by_itself(
        self, run: Run, arguments: Arguments, segment: int
    ) -> None:
        result = run(*arguments(segment), "--json")
        assert result.exit_code == 0, result.output
        verdict = json.loads(result.stdout)
        assert verdict["verdict"] == "accepted"
        assert verdict["kind"] == "proof"
        assert verdict["segment"] == segment
        assert verdict["proof_opening"] == "not checked"
        assert verdict["unsafe_srs"] is True
        assert verdict["findings"] == []
        assert [left["field"] for left in verdict["unchecked"]] == ["srs", "prover"]

    def test_an_attachment_is_one(
        self, run: Run, arguments: Arguments, tmp_path: Path
    ) -> None:
        file = tmp_path / "attachment.json"
        attachment = proven()[1].attachments[0]
        file.write_text(json.dumps(attachment.to_json()))
        result = run(*arguments(file=file))
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == "ACCEPTED  proof"

    def test_with_what_the_caller_holds(
        self, run: Run, arguments: Arguments, draft: Draft, tmp_path: Path
    ) -> None:
        salt = {"BENTOML_SECURE_SALT": draft.salt.hex()}
        sent = tensors(tmp_path / "in.safetensors", draft.inputs["x"], "x")
        got = tensors(tmp_path / "out.safetensors", draft.outputs["y"], "y")
        for segment, name, file in ((0, "input", sent), (1, "output", got)):
            result = run(*arguments(segment, **{name: file}), "--json", env=salt)
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout)["proof_opening"] == "checked"

    @pytest.mark.parametrize(
        ("segment", "name", "field"),
        [(0, "input", "input"), (1, "output", "output deviation y")],
    )
    def test_with_what_was_not_proven(
        self,
        run: Run,
        arguments: Arguments,
        draft: Draft,
        tmp_path: Path,
        segment: int,
        name: str,
        field: str,
    ) -> None:
        file = tensors(tmp_path / "other", [[1, 2, 3, 5]], "xy"[segment])
        salt = draft.salt.hex()
        result = run(*arguments(segment, **{name: file, "salt": salt}), "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)["findings"]
        assert [finding["field"] for finding in found] == [field]

    def test_with_another_salt(self, run: Run, arguments: Arguments) -> None:
        result = run(*arguments(1, salt="00" * 32), "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)["findings"]
        assert [finding["field"] for finding in found] == ["salt"]

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"vk": "1/vk"}, "vk"),
            ({"settings": "1/settings.json"}, "settings"),
            ({"file": "0-1.proof.json", "vk": "1/vk"}, "settings"),
        ],
    )
    def test_with_files_of_another_segment(
        self,
        run: Run,
        arguments: Arguments,
        extracted: Path,
        change: dict[str, str],
        field: str,
    ) -> None:
        paths = {name: extracted / path for name, path in change.items()}
        result = run(*arguments(**paths), "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)["findings"]
        assert [finding["field"] for finding in found] == [field]

    def test_a_flipped_bit(
        self, run: Run, arguments: Arguments, extracted: Path
    ) -> None:
        file = extracted / "0-0.proof.json"
        document = json.loads(file.read_text())
        document["proof"]["instances"]["salt"] = document["proof"]["instances"]["input"]
        file.write_text(json.dumps(document))
        result = run(*arguments(), "--json")
        assert result.exit_code == 1
        (finding,) = json.loads(result.stdout)["findings"]
        assert "does not verify" in finding["got"]

    def test_another_string(
        self, run: Run, arguments: Arguments, tmp_path: Path
    ) -> None:
        other = SrsFolder(tmp_path / "srs").generate(4)
        result = run(*arguments(srs=other.path), "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)["findings"]
        assert [finding["field"] for finding in found] == ["srs file"]

    def test_whom_the_trust_file_does_not_list(
        self, run: Run, arguments: Arguments, draft: Draft, tmp_path: Path
    ) -> None:
        text = draft.deployment.trust_file
        honest = proven_case.set_up().manifest
        digest = "sha256:" + "0" * 64
        other = tmp_path / "other.toml"
        other.write_text(
            text.replace(honest.signer_id, digest).replace(
                "unsafe_srs = true", "unsafe_srs = false"
            )
        )
        result = run(*arguments(trust=other), "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)["findings"]
        assert [finding["field"] for finding in found] == ["manifest signer", "srs"]

    @pytest.mark.parametrize(
        ("segment", "name"), [(1, "input"), (0, "output")], ids=["last", "first"]
    )
    def test_an_end_that_it_is_not_at_is_usage(
        self,
        run: Run,
        arguments: Arguments,
        draft: Draft,
        tmp_path: Path,
        segment: int,
        name: str,
    ) -> None:
        file = tensors(tmp_path / "some", draft.inputs["x"], "x")
        result = run(*arguments(segment, **{name: file, "salt": draft.salt.hex()}))
        assert result.exit_code == 2
        assert "is not at that end" in result.stderr

    @pytest.mark.parametrize(
        "change",
        [
            {"manifest": "0/vk"},
            {"srs": "0/vk"},
            {"trust": "0/vk"},
            {"vk": "nowhere"},
            {"input": "0-0.proof.json"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_files_of_ones_own_that_are_wrong_are_usage(
        self, run: Run, arguments: Arguments, extracted: Path, change: dict[str, str]
    ) -> None:
        paths = {name: extracted / path for name, path in change.items()}
        assert run(*arguments(**paths)).exit_code == 2

    def test_input_without_salt_is_usage(
        self, run: Run, arguments: Arguments, draft: Draft, tmp_path: Path
    ) -> None:
        file = tensors(tmp_path / "some", draft.inputs["x"], "x")
        result = run(*arguments(input=file))
        assert result.exit_code == 2
        assert "need the root salt" in result.stderr

    def test_what_is_no_proof_is_rejected(
        self, run: Run, arguments: Arguments, trust: Path
    ) -> None:
        assert run(*arguments(file=trust)).exit_code == 1


class TestInspectProof:
    def test_a_file(self, run: Run, extracted: Path) -> None:
        result = run("inspect", "proof", extracted / "0-1.proof.json")
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines[0] == "proof of ezkl, infer 0 segment 1"
        assert lines[-1] == "NOT VERIFIED  see `bentoml-secure verify proof`"

    def test_a_bundle(self, run: Run, bundle_file: Path) -> None:
        result = run("inspect", "proof", bundle_file, "--json")
        assert result.exit_code == 0
        document = json.loads(result.stdout)
        assert document["verified"] is False
        assert [proof["segment"] for proof in document["proofs"]] == [0, 1]

    def test_a_bundle_without_proofs(
        self, run: Run, draft: Draft, tmp_path: Path
    ) -> None:
        file = tmp_path / "bare.json"
        file.write_bytes(canonical_json(draft.bundle().to_json()))
        result = run("inspect", "proof", file)
        assert result.exit_code == 1
        assert "no proof is attached" in result.stderr

    def test_a_bundle_without_keys(
        self, run: Run, draft: Draft, tmp_path: Path
    ) -> None:
        file = tmp_path / "keyless.json"
        bundle = replace(proven()[1], verification_keys=None)
        file.write_bytes(canonical_json(bundle.to_json()))
        result = run("inspect", "proof", file, "--extract", tmp_path / "to")
        assert result.exit_code == 1
        assert "it has no verification keys" in result.stderr

    def test_only_bundles_are_taken_apart(
        self, run: Run, extracted: Path, tmp_path: Path
    ) -> None:
        file = extracted / "0-0.proof.json"
        result = run("inspect", "proof", file, "--extract", tmp_path / "to")
        assert result.exit_code == 2
        assert "is no receipt's bundle" in result.stderr

    def test_a_place_that_cannot_be_written(
        self, run: Run, bundle_file: Path, trust: Path
    ) -> None:
        result = run("inspect", "proof", bundle_file, "--extract", trust)
        assert result.exit_code == 2
        assert "cannot be written" in result.stderr


def test_a_verdict_says_what_was_proven(
    run: Run, bundle_file: Path, trust: Path, draft: Draft, tmp_path: Path
) -> None:
    request = tmp_path / "request.json"
    request.write_bytes(draft.request)
    result = run("verify", "receipt", bundle_file, "--trust", trust)
    assert result.exit_code == 0, result.output
    assert "proven: 2 of 2 segments, ezkl" in result.stdout
    assert "UNSAFE SRS sha256-srs-v1:" in result.stdout
    assert "  opening not checked" in result.stdout
    result = run(
        *("verify", "receipt", bundle_file, "--trust", trust, "--input", request),
        env={"BENTOML_SECURE_SALT": draft.salt.hex()},
    )
    assert "  opening checked" in result.stdout


def test_a_receipt_still_without_its_proofs_is_provisional(
    run: Run, trust: Path, draft: Draft, tmp_path: Path
) -> None:
    file = tmp_path / "early.json"
    file.write_bytes(canonical_json(draft.bundle().to_json()))
    result = run("verify", "receipt", file, "--trust", trust, "--json")
    assert result.exit_code == 3
    verdict = json.loads(result.stdout)
    assert verdict["verdict"] == "provisional"
    assert verdict["missing_attachments"] == ["proof"]


@pytest.mark.parametrize("link", list(Link))
def test_the_trust_file_names_owner_and_string(
    run: Run, tmp_path: Path, link: Link
) -> None:
    linked = {
        Link.HASHED: proven_case.set_up,
        Link.POLYCOMMIT: proven_case.committing,
    }
    made, proofs = linked[link](), tmp_path / "proofs"
    proofs.mkdir()
    (proofs / "manifest.json").write_bytes(canonical_json(made.envelope.to_json()))
    plan = tmp_path / "plan"
    plan.mkdir()
    document = make_plan(len(made.keys), provable=True).to_json()
    (plan / "plan.json").write_bytes(canonical_json(document))
    scenarios = tmp_path / "scenarios.toml"
    scenarios.write_text(SCENARIOS.replace("quorum = 2", 'quorum = 2\nproof = "every"'))
    assert run("dev-root", tmp_path / "root").exit_code == 0
    arguments = (
        *("trust", plan, "--scenarios", scenarios, "--service", "D", "--replicas", "3"),
        *("--policy", tmp_path / "root" / "policy.toml"),
    )
    result = run(*arguments)
    assert result.exit_code == 2
    assert "the service has no proof set-up" in result.stderr
    result = run(*arguments, "--proofs", proofs)
    assert result.exit_code == 0, result.output
    assert "UNSAFE SRS" in result.stderr
    trust = parse_trust(result.stdout.encode())
    assert trust.manifest_signers == (made.manifest.signer_id,)
    assert trust.srs == (made.manifest.srs.digest,)
    assert trust.unsafe_srs is True
    assert trust.polycommit_links is (link is Link.POLYCOMMIT)
    assert ("POLYCOMMIT LINKS" in result.stderr) is trust.polycommit_links
