"""The entry's commitments that a caller holds, each for one call."""

from __future__ import annotations

import threading
from collections import deque

from bentoml_secure.attestation.key_document import KeyDocument
from bentoml_secure.digest import Digest
from bentoml_secure.errors import VerificationError
from bentoml_secure.receipts.draw import (
    Commitment,
    parse_commitment_envelope,
    verify_commitment,
)
from bentoml_secure.signing import VerificationKey


class Commitments:
    """What an entry has committed to in one session, and the caller has not used.

    Args:
        document: The entry's, accepted.
        nonce: The 32 bytes that the session began with.
    """

    def __init__(self, document: KeyDocument, nonce: bytes) -> None:
        self._key = VerificationKey.from_hex(document.ed25519)
        self._key_document = document.digest
        self._nonce = nonce.hex()
        self._unused: deque[Digest] = deque()
        self._seen: set[Digest] = set()
        self._lock = threading.Lock()

    def add(self, document: object) -> None:
        """Take in a commitment, as the entry gave it in this session.

        Args:
            document: Parsed JSON.

        Raises:
            MalformedInputError: Not an envelope, or not a commitment in it.
            VerificationError: Not by the entry, not for this session, or given before.
        """
        got = verify_commitment(parse_commitment_envelope(document), self._key)
        want = Commitment(
            commitment=got.commitment,
            key_document=self._key_document,
            evidence_nonce=self._nonce,
        )
        if got != want:
            raise VerificationError(
                f"draw: the entry commits to one for key document {got.key_document}"
                f" and nonce {got.evidence_nonce}, want {want.key_document} and"
                f" {want.evidence_nonce}"
            )
        with self._lock:
            if got.commitment in self._seen:
                # Once it was used, its r stands in a receipt: it commits to nothing.
                raise VerificationError(
                    f"draw: the entry gave {got.commitment} a second time"
                )
            self._seen.add(got.commitment)
            self._unused.append(got.commitment)

    def take(self) -> Digest | None:
        """Return one for one call, and never again; None while there is none left."""
        with self._lock:
            return self._unused.popleft() if self._unused else None
