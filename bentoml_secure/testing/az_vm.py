"""A VM on Azure without Azure: SNP reports of a development root, a vTPM's quotes.

Source: see ``attestation.tees.hcl_report`` and ``attestation.tees.az_evidence``; TCG
TPM 2.0 Library, Part 2, 10.12 (attestation structures).
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.tpm_quote import ATTEST_QUOTE, GENERATED
from bentoml_secure.attestation.tees.tpm_structures import ALG_SHA256
from bentoml_secure.testing.amd_pki import AmdPki, rsa_key

_PCR_COUNT = 24
_PADDED_BYTES = 2600


def jwk(key: RSAPublicKey, kid: str) -> dict[str, Any]:
    """Return an RSA key as runtime data hold it."""
    numbers = key.public_numbers()
    return {
        "kid": kid,
        "key_ops": ["sign"],
        "kty": "RSA",
        "e": base64url(numbers.e.to_bytes(3, "big")),
        "n": base64url(numbers.n.to_bytes(key.key_size // 8, "big")),
    }


def base64url(data: bytes) -> str:
    """Return base64 in the alphabet for URLs, without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def pack_quote(
    extra_data: bytes, pcrs: Mapping[int, bytes], *, magic: int = GENERATED
) -> bytes:
    """Return a ``TPMS_ATTEST`` over registers of the SHA-256 bank."""
    bits = sum(1 << index for index in pcrs)
    digest = hashlib.sha256(b"".join(pcrs[index] for index in sorted(pcrs))).digest()
    return b"".join(
        [
            struct.pack(">IH", magic, ATTEST_QUOTE),
            struct.pack(">H34s", 34, b"\0\x0b"),
            struct.pack(">H", len(extra_data)) + extra_data,
            struct.pack(">QIIBQ", 1_000, 2, 0, 1, 0x20200312_00120003),
            struct.pack(">IHB", 1, ALG_SHA256, 3) + bits.to_bytes(3, "little"),
            struct.pack(">H", len(digest)) + digest,
        ]
    )


class AzVm:
    """A paravisor's runtime data and registers on a chip of a development root.

    Attributes:
        pki: The chip's.
        runtime: Runtime data before they are written as JSON.
        pcrs: Registers of the SHA-256 bank.
    """

    def __init__(self, pki: AmdPki) -> None:
        self.pki = pki
        self.key = rsa_key("vTPM")
        self.runtime: dict[str, Any] = {
            "keys": [
                jwk(self.key.public_key(), "HCLAkPub"),
                jwk(rsa_key("vTPM EK").public_key(), "HCLEkPub"),
            ],
            "vm-configuration": {"secure-boot": True, "tpm-enabled": True},
            "user-data": "00" * 64,
        }
        self.pcrs = {index: bytes([index]) * 32 for index in range(_PCR_COUNT)}

    def hcl_report(self, runtime_data: bytes | None = None, **fields: Any) -> bytes:
        """Return the paravisor's report.

        Args:
            runtime_data: In place of ``runtime`` as JSON.
            fields: ``magic``, ``header_version``, ``report_type``, ``hash_type`` and
                ``length`` in place of good ones; the rest as for ``sign_report``.
        """
        data = runtime_data or json.dumps(self.runtime).encode()
        magic, version = fields.pop("magic", b"HCLA"), fields.pop("header_version", 2)
        request = struct.pack(
            "<5I",
            len(data) + 20,
            1,
            fields.pop("report_type", 2),
            fields.pop("hash_type", 1),
            fields.pop("length", len(data)),
        )
        digest = fields.pop("report_data", hashlib.sha256(data).digest() + bytes(32))
        report = self.pki.sign_report(digest, **fields)
        header = struct.pack("<4sI24x", magic, version)
        return (header + report + request + data).ljust(_PADDED_BYTES, b"\0")

    def document(
        self,
        extra_data: bytes,
        *,
        hcl_report: bytes | None = None,
        message: bytes | None = None,
    ) -> dict[str, Any]:
        """Return evidence of version 1 as a document."""
        quoted = message or pack_quote(extra_data, self.pcrs)
        signature = self.key.sign(quoted, PKCS1v15(), SHA256())
        return {
            "version": 1,
            "hcl_report": base64url(hcl_report or self.hcl_report()),
            "tpm_quote": {
                "message": quoted.hex(),
                "signature": signature.hex(),
                "pcrs": [self.pcrs[index].hex() for index in sorted(self.pcrs)],
            },
            "vcek": base64url(self.pki.vcek),
        }

    def attest(self, report_data: bytes) -> Evidence:
        """Return evidence whose challenge are the first 32 of 64 bytes."""
        document = self.document(report_data[:32])
        return Evidence(kind="az-snp-vtpm", blob=json.dumps(document).encode())
