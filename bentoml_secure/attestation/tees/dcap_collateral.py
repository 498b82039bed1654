"""DCAP collateral: what Intel says of a platform, as tools write it to a file.

One JSON object with the fields of Intel's ``sgx_ql_qve_collateral_t``: chains as PEM,
revocation lists and signatures as hex, base64, PEM or a list of bytes, and the two
signed documents as text. Where a document is the service's whole answer, such as
``{"tcbInfo": {...}, "signature": "<hex>"}``, the signed part of it is taken out. Other
fields are passed over.

Nothing here is verified: this only says which collateral to verify with.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from bentoml_secure.attestation.evidence import MAX_ENDORSEMENT_BYTES
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import MalformedInputError

WHAT = "DCAP collateral"

PCK_CHAIN = "pck_certificate_chain"
PCK_CRL = "pck_crl"
PCK_CRL_CHAIN = "pck_crl_issuer_chain"

_CHAINS = (PCK_CRL_CHAIN, "tcb_info_issuer_chain", "qe_identity_issuer_chain")
_CRLS = ("root_ca_crl", PCK_CRL)
_DOCUMENTS = {"tcb_info": "tcbInfo", "qe_identity": "enclaveIdentity"}
_SIGNATURES = tuple(f"{name}_signature" for name in _DOCUMENTS)
_REQUIRED = frozenset({*_CHAINS, *_CRLS, *_DOCUMENTS})
_MARKS = _REQUIRED | {PCK_CHAIN, *_SIGNATURES}
"""Fields of which any one says that an object is meant as collateral."""

_HEX = re.compile(r"(?:0[xX])?((?:[0-9A-Fa-f]{2})+)")
_PEM = re.compile(
    r"-----BEGIN (?P<label>[A-Z0-9 ]+)-----(?P<body>[A-Za-z0-9+/=\s]*)"
    r"-----END (?P=label)-----"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Collateral of one platform model, unverified.

    Attributes:
        tee: ``SGX`` or ``TDX``, or whatever else its TCB info says.
        fmspc: The platform model, upper-case hex.
        evaluation: ``tcbEvaluationDataNumber`` of its TCB info.
        issued: ``issueDate`` of its TCB info.
        chains: PEM of the issuers of what is signed in it.
        pck_chain: PEM of the platform's certificate, for quotes that lack it.
        fields: The rest, binary ones as hex.
    """

    tee: str
    fmspc: str
    evaluation: int
    issued: str
    chains: Mapping[str, str]
    pck_chain: bytes | None
    fields: Mapping[str, str]

    def to_json(self, pck_chain: bytes) -> str:
        """Return the collateral as dcap-qvl reads it, with the platform's chain."""
        chain = {PCK_CHAIN: pck_chain.decode("ascii", "replace")}
        return json.dumps({**self.chains, **self.fields, **chain})


def find_collateral(endorsements: Sequence[bytes]) -> list[Collateral]:
    """Return the collateral among endorsements; other kinds' are passed over.

    Raises:
        MalformedInputError: An endorsement that begins as a JSON object and is none,
            or collateral with a field missing or of another form.
    """
    found = []
    for endorsement in endorsements:
        if not endorsement.lstrip().startswith(b"{"):
            continue
        document = parse_json(endorsement, what=WHAT, max_bytes=MAX_ENDORSEMENT_BYTES)
        if document.keys() & _MARKS:
            found.append(_parse_collateral(document))
    return found


def pem_certificates(texts: Iterable[str]) -> list[bytes]:
    """Return the DER of the certificates in PEM texts, as far as they are base64."""
    return [
        der
        for text in texts
        for match in _PEM.finditer(text)
        if match["label"] == "CERTIFICATE"
        and (der := _read_base64(match["body"])) is not None
    ]


def is_pem(text: str) -> bool:
    """Tell whether a text is certificates in PEM, blanks between them, and no more."""
    blocks = [match["label"] for match in _PEM.finditer(text)]
    rest = _PEM.sub("", text).strip(" \t\r\n\0")
    whole = len(pem_certificates([text])) == len(blocks)
    return whole and not rest and set(blocks) <= {"CERTIFICATE"}


def _parse_collateral(document: Mapping[str, Any]) -> Collateral:
    if missing := _REQUIRED - document.keys():
        raise MalformedInputError(f"{WHAT}: field {min(missing)!r} is missing")
    chains = {name: _read_text(document, name, chain=True) for name in _CHAINS}
    fields = {name: _read_bytes(document, name).hex() for name in _CRLS}
    for name, inner in _DOCUMENTS.items():
        signed, signature = _read_signed(document, name, inner)
        fields |= {name: signed, f"{name}_signature": signature}
    info = parse_json(
        fields["tcb_info"], what=f"{WHAT} tcb_info", max_bytes=MAX_ENDORSEMENT_BYTES
    )
    pck_chain = None
    if document.get(PCK_CHAIN) is not None:
        pck_chain = _read_text(document, PCK_CHAIN, chain=True).encode()
    return Collateral(
        tee=_read_info(info, "id", str),
        fmspc=_read_info(info, "fmspc", str).upper(),
        evaluation=_read_info(info, "tcbEvaluationDataNumber", int),
        issued=_read_info(info, "issueDate", str),
        chains=chains,
        pck_chain=pck_chain,
        fields=fields,
    )


def _read_info(info: object, name: str, kind: type) -> Any:
    value = info.get(name) if isinstance(info, dict) else None
    # Not isinstance: true is an int.
    if type(value) is not kind:
        raise MalformedInputError(f"{WHAT} tcb_info {name}: got {value!r:.60}")
    return value


def _read_text(document: Mapping[str, Any], name: str, *, chain: bool = False) -> str:
    text = document[name]
    if not isinstance(text, str):
        raise MalformedInputError(
            f"{WHAT} {name}: got {type(text).__name__}, want text"
        )
    if not chain:
        return text
    # As the service's headers carry chains, and as C strings end.
    text = (unquote(text) if "%" in text else text).rstrip("\0")
    if not text.isascii():
        raise MalformedInputError(f"{WHAT} {name}: want PEM, which is ASCII")
    return text


def _read_signed(document: Mapping[str, Any], name: str, inner: str) -> tuple[str, str]:
    text = _read_text(document, name).rstrip("\0")
    answer = parse_json(text, what=f"{WHAT} {name}", max_bytes=MAX_ENDORSEMENT_BYTES)
    if not isinstance(answer, dict) or inner not in answer:
        return text, _read_bytes(document, f"{name}_signature").hex()
    # The signature is over the bytes as they stand.
    start = text.find("{", text.find(f'"{inner}"'))
    try:
        end = json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError) as error:
        raise MalformedInputError(f"{WHAT} {name}: {inner}: {error}") from error
    return text[start:end], _read_bytes(answer, "signature").hex()


def _read_bytes(document: Mapping[str, Any], name: str) -> bytes:
    value = document.get(name)
    got: bytes | None = None
    if isinstance(value, str):
        text = "".join(value.rstrip("\0").split())
        if (pem := _PEM.search(value)) is not None:
            got = _read_base64(pem["body"])
        elif (digits := _HEX.fullmatch(text)) is not None:
            got = bytes.fromhex(digits[1])
        else:
            got = _read_base64(text)
    elif isinstance(value, list) and all(
        type(item) is int and 0 <= item < 256 for item in value
    ):
        got = bytes(value)
    if not got:
        raise MalformedInputError(
            f"{WHAT} {name}: got {value!r:.60}, want bytes as hex, base64 or PEM"
        )
    return got


def _read_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        return None
