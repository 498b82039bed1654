"""Evidence of NVIDIA GPUs in confidential-computing mode, from their driver.

Needs the extra ``nvidia``. The evidence is a list with one object a GPU:

    arch          HOPPER, BLACKWELL, ...
    nonce         64 hex digits
    evidence      base64 of the SPDM request and response
    certificate   base64 of the PEM chain of the device's attestation key

Source: NVML API Reference, Confidential Computing; NVIDIA/nvtrust.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from bentoml_secure.attestation.evidence import Endorsements, Evidence
from bentoml_secure.attestation.tees.nvidia_policy import KIND
from bentoml_secure.digest import NONCE_BYTES, canonical_json
from bentoml_secure.errors import (
    MalformedInputError,
    MissingDependencyError,
    UnavailableError,
)

ARCHITECTURES = ("HOPPER", "BLACKWELL")


class NvidiaGpuAttester:
    """Asks the driver for a report of every GPU of the machine.

    Args:
        nvml: The module ``pynvml``.

    Raises:
        UnavailableError: No driver, or no GPU.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._lock = threading.Lock()
        self._each(lambda device: nvml.nvmlDeviceGetArchitecture(device))

    @property
    def kind(self) -> str:
        """``nvidia-gpu``."""
        return KIND

    @property
    def endorsements(self) -> Endorsements:
        """None: the chains are in the evidence."""
        return ()

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, clock: Callable[[], datetime]
    ) -> NvidiaGpuAttester:
        """Open the driver of this machine.

        Args:
            environ: Not read.
            clock: Not read: reports hold no time.

        Raises:
            MissingDependencyError: ``nvidia-ml-py`` is not installed.
            UnavailableError: No driver, or no GPU.
        """
        del environ, clock
        try:
            import pynvml
        except ImportError as error:
            raise MissingDependencyError(
                f"NVIDIA GPUs: {error.name} is not installed.",
                remedy="pip install 'bentoml-secure[nvidia]'",
            ) from error
        return cls(pynvml)

    def attest(self, report_data: bytes) -> Evidence:
        """Return reports of all GPUs over the same nonce.

        Args:
            report_data: The nonce, 32 bytes.

        Raises:
            MalformedInputError: A nonce of another length.
            UnavailableError: The driver does not answer, or its GPUs are not in
                confidential-computing mode.
        """
        if len(report_data) != NONCE_BYTES:
            raise MalformedInputError(
                f"GPU nonce: got {len(report_data)} bytes, want {NONCE_BYTES}"
            )
        entries = self._each(lambda device: self._attest_one(device, report_data))
        return Evidence(kind=KIND, blob=canonical_json(entries))

    def _each(self, ask: Callable[[Any], Any]) -> list[Any]:
        """Ask every GPU, between opening the driver and closing it."""
        nvml = self._nvml
        with self._lock:
            try:
                nvml.nvmlInit()
                try:
                    count = nvml.nvmlDeviceGetCount()
                    devices = map(nvml.nvmlDeviceGetHandleByIndex, range(count))
                    answers = [ask(device) for device in devices]
                finally:
                    nvml.nvmlShutdown()
            except nvml.NVMLError as error:
                raise UnavailableError(
                    f"NVIDIA driver: {error}.",
                    remedy="Want a driver and GPUs in confidential-computing mode.",
                ) from error
        if not answers:
            raise UnavailableError("NVIDIA driver: this machine has no GPU.")
        return answers

    def _attest_one(self, device: Any, nonce: bytes) -> dict[str, str]:
        nvml = self._nvml
        report = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(device, nonce)
        chain = nvml.nvmlDeviceGetConfComputeGpuCertificate(device)
        evidence = bytes(report.attestationReport)[: report.attestationReportSize]
        certificate = bytes(chain.attestationCertChain)
        return {
            "arch": self._architecture(device),
            "nonce": nonce.hex(),
            "evidence": base64.b64encode(evidence).decode(),
            "certificate": base64.b64encode(
                certificate[: chain.attestationCertChainSize]
            ).decode(),
        }

    def _architecture(self, device: Any) -> str:
        found = self._nvml.nvmlDeviceGetArchitecture(device)
        for name in ARCHITECTURES:
            if found == getattr(self._nvml, f"NVML_DEVICE_ARCH_{name}"):
                return name
        raise UnavailableError(
            f"NVIDIA driver: GPU of architecture {found},"
            f" want one of {', '.join(ARCHITECTURES)}."
        )
