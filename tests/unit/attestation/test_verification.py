from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.attestation.appraisal import AppraisalPolicy, parse_policy
from bentoml_secure.attestation.evidence import AttestationResult, Evidence
from bentoml_secure.attestation.key_document import KeyDocument, Role, report_data
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.errors import (
    AttestationError,
    MalformedInputError,
    PolicyRejected,
)

NONCE = bytes(range(32))


@pytest.fixture
def evidence(attester: SimulatedAttester, document: KeyDocument) -> Evidence:
    return attester.attest(report_data(NONCE, document))


@pytest.fixture
def judge(
    document: KeyDocument, evidence: Evidence, policy: AppraisalPolicy, now: datetime
) -> Callable[..., AttestationResult]:
    """Verify the room's document; keywords replace arguments."""

    def run(**changes: Any) -> AttestationResult:
        arguments: dict[str, Any] = {
            "document": document,
            "evidence": evidence,
            "endorsements": (),
            "policy": policy,
            "nonce": NONCE,
            "now": now,
            "nonce_issued_at": now,
        }
        return verify_key_document(**arguments | changes)

    return run


Judge = Callable[..., AttestationResult]


def fields_of(judge: Judge, **changes: Any) -> list[str]:
    with pytest.raises(PolicyRejected, match="diagnosis-runner-0") as caught:
        judge(**changes)
    return [finding.field for finding in caught.value.findings]


def test_evidence_about_these_keys_is_accepted(judge: Judge, now: datetime) -> None:
    result = judge()
    assert result.kind == "simulated"
    assert result.simulated
    assert result.expires_at == now + timedelta(seconds=300)


def test_another_nonce(judge: Judge) -> None:
    assert fields_of(judge, nonce=NONCE[::-1]) == ["report_data"]


def test_a_nonce_of_another_length(judge: Judge) -> None:
    with pytest.raises(MalformedInputError, match="got 31 bytes, want 32"):
        judge(nonce=NONCE[:31])


def test_the_keys_of_another_process(
    judge: Judge, make_document: Callable[..., KeyDocument]
) -> None:
    other = make_document(ed25519="33" * 32)
    assert fields_of(judge, document=other) == ["report_data"]


def test_the_same_keys_in_another_role(judge: Judge, document: KeyDocument) -> None:
    for role, segment in ((Role.PROVER, document.segment), (Role.ENTRY, None)):
        other = replace(document, role=role, segment=segment)
        assert fields_of(judge, document=other) == ["report_data"]


def test_a_gpu_that_the_policy_does_not_allow_is_not_even_parsed(judge: Judge) -> None:
    gpu = Evidence(kind="nvidia-gpu", blob=b"\x00")
    with pytest.raises(PolicyRejected, match="want no GPU's evidence") as caught:
        judge(gpu=gpu)
    assert [finding.field for finding in caught.value.findings] == ["gpu.kind"]


def test_evidence_of_a_gpu_alone_says_nothing_of_a_process(judge: Judge) -> None:
    gpu = Evidence(kind="nvidia-gpu", blob=b"\x00")
    with pytest.raises(PolicyRejected, match="kind: got nvidia-gpu, want a CPU's"):
        judge(evidence=gpu)


def test_a_platform_that_the_evidence_does_not_show(
    judge: Judge,
    attester: SimulatedAttester,
    make_document: Callable[..., KeyDocument],
) -> None:
    posing = make_document(platform="tdx")
    evidence = attester.attest(report_data(NONCE, posing))
    with pytest.raises(PolicyRejected, match="platform: got tdx, want simulated"):
        judge(document=posing, evidence=evidence)


def test_keys_that_have_ended(judge: Judge, document: KeyDocument) -> None:
    end = document.not_after
    assert fields_of(judge, now=end, nonce_issued_at=end) == [
        "not_after",
        "issued_at",
    ]


def test_every_finding_of_document_and_evidence(
    judge: Judge, make_document: Callable[..., KeyDocument], now: datetime
) -> None:
    other = make_document(platform="tdx", not_after="2026-03-01T12:00:00Z")
    later = now + timedelta(seconds=301)
    assert fields_of(judge, document=other, now=later) == [
        "platform",
        "not_after",
        "report_data",
        "issued_at",
        "nonce_issued_at",
    ]


def test_a_root_that_the_policy_does_not_list(
    judge: Judge, document: KeyDocument, tmp_path: Path, now: datetime, make_root: Any
) -> None:
    foreign = SimulatedAttester.from_folder(
        make_root(tmp_path / "foreign"), clock=lambda: now
    )
    evidence = foreign.attest(report_data(NONCE, document))
    assert fields_of(judge, evidence=evidence) == ["root"]
    theirs = parse_policy((tmp_path / "foreign" / "policy.toml").read_bytes())
    judge(evidence=evidence, policy=theirs)


def test_a_kind_that_is_not_allowed_is_not_even_parsed(judge: Judge) -> None:
    with pytest.raises(PolicyRejected, match="kind: got tdx, want simulated"):
        judge(evidence=Evidence(kind="tdx", blob=b"\x00"))


def test_evidence_that_is_not_authentic(judge: Judge, evidence: Evidence) -> None:
    other = evidence.blob.replace(b'"platform_id":"host-a"', b'"platform_id":"host-b"')
    assert other != evidence.blob
    with pytest.raises(AttestationError, match="signature does not fit"):
        judge(evidence=Evidence(kind="simulated", blob=other))
    with pytest.raises(MalformedInputError, match="not valid JSON"):
        judge(evidence=Evidence(kind="simulated", blob=b"{"))
