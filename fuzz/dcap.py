"""Quotes and collateral of Intel's kinds: refused, or what they were made to say."""

from __future__ import annotations

from datetime import UTC, datetime

from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.roles import Tee
from bentoml_secure.attestation.tees.sgx import Sgx
from bentoml_secure.attestation.tees.tdx import Tdx
from bentoml_secure.errors import SecureError
from bentoml_secure.testing.dcap_pki import DcapPki
from fuzz._same import require_same

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
_PKI = DcapPki(now=NOW)
_REPORT_DATA = bytes(range(64))
_TEES: dict[str, Tee] = {
    "tdx": Tdx(root=_PKI.root_digest),
    "sgx": Sgx(root=_PKI.root_digest),
}
_QUOTES = {
    "tdx": _PKI.tdx_quote(_REPORT_DATA),
    "sgx": _PKI.sgx_quote(_REPORT_DATA),
}
_NEWER = _PKI.tdx_quote(_REPORT_DATA, version=5, body_type=4)
_COLLATERAL = {kind: _PKI.collateral(kind.upper()) for kind in _TEES}


def seeds() -> list[bytes]:
    """Return good quotes of both kinds, and good collateral for them."""
    return [*_QUOTES.values(), _NEWER, *_COLLATERAL.values()]


def _verify(kind: str, quote: bytes, collateral: bytes) -> VerifiedClaims:
    return _TEES[kind].verify(Evidence(kind=kind, blob=quote), (collateral,), now=NOW)


_GOOD = {kind: [_verify(kind, _QUOTES[kind], _COLLATERAL[kind])] for kind in _TEES}
_GOOD["tdx"].append(_verify("tdx", _NEWER, _COLLATERAL["tdx"]))


def one(data: bytes) -> None:
    """Read bytes as collateral of a good quote, and as a quote under good collateral.

    Raises:
        AssertionError: They verify and say something that nobody signed.
    """
    for kind in _TEES:
        for quote, collateral in (
            (_QUOTES[kind], data),
            (data, _COLLATERAL[kind]),
        ):
            try:
                claims = _verify(kind, quote, collateral)
            except SecureError:
                continue
            require_same(claims in _GOOD[kind], True)
