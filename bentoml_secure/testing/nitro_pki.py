"""Nitro attestation documents under a development root: real form, no hardware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import cbor2

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees.cose import ALGORITHM, ES384
from bentoml_secure.testing.ec_pki import EcPki, sign_raw

_NAMES = (
    "aws.nitro-enclaves",
    "region.aws.nitro-enclaves",
    "zonal.aws.nitro-enclaves",
    "instance.aws.nitro-enclaves",
    "enclave.aws",
)
LEAF_SECONDS = 3 * 3600


class NitroPki:
    """A development root, what hangs on it, and an enclave that it attests.

    Args:
        now: Time of the documents.
    """

    kind = "nitro"

    def __init__(self, *, now: datetime) -> None:
        self.pki = EcPki(_NAMES, now=now, leaf_seconds=LEAF_SECONDS)
        self.root = self.pki.root
        self._now = now

    def attest(self, report_data: bytes) -> Evidence:
        """Return a document whose ``user_data`` is the report data."""
        return self.document(user_data=report_data)

    def document(
        self, *, chain: Sequence[bytes] | None = None, **fields: Any
    ) -> Evidence:
        """Return a signed document.

        Args:
            chain: Certificates, root first; by default good ones.
            fields: Fields of the payload to replace.
        """
        return self.signed(cbor2.dumps(self.payload(chain=chain, **fields)))

    def payload(
        self, *, chain: Sequence[bytes] | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Return the payload of a good document, fields replaced."""
        *cabundle, leaf = self.pki.chain() if chain is None else chain
        return {
            "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
            "digest": "SHA384",
            "timestamp": int(self._now.timestamp() * 1000),
            "pcrs": {index: bytes([index + 1] * 48) for index in range(16)},
            "certificate": leaf,
            "cabundle": cabundle,
            "public_key": None,
            "user_data": bytes(range(64)),
            "nonce": None,
            **fields,
        }

    def signed(
        self,
        payload: bytes,
        *,
        header: Mapping[int, Any] | None = None,
        unprotected: Mapping[int, Any] | None = None,
        tag: int | None = None,
    ) -> Evidence:
        """Return a payload, signed by the leaf's key under any header.

        Args:
            payload: Bytes of it.
            header: Protected; by default ES384.
            unprotected: Not signed; by default empty.
            tag: Of CBOR; by default none, as the module writes.
        """
        protected = cbor2.dumps({ALGORITHM: ES384} if header is None else header)
        signature = sign_raw(
            self.pki.leaf_key, cbor2.dumps(["Signature1", protected, b"", payload])
        )
        message: Any = [protected, dict(unprotected or {}), payload, signature]
        if tag is not None:
            message = cbor2.CBORTag(tag, message)
        return Evidence(kind=self.kind, blob=cbor2.dumps(message))
