"""A GPU beside a CPU: bound to one key document, judged apart, reported together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.attestation import verification
from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise, parse_policy
from bentoml_secure.attestation.evidence import (
    AttestationResult,
    Evidence,
    EvidenceRecord,
)
from bentoml_secure.attestation.key_document import (
    KeyDocument,
    gpu_nonce,
    report_data,
)
from bentoml_secure.attestation.roles import Tee
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.nvidia_gpu import NvidiaGpu
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    PolicyRejected,
)
from bentoml_secure.testing.nvidia_pki import NvidiaPki
from tests.evidence_vectors import vector

NONCE = bytes(range(32))
GPU_TABLE = {"firmware": {"unchecked": "a test"}}


@pytest.fixture(scope="module")
def pki(now: datetime) -> NvidiaPki:
    return NvidiaPki(now=now)


@pytest.fixture(autouse=True)
def _development_gpus(pki: NvidiaPki, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let verification meet GPUs of the development root."""

    def load(kind: str) -> Tee:
        return NvidiaGpu(root=pki.root) if kind == "nvidia-gpu" else load_tee(kind)

    monkeypatch.setattr(verification, "load_tee", load)


@pytest.fixture
def table(dev_root: Path) -> dict[str, Any]:
    """A policy that allows a GPU beside simulated evidence, as a table."""
    table = parse_policy((dev_root / "policy.toml").read_bytes()).to_json()
    allow = ["nvidia-gpu", "simulated"]
    return {**table, "allow": allow, "nvidia-gpu": GPU_TABLE}


Judge = Callable[..., AttestationResult]


@pytest.fixture
def judge(
    document: KeyDocument,
    attester: SimulatedAttester,
    pki: NvidiaPki,
    table: dict[str, Any],
    now: datetime,
) -> Judge:
    def run(
        *,
        gpu: Evidence | None = None,
        covered: Evidence | None = None,
        beside: bool = True,
        policy: dict[str, Any] | None = None,
        **changes: Any,
    ) -> AttestationResult:
        gpu = gpu or pki.attest(gpu_nonce(NONCE, document))
        covered = covered or gpu
        arguments: dict[str, Any] = {
            "document": document,
            "evidence": attester.attest(report_data(NONCE, document, covered.blob)),
            "endorsements": (),
            "policy": AppraisalPolicy.from_table({**table, **(policy or {})}),
            "nonce": NONCE,
            "now": now,
            "nonce_issued_at": now,
            "gpu": gpu if beside else None,
        }
        return verify_key_document(**arguments | changes)

    return run


def fields_of(judge: Judge, **changes: Any) -> list[str]:
    with pytest.raises(PolicyRejected, match=r"evidence|key document") as caught:
        judge(**changes)
    return [finding.field for finding in caught.value.findings]


def test_the_nonce_of_a_gpu_is_pinned_to_nonce_and_document(
    document: KeyDocument, make_document: Callable[..., KeyDocument]
) -> None:
    start = b"bentoml-secure/gpu/v1" + NONCE
    covered = hashlib.sha256(canonical_json(document.to_json())).digest()
    assert gpu_nonce(NONCE, document) == hashlib.sha256(start + covered).digest()
    others = {
        gpu_nonce(NONCE, document),
        gpu_nonce(NONCE[::-1], document),
        gpu_nonce(NONCE, make_document(ed25519="33" * 32)),
    }
    assert len(others) == 3
    with pytest.raises(MalformedInputError, match="got 31 bytes, want 32"):
        gpu_nonce(NONCE[1:], document)


def test_both_are_accepted_and_told(judge: Judge, now: datetime) -> None:
    result = judge()
    assert result.kind == "simulated"
    assert result.gpu is not None
    assert result.gpu.platform_id == "GH100-4"
    assert result.expires_at == now + timedelta(seconds=300)
    left = {field.field for field in result.unchecked}
    assert {"measurement", "gpu.firmware", "gpu.revocation"} <= left
    said = result.to_json()
    assert (said["kind"], said["gpu"]["kind"]) == ("simulated", "nvidia-gpu")


def test_a_simulated_gpu_makes_the_result_simulated(judge: Judge) -> None:
    result = judge()
    hardware = replace(result, claims=replace(result.claims, simulated=False))
    assert hardware.simulated
    assert not replace(hardware, gpu=None).simulated


def test_the_earlier_end_counts(judge: Judge, now: datetime) -> None:
    """The GPU's leaf ends before the development root does."""
    week = {"max_age_seconds": 604_800}
    end = now + timedelta(days=1)
    assert judge(policy=week).expires_at == end
    with pytest.raises(CheckFailedError, match=r"chain\.validity"):
        judge(policy=week, now=end + timedelta(seconds=1))


class TestAttacks:
    def test_the_gpu_of_another_machine(
        self, judge: Judge, pki: NvidiaPki, make_document: Callable[..., KeyDocument]
    ) -> None:
        """Genuine evidence, made for somebody else, that the CPU's covers."""
        theirs = gpu_nonce(NONCE, make_document(boot_id="33" * 16))
        assert fields_of(judge, gpu=pki.attest(theirs)) == ["gpu.report_data"]

    def test_the_gpu_of_an_earlier_nonce(
        self, judge: Judge, pki: NvidiaPki, document: KeyDocument
    ) -> None:
        earlier = pki.attest(gpu_nonce(bytes(32), document))
        assert fields_of(judge, gpu=earlier) == ["gpu.report_data"]

    def test_a_nonce_that_is_not_its_own(
        self, judge: Judge, pki: NvidiaPki, document: KeyDocument
    ) -> None:
        for nonce in (NONCE, report_data(NONCE, document)[:32]):
            assert fields_of(judge, gpu=pki.attest(nonce)) == ["gpu.report_data"]

    def test_a_gpu_that_the_cpu_does_not_cover(
        self, judge: Judge, pki: NvidiaPki, document: KeyDocument
    ) -> None:
        other = pki.attest(gpu_nonce(NONCE, document))
        assert fields_of(judge, covered=other) == ["report_data"]

    def test_a_gpu_that_was_taken_away(
        self,
        judge: Judge,
        attester: SimulatedAttester,
        pki: NvidiaPki,
        document: KeyDocument,
    ) -> None:
        gpu = pki.attest(gpu_nonce(NONCE, document))
        both = attester.attest(report_data(NONCE, document, gpu.blob))
        judge(evidence=both, gpu=gpu)
        with pytest.raises(PolicyRejected, match="report_data") as caught:
            judge(evidence=both, beside=False)
        assert [finding.field for finding in caught.value.findings] == ["report_data"]

    def test_a_gpu_that_is_not_genuine(
        self, judge: Judge, document: KeyDocument, now: datetime
    ) -> None:
        forged = NvidiaPki(now=now).attest(gpu_nonce(NONCE, document))
        with pytest.raises(CheckFailedError, match=r"chain\.root"):
            judge(gpu=forged)

    def test_genuine_evidence_of_eight_gpus_elsewhere(
        self, judge: Judge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpu = Evidence(kind="nvidia-gpu", blob=vector("nvidia/gpu_evidence.json"))
        monkeypatch.setattr(verification, "load_tee", load_tee)
        assert fields_of(judge, gpu=gpu) == ["gpu.report_data"]

    def test_evidence_of_a_cpu_as_a_gpu(self, judge: Judge) -> None:
        posing = Evidence(kind="simulated", blob=b"{}")
        assert fields_of(judge, gpu=posing) == ["gpu.kind"]

    def test_a_process_on_a_gpu_alone(
        self,
        judge: Judge,
        pki: NvidiaPki,
        make_document: Callable[..., KeyDocument],
    ) -> None:
        document = make_document(platform="nvidia-gpu")
        alone = pki.attest(report_data(NONCE, document)[:32])
        changes: dict[str, Any] = {"document": document, "evidence": alone}
        assert fields_of(judge, **changes) == ["kind"]
        # Nor may a document beside good evidence say that it is one.
        assert "platform" in fields_of(judge, document=document)


class TestPolicy:
    def test_findings_of_both_are_listed(
        self, judge: Judge, pki: NvidiaPki, now: datetime
    ) -> None:
        strict = {
            "nvidia-gpu": {**GPU_TABLE, "count": 2, "arch": ["BLACKWELL"]},
            "simulated": {"roots": ["sha256:" + "00" * 32]},
        }
        fields = fields_of(judge, policy=strict, gpu=pki.attest(NONCE))
        assert fields == ["root", "gpu.count", "gpu.arch", "gpu.report_data"]

    def test_a_gpu_that_is_not_allowed(self, judge: Judge) -> None:
        assert fields_of(judge, policy={"allow": ["simulated"]}) == ["gpu.kind"]

    def test_a_gpu_that_is_required(
        self,
        judge: Judge,
        attester: SimulatedAttester,
        document: KeyDocument,
        table: dict[str, Any],
        now: datetime,
    ) -> None:
        required = {"require_gpu": True}
        assert judge(policy=required).gpu is not None
        alone = attester.attest(report_data(NONCE, document))
        policy = AppraisalPolicy.from_table({**table, **required})
        arguments: dict[str, Any] = {
            "nonce": NONCE,
            "now": now,
            "nonce_issued_at": now,
        }
        with pytest.raises(PolicyRejected, match="gpu: got none") as caught:
            verify_key_document(document, alone, (), policy, **arguments)
        assert [finding.field for finding in caught.value.findings] == ["gpu"]
        optional = AppraisalPolicy.from_table(table)
        assert not verify_key_document(document, alone, (), optional, **arguments).gpu

    def test_evidence_that_is_judged_by_itself(
        self, pki: NvidiaPki, table: dict[str, Any], attester: Any, now: datetime
    ) -> None:
        policy = AppraisalPolicy.from_table({**table, "require_gpu": True})
        arguments: dict[str, Any] = {"now": now, "nonce_issued_at": None}
        gpu = NvidiaGpu(root=pki.root).verify(pki.attest(NONCE), (), now=now)
        appraise(gpu, policy, report_data=NONCE, **arguments)
        cpu = load_tee("simulated").verify(attester.attest(bytes(64)), (), now=now)
        with pytest.raises(PolicyRejected, match="gpu: got none"):
            appraise(cpu, policy, report_data=bytes(64), **arguments)

    def test_the_key_reads_back(self, table: dict[str, Any]) -> None:
        for document in (table, {**table, "require_gpu": True}):
            policy = AppraisalPolicy.from_table(document)
            assert policy.to_json() == document
        off = AppraisalPolicy.from_table({**table, "require_gpu": False})
        assert off.to_json() == table

    @pytest.mark.parametrize("value", [1, "true", None, []])
    def test_the_key_out_of_its_form(self, table: dict[str, Any], value: Any) -> None:
        with pytest.raises(ConfigurationError, match="want true or false"):
            AppraisalPolicy.from_table({**table, "require_gpu": value})

    def test_a_gpu_required_and_none_allowed(self, table: dict[str, Any]) -> None:
        alone = {**table, "allow": ["simulated"], "require_gpu": True}
        with pytest.raises(ConfigurationError, match="requires a GPU's evidence"):
            AppraisalPolicy.from_table(alone)


def test_a_record_carries_both(pki: NvidiaPki, attester: SimulatedAttester) -> None:
    record = EvidenceRecord(
        evidence=attester.attest(bytes(64)), gpu=pki.attest(bytes(32))
    )
    assert EvidenceRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
