"""The entry's draws, made ahead: committed to in a session, each used once.

In this process's memory only, and no longer than the session: who comes back with a
commitment of another session, process or call finds none. A restart forgets them with
the sessions.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.errors import VerificationError
from bentoml_secure.receipts.draw import DRAW_BYTES, Commitment, Draw, commit_draw
from bentoml_secure.session.keys import Session
from bentoml_secure.session.responders import MAX_SESSIONS
from bentoml_secure.signing import Envelope

MAX_OPEN = 32
"""Of one session: a caller that asks more at once has the rest asserted."""


@dataclass(slots=True)
class _Open:
    """One session's draws that were not used yet."""

    expires_at: datetime
    r: dict[Digest, bytes] = field(default_factory=dict, repr=False)


class Draws:
    """What the entry has committed to and not used.

    Args:
        clock: The time, with a time zone.
        max_sessions: Beyond that, those of the oldest session are forgotten.
        random_bytes: Draws.
    """

    def __init__(
        self,
        clock: Callable[[], datetime],
        *,
        max_sessions: int = MAX_SESSIONS,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._clock = clock
        self._max_sessions = max_sessions
        self._random_bytes = random_bytes
        self._open: OrderedDict[bytes, _Open] = OrderedDict()
        # Handshakes end in threads, requests on the loop.
        self._lock = threading.Lock()

    def give(self, session: Session) -> Envelope | None:
        """Draw, and return the signed commitment to it for this session.

        None while the session has ``MAX_OPEN`` that it has not used: what was promised
        is never forgotten for what comes after it.
        """
        r = self._random_bytes(DRAW_BYTES)
        commitment = digest_bytes(r)
        with self._lock:
            held = self._of(session)
            if len(held.r) >= MAX_OPEN:
                return None
            held.r[commitment] = r
        return _signed(session, commitment)

    def use(self, session: Session, commitment: Digest) -> Draw:
        """Use up the draw behind a commitment.

        Raises:
            VerificationError: None such is open in this session.
        """
        with self._lock:
            held = self._open.get(session.secrets.session_id)
            r = None if held is None else held.r.pop(commitment, None)
        if r is None:
            raise VerificationError(
                f"draw: got {commitment}, want a commitment that was given out in this"
                " session and not used yet.",
                remedy="Name the one that came last, once; or none.",
            )
        return Draw.of(r, _signed(session, commitment))

    def _of(self, session: Session) -> _Open:
        session_id = session.secrets.session_id
        if (held := self._open.get(session_id)) is not None:
            return held
        now = self._clock()
        for ended in [i for i, o in self._open.items() if o.expires_at <= now]:
            del self._open[ended]
        while len(self._open) >= self._max_sessions:
            self._open.popitem(last=False)
        self._open[session_id] = held = _Open(session.expires_at)
        return held


def _signed(session: Session, commitment: Digest) -> Envelope:
    # Ed25519 signs alike every time: nothing but r need be kept.
    return commit_draw(
        session.keys.signing,
        Commitment(
            commitment=commitment,
            key_document=session.own.document.digest,
            evidence_nonce=session.own.nonce.hex(),
        ),
    )
