"""NVIDIA GPUs in confidential computing mode: Hopper and Blackwell.

Evidence is JSON, one object or a list of up to ``MAX_GPUS``, as NVIDIA's attestation
SDK writes it:

    arch          HOPPER or BLACKWELL
    nonce         the verifier's 32 bytes, hex
    evidence      base64 of an SPDM report, see ``spdm``
    certificate   base64 of five PEM certificates, the leaf first

What nobody signed (``arch``, ``nonce``, versions) has to say the same as what the
device signed. All devices of a list answer one nonce, and each counts once.

A genuine device says nothing of its firmware. ``firmware`` in the policy lists accepted
values of measurement blocks by index; NVIDIA's reference manifests hold them, and every
accepted result shows those of its device. No field names DevTools mode: it shows in the
measurements alone.

Source: NVIDIA nvtrust, local GPU verifier; DMTF DSP0274; TCG DICE attestation
architecture 1.1 section 6.1.1 (FWID).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from bentoml_secure.attestation.checks import require, requiring
from bentoml_secure.attestation.evidence import (
    MAX_EVIDENCE_BYTES,
    Evidence,
    VerifiedClaims,
)
from bentoml_secure.attestation.tees.ec_chain import (
    Certificate,
    development_root,
    read_certificate,
    verify_chain,
)
from bentoml_secure.attestation.tees.nvidia_policy import (
    KIND,
    NvidiaGpuPolicy,
    read_policy,
)
from bentoml_secure.attestation.tees.simulated import VENDOR as SIMULATED
from bentoml_secure.attestation.tees.spdm import (
    ALL_BLOCKS,
    MAX_REPORT_BYTES,
    NONCE_BYTES,
    SIGNED,
    Report,
    parse_report,
)
from bentoml_secure.digest import Digest, parse_hex, parse_json
from bentoml_secure.errors import AttestationError, MalformedInputError
from bentoml_secure.signing import decode_base64

VENDOR = "nvidia"

NVIDIA_ROOT = Digest(
    "sha256:102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"
)
"""NVIDIA Device Identity CA, from 2021 without end."""

MAX_GPUS = 8
MAX_CHAIN_BYTES = 32 * 1024
CHAIN_LENGTH = 5
"""Leaf of the firmware, device, provisioner, model, root."""

_FIELDS = frozenset({"arch", "nonce", "evidence", "certificate"})
_ARCHITECTURES = {"GH": "HOPPER", "GB": "BLACKWELL"}
_MODEL = re.compile(r"((G[HB])[0-9]{3}) [A-Z0-9]+ GSP BROM")
"""Common name of a device's certificate; that of a switch is another."""

_DRIVER_VERSION, _VBIOS_VERSION = 3, 6
_CHIP_SKU, _PROJECT, _PROJECT_SKU, _FWID = 15, 17, 18, 20
_PROTECTED_PCIE, _FEATURE_FLAG = 21, 36
_DRIVER = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6}){1,3}")
_VBIOS_BYTES = 8
_PEM = re.compile(
    r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\r\n]+)-----END CERTIFICATE-----[\r\n]*"
)
_FWID_EXTENSION = x509.ObjectIdentifier("2.23.133.5.4.1")
_FWID_HEADER = bytes.fromhex("06096086480165030402020430")
"""DER: SHA-384's identifier, then 48 octets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    """One device's entry as received, and what its opaque data spell."""

    stated: Mapping[str, Any]
    nonce: bytes
    report: Report
    certificates: tuple[Certificate, ...]
    driver_version: str
    vbios_version: str

    @property
    def model(self) -> str:
        names = self.certificates[1].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if len(names) == 1 else "of no name"

    @property
    def chip(self) -> str:
        return self.model.partition(" ")[0]

    @property
    def arch(self) -> str:
        return _ARCHITECTURES.get(self.chip[:2], "unknown")

    @property
    def device(self) -> str:
        """Chip and serial number of the certificate that NVIDIA gave the device."""
        return f"{self.chip}-{self.certificates[1].serial_number:X}"

    def claims(self) -> dict[str, Any]:
        opaque = self.report.opaque
        return {
            "device": self.device,
            "model": self.model,
            "arch": self.arch,
            "driver_version": self.driver_version,
            "vbios_version": self.vbios_version,
            "chip_sku": _text(opaque.get(_CHIP_SKU)),
            "project": _text(opaque.get(_PROJECT)),
            "project_sku": _text(opaque.get(_PROJECT_SKU)),
            "fwid": opaque.get(_FWID, b"").hex() or None,
            "protected_pcie": opaque.get(_PROTECTED_PCIE, b"").hex() or None,
            "feature_flag": opaque.get(_FEATURE_FLAG, b"").hex() or None,
        }

    def measured(self) -> dict[str, str]:
        """Return the blocks in use: those that are not all zero."""
        blocks = sorted(self.report.measurements.items())
        return {str(index): value.hex() for index, value in blocks if any(value)}


class NvidiaGpu:
    """Verifier of GPU evidence and reader of its policy table.

    Args:
        root: DER of a development root to verify under instead of NVIDIA's; what
            hangs on it is flagged as simulated.

    Raises:
        ConfigurationError: ``root`` does not say that it is one.
    """

    def __init__(self, root: bytes | None = None) -> None:
        self._root = NVIDIA_ROOT if root is None else development_root(root)

    def verify(
        self, evidence: Evidence, endorsements: Sequence[bytes], *, now: datetime
    ) -> VerifiedClaims:
        """Return what devices say, if NVIDIA's root stands behind each.

        Args:
            evidence: From outside, of kind ``nvidia-gpu``.
            endorsements: Not read: the chains are in the evidence.
            now: Judges the dates of the certificates.

        Raises:
            MalformedInputError: Evidence that does not parse.
            AttestationError: A device of which something does not hold.
        """
        # 1. Sizes and forms of all devices, before any signature.
        devices = _parse(evidence)
        # 2. Each genuine, each with its own signature.
        ends = [self._verify_device(device, now) for device in devices]
        # 3. One nonce for all, and no device twice.
        nonces = {device.nonce for device in devices}
        require("nonces", len(nonces) == 1, got=f"{len(nonces)} nonces", want="one")
        ids = sorted(device.device for device in devices)
        require("devices", len(set(ids)) == len(ids), got=ids, want="each one once")
        # 4. Only now what they say.
        simulated = self._root != NVIDIA_ROOT
        return VerifiedClaims(
            kind=KIND,
            report_data=devices[0].nonce,
            claims=_claims(devices),
            platform_id=ids[0] if len(ids) == 1 else _joined(ids),
            vendor=SIMULATED if simulated else VENDOR,
            root=self._root,
            issued_at=None,
            expires_at=min(ends),
            simulated=simulated,
        )

    def _verify_device(self, device: _Device, now: datetime) -> datetime:
        certificates = device.certificates
        chain = verify_chain(certificates[::-1], root=self._root, now=now)
        match = _MODEL.fullmatch(device.model)
        require(
            "model",
            match is not None,
            got=device.model,
            want="a GPU of Hopper or Blackwell, such as 'GH100 A01 GSP BROM'",
        )
        with requiring("spdm.signature", InvalidSignature, want="the leaf's signature"):
            device.report.verify(chain.leaf.key)
        _require_request(device.report)
        _require_fwid(device)
        _require_stated(device)
        return chain.expires_at

    def describe(self, evidence: Evidence) -> Mapping[str, Any]:
        """Return what devices say, unverified.

        Raises:
            MalformedInputError: Evidence that does not parse.
        """
        devices = _parse(evidence)
        return {"nonce": devices[0].nonce.hex(), **_claims(devices)}

    def parse_policy(self, table: Mapping[str, Any]) -> NvidiaGpuPolicy:
        """Return the reference values that the table ``[nvidia-gpu]`` spells.

        Raises:
            ConfigurationError: A key unknown or of another form; no ``firmware``.
        """
        return read_policy(table)


def _claims(devices: Sequence[_Device]) -> dict[str, Any]:
    """Say once what devices of one firmware have measured."""
    records: list[dict[str, str]] = []
    gpus = []
    for device in devices:
        if (record := device.measured()) not in records:
            records.append(record)
        gpus.append({**device.claims(), "measurements": records.index(record)})
    return {"count": len(devices), "gpus": gpus, "measurements": records}


def _require_request(report: Report) -> None:
    require(
        "request",
        report.flags & SIGNED == SIGNED and report.which == ALL_BLOCKS,
        got=f"flags {report.flags}, block {report.which}",
        want="a signature over all measurements",
    )


def _require_fwid(device: _Device) -> None:
    """Compare the firmware that signs with the one that the leaf was issued to."""
    got = device.report.opaque.get(_FWID)
    _, extension = device.certificates[0].extensions.get(_FWID_EXTENSION, (0, None))
    want = None
    if isinstance(extension, x509.UnrecognizedExtension):
        head, want = extension.value[:-48], extension.value[-48:]
        want = want if head.endswith(_FWID_HEADER) else None
    require(
        "fwid",
        # Firmware from before it reported one is told by its leaf alone.
        got is None or got == want,
        got=got.hex() if got is not None else None,
        want=want.hex() if want is not None else "none, as in the certificate",
    )


def _require_stated(device: _Device) -> None:
    """Compare what stands beside the report with what the device signed."""
    stated, arch = device.stated, device.arch
    require("arch", stated["arch"] == arch, got=f"{stated['arch']!r:.40}", want=arch)
    require(
        "nonce",
        device.nonce == device.report.nonce,
        got=device.nonce.hex(),
        want=device.report.nonce.hex(),
    )
    for name, want in (
        ("driver_version", device.driver_version),
        ("vbios_version", device.vbios_version),
    ):
        got = stated.get(name, want)
        require(
            "stated_versions",
            isinstance(got, str) and got.upper() == want,
            got=f"{name} {got!r:.40}",
            want=want,
        )


def _joined(ids: Sequence[str]) -> str:
    """Name several devices as one machine."""
    return f"gpus-{len(ids)}-{hashlib.sha256('.'.join(ids).encode()).hexdigest()}"


def _parse(evidence: Evidence) -> tuple[_Device, ...]:
    if evidence.kind != KIND:
        raise AttestationError(f"evidence kind: got {evidence.kind}, want {KIND}")
    document = parse_json(
        evidence.blob.rstrip(b"\0"), what="GPU evidence", max_bytes=MAX_EVIDENCE_BYTES
    )
    entries = document if isinstance(document, list) else [document]
    if not 0 < len(entries) <= MAX_GPUS:
        raise MalformedInputError(
            f"GPU evidence: got {len(entries)} devices, want 1 to {MAX_GPUS}"
        )
    return tuple(
        _parse_device(entry, what=f"GPU evidence {index}")
        for index, entry in enumerate(entries)
    )


def _parse_device(entry: object, *, what: str) -> _Device:
    if not isinstance(entry, dict) or not entry.keys() >= _FIELDS:
        raise MalformedInputError(
            f"{what}: want an object with {', '.join(sorted(_FIELDS))}"
        )
    nonce = entry["nonce"]
    report = parse_report(
        decode_base64(
            entry["evidence"], what=f"{what} evidence", max_bytes=MAX_REPORT_BYTES
        )
    )
    return _Device(
        stated=entry,
        nonce=parse_hex(
            nonce.lower() if isinstance(nonce, str) else nonce,
            what=f"{what} nonce",
            length=NONCE_BYTES,
        ),
        report=report,
        certificates=_parse_chain(entry["certificate"], what=f"{what} certificate"),
        driver_version=_driver_version(report.opaque.get(_DRIVER_VERSION, b"")),
        vbios_version=_vbios_version(report.opaque.get(_VBIOS_VERSION, b"")),
    )


def _parse_chain(value: object, *, what: str) -> tuple[Certificate, ...]:
    data = decode_base64(value, what=what, max_bytes=MAX_CHAIN_BYTES)
    # No match begins with less than a whole certificate, and each ends at its own.
    text, at, ders = data.decode("latin-1").strip("\r\n\t \0"), 0, []
    while match := _PEM.match(text, at):
        lines = match.group(1).split()
        try:
            ders.append(base64.b64decode("".join(lines), validate=True))
        except binascii.Error as error:
            raise MalformedInputError(f"{what} is not PEM: {error}") from error
        at = match.end()
    if at != len(text) or len(ders) != CHAIN_LENGTH:
        raise MalformedInputError(
            f"{what}: got {len(ders)} PEM certificates, want {CHAIN_LENGTH} and"
            " nothing else"
        )
    return tuple(
        read_certificate(der, what=f"{what} {index}") for index, der in enumerate(ders)
    )


def _driver_version(value: bytes) -> str:
    text = _text(value) or ""
    if not _DRIVER.fullmatch(text):
        raise MalformedInputError(f"GPU driver version: got {text!r:.40}")
    return text


def _vbios_version(value: bytes) -> str:
    if len(value) != _VBIOS_BYTES:
        raise MalformedInputError(
            f"GPU VBIOS version: got {len(value)} bytes, want {_VBIOS_BYTES}"
        )
    half = _VBIOS_BYTES // 2
    return ".".join(f"{byte:02X}" for byte in (*value[:half][::-1], value[half]))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.rstrip(b"\0").decode("latin-1")
