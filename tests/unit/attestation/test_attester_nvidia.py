"""NVIDIA's driver: a fake of its Python module, with what real GPUs answered."""

from __future__ import annotations

import base64
import builtins
import json
import threading
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from bentoml_secure.attestation.attesters import open_gpu_attester
from bentoml_secure.attestation.attesters.nvidia import NvidiaGpuAttester
from bentoml_secure.attestation.tees.nvidia_gpu import NvidiaGpu
from bentoml_secure.errors import (
    MalformedInputError,
    MissingDependencyError,
    UnavailableError,
    UnknownKindError,
)
from tests.evidence_vectors import vector

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NONCE = bytes(range(32))


class FakeNvml:
    """The part of ``pynvml`` that is called, with its structures."""

    NVMLError = pynvml.NVMLError
    NVML_DEVICE_ARCH_HOPPER = pynvml.NVML_DEVICE_ARCH_HOPPER
    NVML_DEVICE_ARCH_BLACKWELL = pynvml.NVML_DEVICE_ARCH_BLACKWELL

    def __init__(self, devices: list[dict[str, Any]]) -> None:
        self.devices = devices
        self.architecture: int = self.NVML_DEVICE_ARCH_HOPPER
        self.open = 0
        self.nonces: list[bytes] = []

    def nvmlInit(self) -> None:  # noqa: N802 - NVIDIA's name, as those below
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        assert self.open == 1
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetArchitecture(self, device: int) -> int:  # noqa: N802
        return self.architecture

    def nvmlDeviceGetConfComputeGpuAttestationReport(  # noqa: N802
        self, device: int, nonce: bytes
    ) -> Any:
        assert self.open == 1
        self.nonces.append(nonce)
        evidence = base64.b64decode(self.devices[device]["evidence"])
        report = pynvml.c_nvmlConfComputeGpuAttestationReport_t()
        report.attestationReport[: len(evidence)] = evidence
        report.attestationReportSize = len(evidence)
        return report

    def nvmlDeviceGetConfComputeGpuCertificate(  # noqa: N802
        self, device: int
    ) -> Any:
        certificate = base64.b64decode(self.devices[device]["certificate"])
        chain = pynvml.c_nvmlConfComputeGpuCertificate_t()
        chain.attestationCertChain[: len(certificate)] = certificate
        chain.attestationCertChainSize = len(certificate)
        return chain


@pytest.fixture
def devices() -> list[dict[str, Any]]:
    made_up = {"evidence": "AQID", "certificate": "UEVN"}
    return [made_up, made_up]


def test_one_object_a_gpu(devices: list[dict[str, Any]]) -> None:
    nvml = FakeNvml(devices)
    attester = NvidiaGpuAttester(nvml)
    evidence = attester.attest(NONCE)
    assert attester.kind == evidence.kind == "nvidia-gpu"
    assert not attester.endorsements
    entry = {**devices[0], "arch": "HOPPER", "nonce": NONCE.hex()}
    assert json.loads(evidence.blob) == [entry, entry]
    assert nvml.nonces == [NONCE, NONCE]
    assert nvml.open == 0


def test_what_real_gpus_answered_verifies() -> None:
    recorded = json.loads(vector("nvidia/gpu_evidence.json"))
    nonce = bytes.fromhex(recorded[0]["nonce"])
    evidence = NvidiaGpuAttester(FakeNvml(recorded)).attest(nonce)
    claims = NvidiaGpu().verify(evidence, (), now=NOW)
    assert claims.report_data == nonce
    assert len(json.loads(evidence.blob)) == len(recorded)


def test_blackwell(devices: list[dict[str, Any]]) -> None:
    nvml = FakeNvml(devices)
    nvml.architecture = nvml.NVML_DEVICE_ARCH_BLACKWELL
    entries = json.loads(NvidiaGpuAttester(nvml).attest(NONCE).blob)
    assert {entry["arch"] for entry in entries} == {"BLACKWELL"}


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_nonce_has_32_bytes(devices: list[dict[str, Any]], length: int) -> None:
    attester = NvidiaGpuAttester(FakeNvml(devices))
    with pytest.raises(MalformedInputError, match=f"got {length} bytes, want 32"):
        attester.attest(bytes(length))


def test_another_architecture(devices: list[dict[str, Any]]) -> None:
    nvml = FakeNvml(devices)
    nvml.architecture = pynvml.NVML_DEVICE_ARCH_AMPERE
    attester = NvidiaGpuAttester(nvml)
    with pytest.raises(UnavailableError, match="architecture 7, want one of HOPPER"):
        attester.attest(NONCE)
    assert nvml.open == 0


def test_no_gpu() -> None:
    with pytest.raises(UnavailableError, match="this machine has no GPU"):
        NvidiaGpuAttester(FakeNvml([]))


def test_a_gpu_that_is_not_confidential(
    devices: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(devices)
    attester = NvidiaGpuAttester(nvml)

    def refuse(device: int) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(nvml, "nvmlDeviceGetConfComputeGpuCertificate", refuse)
    with pytest.raises(UnavailableError, match="NVIDIA driver: Not Supported"):
        attester.attest(NONCE)
    assert nvml.open == 0


def test_two_threads_do_not_share_an_open_driver(devices: list[dict[str, Any]]) -> None:
    attester = NvidiaGpuAttester(FakeNvml(devices))
    threads = [
        threading.Thread(target=attester.attest, args=(NONCE,)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class TestOpening:
    def test_none_is_asked_for(self) -> None:
        assert open_gpu_attester({}, clock=lambda: NOW) is None

    def test_another_vendor(self) -> None:
        environ = {"BENTOML_SECURE_GPU": "abacus"}
        with pytest.raises(UnknownKindError, match="unknown kind 'abacus'"):
            open_gpu_attester(environ, clock=lambda: NOW)

    def test_the_driver_of_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[SimpleNamespace] = []

        def refuse() -> None:
            opened.append(SimpleNamespace())
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

        monkeypatch.setattr(pynvml, "nvmlInit", refuse)
        environ = {"BENTOML_SECURE_GPU": "nvidia"}
        with pytest.raises(UnavailableError, match="NVML Shared Library Not Found"):
            open_gpu_attester(environ, clock=lambda: NOW)
        assert len(opened) == 1

    def test_the_module_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        genuine = builtins.__import__

        def missing(name: str, *arguments: Any, **options: Any) -> Any:
            if name == "pynvml":
                raise ImportError("no", name=name)
            return genuine(name, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", missing)
        environ = {"BENTOML_SECURE_GPU": "nvidia"}
        with pytest.raises(MissingDependencyError, match=r"bentoml-secure\[nvidia\]"):
            open_gpu_attester(environ, clock=lambda: NOW)
