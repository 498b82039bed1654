"""GPU evidence under a development root: real form, no hardware."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.spdm import (
    ALL_BLOCKS,
    GET_MEASUREMENTS,
    MEASUREMENTS,
    SIGNED,
    VERSION,
)
from bentoml_secure.testing.ec_pki import EcPki, sign_raw

DEVICE = 3
"""Index of the device's certificate in a chain that starts with the root."""

FWID = bytes(range(48))
_FWID_OID = x509.ObjectIdentifier("2.23.133.5.4.1")
_FWID_HEADER = bytes.fromhex("06096086480165030402020430")


def fwid_extension(fwid: bytes) -> tuple[x509.ExtensionType, bool]:
    """Return the extension that names the firmware which a leaf was issued to."""
    body = _FWID_HEADER + fwid
    value = bytes([0x30, len(body)]) + body
    return x509.UnrecognizedExtension(_FWID_OID, value), False


class NvidiaPki:
    """A development root, and a GPU that it attests.

    Args:
        now: Time that the certificates are good around.
        model: The device's, as its certificate names it.
    """

    kind = "nvidia-gpu"

    def __init__(self, *, now: datetime, model: str = "GH100 A01 GSP BROM") -> None:
        names = ("Device Identity", "Identity", "Provisioner", model, "GSP FMC LF")
        self.pki = EcPki(names, now=now, leaf_extensions=(fwid_extension(FWID),))
        self.root = self.pki.root

    def attest(self, nonce: bytes) -> Evidence:
        """Return one device's evidence over a nonce."""
        return self.evidence(self.entry(nonce))

    def evidence(self, *entries: Any, as_list: bool = False) -> Evidence:
        """Return entries as evidence: one as an object, several as a list."""
        document = list(entries) if as_list or len(entries) != 1 else entries[0]
        return Evidence(kind=self.kind, blob=json.dumps(document).encode())

    def entry(
        self,
        nonce: bytes,
        /,
        *,
        chain: Sequence[bytes] | None = None,
        report: bytes | None = None,
        **stated: Any,
    ) -> dict[str, Any]:
        """Return one device's entry.

        Args:
            nonce: The verifier's, 32 bytes.
            chain: Certificates, root first; by default good ones.
            report: Of SPDM; by default a good one.
            stated: Fields to replace or add.
        """
        certificates = self.pki.chain() if chain is None else chain
        pem = b"".join(
            x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
            for der in reversed(certificates)
        )
        spdm = self.report(nonce) if report is None else report
        return {
            "arch": "HOPPER",
            "nonce": nonce.hex(),
            "evidence": base64.b64encode(spdm).decode(),
            "certificate": base64.b64encode(pem).decode(),
            **stated,
        }

    def report(
        self,
        nonce: bytes,
        *,
        flags: int = SIGNED,
        which: int = ALL_BLOCKS,
        measurements: Mapping[int, bytes] | None = None,
        opaque: Mapping[int, bytes] | None = None,
    ) -> bytes:
        """Return a signed report.

        Args:
            nonce: The verifier's, 32 bytes.
            flags: Of the request.
            which: Of the request.
            measurements: Blocks by index.
            opaque: Values that replace or join the good ones; empty ones are left out.
        """
        blocks = {1: bytes(48), 2: b"\2" * 48, 3: b"\3" * 48}
        blocks = dict(blocks if measurements is None else measurements)
        values = {
            3: b"590.12\0",
            6: bytes.fromhex("00a5009601000000"),
            17: b"G520\0",
            20: FWID,
            36: b"\2\0",
            **(opaque or {}),
        }
        return self.signed(
            bytes([VERSION, GET_MEASUREMENTS, flags, which]) + nonce + b"\0",
            record=b"".join(_block(index, blocks[index]) for index in blocks),
            count=len(blocks),
            opaque=b"".join(_value(i, values[i]) for i in values if values[i]),
        )

    def signed(
        self, request: bytes, *, record: bytes, count: int, opaque: bytes
    ) -> bytes:
        """Return a request and a response of these parts, signed by the leaf's key."""
        response = (
            bytes([VERSION, MEASUREMENTS, 0, 0, count])
            + len(record).to_bytes(3, "little")
            + record
            + bytes(32)
            + len(opaque).to_bytes(2, "little")
            + opaque
        )
        return request + response + sign_raw(self.pki.leaf_key, request + response)


def _block(index: int, value: bytes) -> bytes:
    body = bytes([1]) + len(value).to_bytes(2, "little") + value
    return bytes([index, 1]) + len(body).to_bytes(2, "little") + body


def _value(identifier: int, value: bytes) -> bytes:
    return identifier.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value
