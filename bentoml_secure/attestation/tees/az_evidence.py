"""Evidence of a VM on Azure as JSON: three forms of Trustee's attester.

    {"version": 1 or 2, "tpm_quote": {"message", "signature", "pcrs"},
     "hcl_report", "vcek"}          hex, hex and a list of hex; base64url, twice
    {"quote": {"message", "signature", "pcrs"}, "report", "vcek"}
                                    lists of bytes; PEM

``pcrs`` has the SHA-256 bank from register 0 on. Of each form what is named here is
read and the rest is not: the form is another project's, and grows.

Source: github.com/confidential-containers/trustee, deps/verifier/src/az_snp_vtpm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bentoml_secure.attestation.evidence import MAX_EVIDENCE_BYTES
from bentoml_secure.attestation.tees.amd_certificates import MAX_CERTIFICATE_BYTES
from bentoml_secure.attestation.tees.hcl_report import (
    MAX_HCL_BYTES,
    HclReport,
    decode_base64url,
    parse_hcl_report,
)
from bentoml_secure.attestation.tees.tpm_quote import (
    MAX_MESSAGE_BYTES,
    MAX_SIGNATURE_BYTES,
    PCR_BYTES,
    PCR_COUNT,
)
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import MalformedInputError

_WHAT = "az-snp-vtpm evidence"
_VERSIONS = (1, 2)
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class AzEvidence:
    """What the evidence holds, unverified.

    Attributes:
        message: The quote.
        signature: PKCS#1 v1.5, over the quote.
        pcrs: Registers by index.
        vcek: DER or PEM.
    """

    hcl_report: HclReport
    message: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]
    vcek: bytes


def parse_az_evidence(blob: bytes) -> AzEvidence:
    """Read evidence of either form, unverified.

    Raises:
        MalformedInputError: Bytes that do not parse.
    """
    document = parse_json(blob, what=_WHAT, max_bytes=MAX_EVIDENCE_BYTES)
    if not isinstance(document, dict):
        raise MalformedInputError(f"{_WHAT}: want an object")
    if "version" in document:
        return _parse_versioned(document)
    return _parse_unversioned(document)


def _parse_versioned(document: Mapping[str, Any]) -> AzEvidence:
    version = document["version"]
    if type(version) is not int or version not in _VERSIONS:
        raise MalformedInputError(
            f"{_WHAT} version: got {version!r:.40}, want 1, 2 or none"
        )
    quote = _object(document, "tpm_quote")
    return AzEvidence(
        hcl_report=parse_hcl_report(
            decode_base64url(
                document.get("hcl_report"),
                what=f"{_WHAT} hcl_report",
                max_bytes=MAX_HCL_BYTES,
            )
        ),
        message=_hex(quote.get("message"), "message", MAX_MESSAGE_BYTES),
        signature=_hex(quote.get("signature"), "signature", MAX_SIGNATURE_BYTES),
        pcrs={
            index: _hex(value, f"pcr {index}", PCR_BYTES)
            for index, value in enumerate(_pcr_list(quote))
        },
        vcek=decode_base64url(
            document.get("vcek"), what=f"{_WHAT} vcek", max_bytes=MAX_CERTIFICATE_BYTES
        ),
    )


def _parse_unversioned(document: Mapping[str, Any]) -> AzEvidence:
    quote = _object(document, "quote")
    vcek = document.get("vcek")
    if not isinstance(vcek, str) or len(vcek) > 2 * MAX_CERTIFICATE_BYTES:
        raise MalformedInputError(f"{_WHAT} vcek: want PEM")
    return AzEvidence(
        hcl_report=parse_hcl_report(
            _bytes(document.get("report"), "report", MAX_HCL_BYTES)
        ),
        message=_bytes(quote.get("message"), "message", MAX_MESSAGE_BYTES),
        signature=_bytes(quote.get("signature"), "signature", MAX_SIGNATURE_BYTES),
        pcrs={
            index: _bytes(value, f"pcr {index}", PCR_BYTES)
            for index, value in enumerate(_pcr_list(quote))
        },
        vcek=vcek.encode(),
    )


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    if not isinstance(value, dict):
        raise MalformedInputError(f"{_WHAT} {name}: want an object")
    return value


def _pcr_list(quote: Mapping[str, Any]) -> list[Any]:
    pcrs = quote.get("pcrs")
    if not isinstance(pcrs, list) or len(pcrs) > PCR_COUNT:
        raise MalformedInputError(f"{_WHAT} pcrs: want a list of at most {PCR_COUNT}")
    return pcrs


def _hex(text: object, what: str, max_bytes: int) -> bytes:
    # Bounded by the pattern: fromhex would take spaces.
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise MalformedInputError(f"{_WHAT} {what}: want hex")
    if len(text) > 2 * max_bytes:
        raise MalformedInputError(f"{_WHAT} {what}: want at most {max_bytes} bytes")
    return bytes.fromhex(text)


def _bytes(numbers: object, what: str, max_bytes: int) -> bytes:
    if (
        not isinstance(numbers, list)
        or len(numbers) > max_bytes
        or not all(type(item) is int and 0 <= item <= 255 for item in numbers)
    ):
        raise MalformedInputError(
            f"{_WHAT} {what}: want a list of at most {max_bytes} bytes"
        )
    return bytes(numbers)
