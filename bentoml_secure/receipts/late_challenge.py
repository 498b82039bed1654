"""What an auditor signs to have one receipt proven after its epoch was drawn.

The receipt is committed to by its epoch's root, and its orders are held for a while:
so it can be challenged by whoever is an auditor of the deployment, by lot
(``epoch_root.challenge_again``) or for a reason of its own. Proofs that come of it
stand in the receipt's bundle as any others do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bentoml_secure.digest import (
    JSON,
    REQUEST_ID_BYTES,
    Digest,
    parse_digest,
    parse_hex,
    parse_json,
)
from bentoml_secure.receipts.epoch_root import MAX_DOCUMENT_BYTES
from bentoml_secure.receipts.strict import fields, whole
from bentoml_secure.signing import Envelope, SigningKey, VerificationKey, sign, verify

CHALLENGE_TYPE = "application/vnd.bentoml-secure.receipt-challenge.v1+json"
_WHAT = "receipt challenge"
_FIELDS = ("version", "receipt_id", "receipt", "key")


@dataclass(frozen=True, slots=True, kw_only=True)
class LateChallenge:
    """One receipt that an auditor wants proven.

    Attributes:
        receipt_id: Under which it is stored.
        receipt: Its digest.
        key: The auditor's Ed25519 key, hex; ``auditor`` is its id.
    """

    receipt_id: str
    receipt: Digest
    key: str

    @property
    def auditor(self) -> str:
        """Key id, as deployments list it."""
        return VerificationKey.from_hex(self.key).key_id

    def to_json(self) -> dict[str, Any]:
        """Return the document that is signed."""
        return {"version": 1} | {name: getattr(self, name) for name in _FIELDS[1:]}

    @classmethod
    def from_json(cls, document: object) -> LateChallenge:
        """Parse a signed document.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        got = fields(document, _FIELDS, what=_WHAT)
        whole(got["version"], what=f"{_WHAT} version", low=1, high=1)
        named = parse_hex(
            got["receipt_id"], what=f"{_WHAT} receipt_id", length=REQUEST_ID_BYTES
        )
        return cls(
            receipt_id=named.hex(),
            receipt=parse_digest(
                got["receipt"], what=f"{_WHAT} receipt", algorithm=JSON
            ),
            key=VerificationKey.from_hex(got["key"]).raw.hex(),
        )


def sign_challenge(receipt_id: str, receipt: Digest, key: SigningKey) -> Envelope:
    """Sign that a receipt is to be proven.

    Args:
        receipt_id: Under which it is stored.
        receipt: Its digest.
        key: The auditor's.
    """
    said = LateChallenge(
        receipt_id=receipt_id, receipt=receipt, key=key.public.raw.hex()
    )
    return sign(key, CHALLENGE_TYPE, said.to_json())


def verify_challenge(envelope: Envelope) -> LateChallenge:
    """Verify an auditor's envelope under the key that it names.

    Whether that key is an auditor's is for the deployment to say.

    Raises:
        VerificationError: Another type, or the signature does not fit.
        MalformedInputError: Not such a document.
    """
    said = LateChallenge.from_json(
        parse_json(envelope.payload, what=_WHAT, max_bytes=MAX_DOCUMENT_BYTES)
    )
    verify(envelope, VerificationKey.from_hex(said.key), payload_type=CHALLENGE_TYPE)
    return said
