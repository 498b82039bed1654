"""What a responder keeps: open handshakes, sessions, exchange ids that are used up.

All in this process's memory, all bounded: nothing outlives the keys. Evidence is dear
(a quote is tens of milliseconds of a device), so its making is rate-limited.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bentoml_secure.digest import NONCE_BYTES, Digest
from bentoml_secure.errors import (
    MalformedInputError,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.session.handshake import Judge, Offered, accept, make_offer
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.keys import Session
from bentoml_secure.session.messages import (
    MAX_MESSAGE_BYTES,
    Document,
    Finish,
    Hello,
)

HANDSHAKE_SECONDS = 60.0
MAX_HANDSHAKES = 1024
MAX_SESSIONS = 4096
MAX_EXCHANGES = 1 << 17
"""Of one session: the window of used ids has at most 16 MiB or so."""

QUOTES_PER_SECOND = 32.0
QUOTE_BURST = 128
MAX_WAITING = 8
"""Callers of one process that wait for its device at once."""

UNKNOWN_SESSION = "unknown-session"
"""The code of a plain refusal that means: make a new session."""


class UnknownSessionError(VerificationError):
    """A session that is not held here: it ended, or the process was restarted."""


class RateLimitedError(UnavailableError):
    """More evidence was asked for than this process makes."""


class TokenBucket:
    """Lets ``burst`` calls through at once, and ``per_second`` in the long run."""

    def __init__(
        self,
        per_second: float = QUOTES_PER_SECOND,
        burst: int = QUOTE_BURST,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._filled_at = clock()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Use one call up.

        Raises:
            RateLimitedError: None is left now.
        """
        with self._lock:
            now = self._clock()
            filled = self._tokens + (now - self._filled_at) * self._per_second
            self._tokens, self._filled_at = min(self._burst, filled), now
            if self._tokens < 1:
                raise RateLimitedError(
                    f"evidence: more than {self._per_second:g} a second asked for.",
                    remedy="Try again in a second; hold on to the session there is.",
                )
            self._tokens -= 1


@dataclass(slots=True)
class Served:
    """A session as its responder holds it, with the exchange ids that are used up."""

    session: Session
    max_exchanges: int
    _used: set[bytes] = field(default_factory=set, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def use(self, exchange_id: bytes) -> None:
        """Use an exchange id up, before anything is opened under it.

        Raises:
            VerificationError: It was used before: a replay.
            UnknownSessionError: The session has had all exchanges that it may have.
        """
        # Two threads that both look first would both find it unused.
        with self._lock:
            if exchange_id in self._used:
                raise VerificationError("session: this exchange id was used before")
            if len(self._used) >= self.max_exchanges:
                raise UnknownSessionError(
                    f"session: got more than {self.max_exchanges} exchanges.",
                    remedy="Make a new session.",
                )
            self._used.add(exchange_id)


class Responder:
    """Answers handshakes and holds the sessions that come of them.

    Args:
        identity: Whose keys and evidence are shown.
        judge: Accepts a caller, or raises.
        max_age_seconds: Of evidence; no session is older.
        clock: The time, with a time zone.
        quotes: Limits how much evidence is made.
        draw: From an entry: makes the first signed commitment of each session.
        max_sessions: Held at once; beyond that the oldest ends.
        max_exchanges: Of one session.
        max_finish_bytes: Of message (c): callers without evidence need little.
    """

    def __init__(
        self,
        identity: Identity,
        judge: Judge,
        *,
        max_age_seconds: float,
        clock: Callable[[], datetime],
        quotes: TokenBucket | None = None,
        draw: Callable[[Session], Document | None] | None = None,
        max_sessions: int = MAX_SESSIONS,
        max_exchanges: int = MAX_EXCHANGES,
        max_finish_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.max_finish_bytes = max_finish_bytes
        self.identity = identity
        self.quotes = quotes or TokenBucket()
        self._judge = judge
        self._max_age_seconds = max_age_seconds
        self._clock = clock
        self._draw = draw
        self._max_sessions = max_sessions
        self._max_exchanges = max_exchanges
        self._offered: OrderedDict[bytes, Offered] = OrderedDict()
        self._served: OrderedDict[bytes, Served] = OrderedDict()
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    def offer(self, message: object) -> Document:
        """Answer message (a) with (b). Blocks while the device makes evidence.

        Raises:
            MalformedInputError: Not a hello.
            RateLimitedError: Too much evidence was asked for.
            UnavailableError: The device does not answer.
        """
        hello = Hello.from_json(message)
        self.quotes.take()
        keys = self.identity.keys
        # Before the device is asked: a session is as old as its evidence at least.
        now = self._clock()
        # Who waits for a slow device holds a thread: beyond a few, nobody waits.
        if not self._waiting.acquire(blocking=False):
            raise RateLimitedError(
                f"evidence: {MAX_WAITING} callers wait for the device already.",
                remedy="Try again in a second; hold on to the session there is.",
            )
        try:
            record = self.identity.attest(hello.nonce, keys)
        finally:
            self._waiting.release()
        offered = make_offer(hello, keys, record, secrets.token_bytes(NONCE_BYTES), now)
        with self._lock:
            self._forget(now)
            self._offered[offered.offer.nonce] = offered
            while len(self._offered) > MAX_HANDSHAKES:
                self._offered.popitem(last=False)
        return offered.offer.to_json()

    def accept(self, message: object) -> Document:
        """Answer message (c) with (d), and hold the session.

        Raises:
            MalformedInputError: Not a finish, or of no handshake that is open here.
            SecureError: As ``handshake.accept``.
        """
        nonce, now = Finish.nonce_of(message), self._clock()
        # Popped first: a nonce is good for one attempt, whatever comes of it, and who
        # has none gets no work out of this process.
        with self._lock:
            offered = self._offered.pop(nonce, None)
        late = timedelta(seconds=HANDSHAKE_SECONDS)
        if offered is None or now - offered.offered_at > late:
            raise MalformedInputError(
                "session finish nonce: no handshake is open under it.",
                remedy="Begin anew: a nonce is good for one attempt, for a minute.",
            )
        session, confirm = accept(
            offered,
            Finish.from_json(message),
            self._judge,
            max_age_seconds=self._max_age_seconds,
            now=now,
            draw=self._draw,
        )
        self._hold(session)
        return confirm

    def _forget(self, now: datetime) -> None:
        """Let go of what has ended, and of the keys with it; under the lock."""
        late = now - timedelta(seconds=HANDSHAKE_SECONDS)
        for nonce in [n for n, o in self._offered.items() if o.offered_at < late]:
            del self._offered[nonce]
        for old in [k for k, s in self._served.items() if s.session.expires_at <= now]:
            del self._served[old]

    def _hold(self, session: Session) -> None:
        with self._lock:
            self._served[session.secrets.session_id] = Served(
                session, self._max_exchanges
            )
            while len(self._served) > self._max_sessions:
                self._served.popitem(last=False)

    def youngest(self, keys: Digest | None = None) -> Session | None:
        """Return the session that was opened last, of those that have not ended.

        Args:
            keys: Digest of the key document that this end showed in it; None for any.
        """
        with self._lock:
            sessions = [served.session for served in reversed(self._served.values())]
        now = self._clock()
        in_force = (session for session in sessions if session.expires_at > now)
        return next((s for s in in_force if keys in (None, s.keys.digest)), None)

    def find(self, session_id: bytes) -> Served:
        """Return a session that has not ended.

        Raises:
            UnknownSessionError: None is held under the id, or its evidence is too old.
        """
        served = self._served.get(session_id)
        if served is None:
            raise UnknownSessionError("session: none is held here under this id")
        if served.session.expires_at <= self._clock():
            with self._lock:
                self._served.pop(session_id, None)
            raise UnknownSessionError("session: it ended with the evidence under it")
        return served
