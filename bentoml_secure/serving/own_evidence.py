"""The entry's own evidence, and how receipts name it."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.digest import NONCE_BYTES
from bentoml_secure.receipts.receipt import ENTRY, Party
from bentoml_secure.session.identity import Identity, Keys
from bentoml_secure.session.keys import Session
from bentoml_secure.statements import format_time

MAX_OPEN_NONCES = 10_000


@dataclass(frozen=True, slots=True)
class OwnParty:
    """The entry as a receipt names it: what it signs with, and evidence of that."""

    keys: Keys
    party: Party
    record: EvidenceRecord


def _own_party(
    keys: Keys, record: EvidenceRecord, nonce: bytes, issued_at: datetime
) -> OwnParty:
    party = Party(
        name=keys.document.service,
        role=ENTRY,
        key_document=keys.digest,
        evidence=record.digest,
        evidence_nonce=nonce.hex(),
        nonce_issued_at=format_time(issued_at),
    )
    return OwnParty(keys, party, record)


class OwnEvidence:
    """The entry's evidence by nonce: a caller's, or one it drew itself."""

    def __init__(self, identity: Identity, max_age: timedelta) -> None:
        self._identity = identity
        self._max_age = max_age
        self._by_nonce: OrderedDict[bytes, OwnParty] = OrderedDict()
        self._drawn: bytes | None = None
        self._drawing = asyncio.Lock()

    async def attest(self, nonce: bytes, now: datetime) -> tuple[Keys, EvidenceRecord]:
        """Make evidence over a nonce and remember it for receipts."""
        keys = self._identity.keys
        # A device takes tens of milliseconds: not on the loop.
        record = await asyncio.to_thread(self._identity.attest, nonce, keys)
        self._by_nonce[nonce] = _own_party(keys, record, nonce, now)
        if len(self._by_nonce) > MAX_OPEN_NONCES:
            self._by_nonce.popitem(last=False)
        return keys, record

    async def for_receipt(
        self, session: Session | None, nonce: bytes | None, now: datetime
    ) -> OwnParty:
        """Return evidence no older than allowed, and the keys that it binds.

        Args:
            session: That the request came by: what it showed is what its caller
                judged, whatever keys are in force by now.
            nonce: That a caller without one has had evidence for, if it said so.
            now: The time.
        """
        if session is not None and session.own.record is not None:
            own = session.own
            return _own_party(
                session.keys, session.own.record, own.nonce, own.nonce_issued_at
            )
        if (known := self._known(nonce, now)) is not None:
            return known
        # One asks the device for all that wait.
        async with self._drawing:
            if (known := self._known(self._drawn, now)) is not None:
                return known
            drawn = secrets.token_bytes(NONCE_BYTES)
            await self.attest(drawn, now)
            self._drawn = drawn
            return self._by_nonce[drawn]

    def _known(self, nonce: bytes | None, now: datetime) -> OwnParty | None:
        known = None if nonce is None else self._by_nonce.get(nonce)
        if known is None or now >= known.keys.document.not_after:
            return None
        issued = datetime.fromisoformat(known.party.nonce_issued_at)
        return known if now - issued < self._max_age else None
