"""The report that Azure's paravisor keeps for its guest: an SNP report and a key.

    0      header of 32 bytes: "HCLA", version 1 or 2
    32     SEV-SNP report of 1184 bytes, whose report_data hashes the runtime data
    1216   size, version, report type (2: SNP), hash type (1: SHA-256), length
    1236   runtime data, JSON: the vTPM's keys, the VM's configuration; then zeros

Integers are little-endian. Nothing here is verified.

Source: Microsoft, "Azure confidential VMs guest attestation design";
github.com/Azure/azure-cvm-tooling, az-cvm-vtpm/src/hcl.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPublicKey,
    RSAPublicNumbers,
)

from bentoml_secure.attestation.tees.snp_report import (
    REPORT_BYTES,
    Report,
    parse_report,
)
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import MalformedInputError

MAX_HCL_BYTES = 64 * 1024
MAX_MODULUS_BYTES = 512
ATTESTATION_KEY = "HCLAkPub"
SNP, SHA256 = 2, 1

_MAGIC = b"HCLA"
_VERSIONS = (1, 2)
_HEADER = struct.Struct("<4sI24x")
_REQUEST = struct.Struct("<8xIII")
_RUNTIME_START = _HEADER.size + REPORT_BYTES + _REQUEST.size
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*={0,2}")
_WHAT = "HCL report"


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """An SNP report of the paravisor's with what its report data covers.

    Attributes:
        runtime_data: As hashed: JSON.
        attestation_key: The vTPM's that signs quotes.
        vm_configuration: Of the VM, as the paravisor says.
        user_data: What the guest had put in, hex as written there; "" if nothing.
    """

    report: Report
    runtime_data: bytes
    attestation_key: RSAPublicKey
    vm_configuration: Mapping[str, Any]
    user_data: str


def parse_hcl_report(data: bytes) -> HclReport:
    """Read a report of the paravisor's, unverified.

    Raises:
        MalformedInputError: Bytes that do not parse, another kind's report or another
            hash than SHA-256 in it.
    """
    if not _RUNTIME_START <= len(data) <= MAX_HCL_BYTES:
        raise MalformedInputError(
            f"{_WHAT}: got {len(data)} bytes, want {_RUNTIME_START} to {MAX_HCL_BYTES}"
        )
    magic, version = _HEADER.unpack_from(data)
    if magic != _MAGIC or version not in _VERSIONS:
        raise MalformedInputError(
            f"{_WHAT}: got {magic!r} version {version}, want {_MAGIC!r} version 1 or 2"
        )
    runtime_data = _runtime_data(data)
    runtime = parse_json(runtime_data, what="runtime data", max_bytes=MAX_HCL_BYTES)
    if not isinstance(runtime, dict):
        raise MalformedInputError("runtime data: want an object")
    configuration = runtime.get("vm-configuration", {})
    user_data = runtime.get("user-data", "")
    if not isinstance(configuration, dict) or not isinstance(user_data, str):
        raise MalformedInputError("runtime data: want vm-configuration and user-data")
    return HclReport(
        report=parse_report(data[_HEADER.size : _HEADER.size + REPORT_BYTES]),
        runtime_data=runtime_data,
        attestation_key=_attestation_key(runtime.get("keys")),
        vm_configuration=configuration,
        user_data=user_data,
    )


def _runtime_data(data: bytes) -> bytes:
    report_type, hash_type, length = _REQUEST.unpack_from(
        data, _HEADER.size + REPORT_BYTES
    )
    if (report_type, hash_type) != (SNP, SHA256):
        raise MalformedInputError(
            f"{_WHAT}: got report type {report_type} and hash type {hash_type},"
            f" want {SNP}, SEV-SNP, and {SHA256}, SHA-256"
        )
    runtime_data = data[_RUNTIME_START : _RUNTIME_START + length]
    if len(runtime_data) != length or any(data[_RUNTIME_START + length :]):
        raise MalformedInputError(
            f"{_WHAT}: want {length} bytes of runtime data, and nothing but zeros after"
        )
    return runtime_data


def _attestation_key(keys: object) -> RSAPublicKey:
    found = [
        key
        for key in (keys if isinstance(keys, list) else [])
        if isinstance(key, dict) and key.get("kid") == ATTESTATION_KEY
    ]
    if len(found) != 1 or found[0].get("kty") != "RSA":
        raise MalformedInputError(
            f"runtime data keys: want one RSA key {ATTESTATION_KEY}"
        )
    modulus, exponent = (
        decode_base64url(
            found[0].get(name),
            what=f"{ATTESTATION_KEY} {name}",
            max_bytes=MAX_MODULUS_BYTES,
        )
        for name in ("n", "e")
    )
    numbers = RSAPublicNumbers(
        int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big")
    )
    try:
        return numbers.public_key()
    except ValueError as error:
        raise MalformedInputError(f"{ATTESTATION_KEY}: {error}") from error


def decode_base64url(text: object, *, what: str, max_bytes: int) -> bytes:
    """Decode base64 in the alphabet for URLs, padded or not.

    Raises:
        MalformedInputError: Anything else, or more than ``max_bytes``.
    """
    if (
        not isinstance(text, str)
        or len(text) > (max_bytes + 2) // 3 * 4
        or not _BASE64URL.fullmatch(text)
    ):
        raise MalformedInputError(
            f"{what}: want base64url of at most {max_bytes} bytes"
        )
    unpadded = text.rstrip("=")
    try:
        return base64.urlsafe_b64decode(unpadded + "=" * (-len(unpadded) % 4))
    except binascii.Error as error:
        raise MalformedInputError(f"{what} is not base64url: {error}") from error
