"""CCA tokens, their claims signed again after what was hurt, and CPAKs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import cbor2

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.cca import Cca
from bentoml_secure.attestation.tees.cca_keys import find_keys
from bentoml_secure.attestation.tees.cose import parse_sign1
from bentoml_secure.errors import SecureError
from bentoml_secure.testing.cca_pki import CcaPki
from bentoml_secure.testing.deployment import NOW
from bentoml_secure.testing.ec_pki import sign_raw

_PKI = CcaPki()
_TEE = Cca(development_key=_PKI.cpak.public_key())
_GOOD: dict[int, bytes] = cbor2.loads(_PKI.token().blob).value
_PLATFORM, _REALM = _GOOD


def seeds() -> list[bytes]:
    """Return a genuine token, the payloads of both in it, and a CPAK."""
    payloads = [parse_sign1(each, what="seed").payload for each in _GOOD.values()]
    return [_PKI.token().blob, *payloads, _PKI.jwk, _PKI.pem]


def _signed(key: Any, payload: bytes) -> bytes:
    protected = cbor2.dumps({1: -35})
    body = cbor2.dumps(["Signature1", protected, b"", payload])
    return cbor2.dumps([protected, {}, payload, sign_raw(key, body)])


def one(data: bytes) -> None:
    """Read bytes as a token, as either payload of a signed one, and as a CPAK."""
    if not data:
        return
    with suppress(SecureError):
        find_keys([data])
    for evidence in (
        Evidence(kind="cca", blob=data[:65536]),
        _PKI.wrapped(_signed(_PKI.cpak, data[:16384]), _GOOD[_REALM]),
        _PKI.wrapped(_GOOD[_PLATFORM], _signed(_PKI.rak, data[:16384])),
    ):
        with suppress(SecureError):
            _TEE.describe(evidence)
        with suppress(SecureError):
            _TEE.verify(evidence, (_PKI.jwk,), now=NOW)
