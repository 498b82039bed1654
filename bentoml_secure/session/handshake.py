"""The two ends of a handshake. No I/O: each call takes a message or returns one.

    initiator                                      responder
    hello()                    -- (a) -->          offer(a, evidence)
    read_offer(b, verify)      <-- (b) --
    finish(own evidence)       -- (c) -->          accept(c, verify)
    conclude(d)                <-- (d) --

Every failure is a ``SecureError``, and the handshake is over: nothing is tried again
under the same nonces. See docs/session.md for what each step is there for.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from bentoml_secure.attestation.evidence import (
    AttestationResult,
    EvidenceRecord,
    format_seconds,
)
from bentoml_secure.attestation.key_document import KeyDocument, Role
from bentoml_secure.digest import NONCE_BYTES, canonical_json
from bentoml_secure.errors import (
    ConfigurationError,
    Finding,
    MalformedInputError,
    PolicyRejected,
    VerificationError,
)
from bentoml_secure.session.identity import Keys
from bentoml_secure.session.keys import Secrets, Session, Shown
from bentoml_secure.session.messages import (
    MASTER_BYTES,
    Confirm,
    Document,
    Finish,
    Hello,
    Offer,
    transcript,
)
from bentoml_secure.session.suites import choose, seal
from bentoml_secure.signing import VerificationKey

_INFO = b"bentoml-secure/session/v1/info"
_CALLER = b"bentoml-secure/session/v1/caller"
_RESPONDER = b"bentoml-secure/session/v1/responder"

RandomBytes = Callable[[int], bytes]

Judge = Callable[[Shown], AttestationResult | None]
"""Returns what was accepted (None: a client without evidence) or raises.

It must do nothing but judge. A caller's judge is asked before the responder has signed
anything: genuine evidence may be shown by whoever forwards it, and only the session
that ``conclude`` returns says that its owner is at the other end.
"""


def _info(
    hello: Hello, offer: Offer, caller: KeyDocument, responder_nonce: bytes, suite: str
) -> bytes:
    document = {
        "caller": caller.digest,
        "caller_nonce": hello.nonce.hex(),
        "caller_role": caller.role.value,
        "responder": offer.key_document.digest,
        "responder_nonce": responder_nonce.hex(),
        "responder_role": offer.key_document.role.value,
        "suite": suite,
        "suites": [name for name, _ in offer.key_document.hpke],
    }
    return _INFO + canonical_json(document)


class Initiator:
    """The caller's end of one handshake: each step once, in order.

    Args:
        keys: That the caller signs with: of its identity, or made for this session.
        max_age_seconds: Of the responder's evidence: the session ends with it.
        clock: The time, with a time zone.
        random_bytes: Draws nonce and master secret.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        max_age_seconds: float,
        clock: Callable[[], datetime],
        random_bytes: RandomBytes = secrets.token_bytes,
    ) -> None:
        self._keys = keys
        self._max_age = timedelta(seconds=max_age_seconds)
        self._clock = clock
        self._random_bytes = random_bytes
        self._drawn_at = clock()
        self._hello = Hello(nonce=random_bytes(NONCE_BYTES))
        self._offer: Offer | None = None
        self._peer: Shown | None = None
        self._own: Shown | None = None
        self._result: AttestationResult | None = None
        self._messages: list[Document] = []
        self._secrets: Secrets | None = None
        self._next: str | None = "read_offer"

    def _begin(self, step: str) -> None:
        # Nothing comes next until the step ends well.
        wanted, self._next = self._next, None
        if step != wanted:
            raise ConfigurationError(
                f"session handshake: {step}() now, want {wanted or 'nothing more'}.",
                remedy="Begin anew: nothing is tried again under the same nonces.",
            )

    def hello(self) -> Document:
        """Return message (a)."""
        return self._hello.to_json()

    def read_offer(self, message: object, judge: Judge) -> Offer:
        """Take in message (b): its evidence is judged before anything is sealed.

        Args:
            message: Parsed JSON, from outside.
            judge: Accepts the responder, or raises.

        Raises:
            MalformedInputError: Not an offer.
            ConfigurationError: An offer was read already.
            SecureError: From ``judge``.
        """
        self._begin("read_offer")
        offer = Offer.from_json(message)
        shown = Shown(
            document=offer.key_document,
            record=offer.record,
            nonce=self._hello.nonce,
            nonce_issued_at=self._drawn_at,
        )
        self._result = judge(shown)
        if self._result is None:
            raise VerificationError("session offer: the responder has no evidence")
        self._offer, self._peer = offer, shown
        self._next = "finish"
        return offer

    def finish(self, record: EvidenceRecord | None) -> Document:
        """Return message (c).

        Args:
            record: The caller's evidence over the offer's nonce; None for a client.

        Raises:
            MalformedInputError: No suite that is known here, or not a key of it.
            ConfigurationError: No offer was accepted, or it is finished already.
        """
        self._begin("finish")
        offer = self._accepted_offer()
        offered = dict(offer.key_document.hpke)
        suite = choose(offered)
        master = self._random_bytes(MASTER_BYTES)
        info = _info(self._hello, offer, self._keys.document, offer.nonce, suite)
        finish = Finish(
            nonce=offer.nonce,
            key_document=self._keys.document,
            record=record,
            suite=suite,
            sealed=seal(suite, bytes.fromhex(offered[suite]), master, info=info),
        )
        said = [self._hello.to_json(), offer.to_json()]
        self._own = Shown(
            document=self._keys.document,
            record=record,
            nonce=offer.nonce,
            nonce_issued_at=self._clock(),
        )
        signed = transcript(*said, finish.unsigned())
        signature = self._keys.signing.sign(_CALLER + signed)
        self._messages = [*said, {**finish.unsigned(), "signature": signature.hex()}]
        self._secrets = Secrets.derive(master, transcript(*self._messages))
        self._next = "conclude"
        return self._messages[-1]

    def conclude(self, message: object) -> Session:
        """Take in message (d) and return the session.

        Raises:
            MalformedInputError: Not a confirmation.
            VerificationError: Not by who made the offer, or not of this handshake.
            PolicyRejected: What the session rests on has ended meanwhile.
            ConfigurationError: Nothing was finished, or it is concluded already.
        """
        self._begin("conclude")
        confirm = Confirm.from_json(message)
        offer, derived = self._accepted_offer(), self._secrets
        if derived is None or not (self._result and self._own and self._peer):
            raise ConfigurationError("session handshake: nothing was finished.")
        said = transcript(*self._messages, confirm.unsigned())
        if not hmac.compare_digest(confirm.mac, derived.confirmation(said)):
            raise VerificationError(
                "session confirm: the responder does not know the master secret"
            )
        key = VerificationKey.from_hex(offer.key_document.ed25519)
        key.verify(confirm.signature, _RESPONDER + said)
        return Session(
            secrets=derived,
            keys=replace(self._keys, hpke=None),
            own=self._own,
            peer=self._peer,
            result=self._result,
            responder=offer.key_document,
            expires_at=_end(
                self._drawn_at + self._max_age,
                self._result.expires_at,
                offer.key_document.not_after,
                self._keys.document.not_after,
                now=self._clock(),
            ),
            draw=confirm.draw,
        )

    def _accepted_offer(self) -> Offer:
        if self._offer is None:
            raise ConfigurationError("session handshake: no offer was accepted.")
        return self._offer


def _end(*times: datetime, now: datetime) -> datetime:
    end = min(times)
    if end <= now:
        got, want = format_seconds(end), f"after {format_seconds(now)}"
        raise PolicyRejected(
            "session: it ends before it begins", [Finding("expires_at", got, want)]
        )
    return end


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A responder's half of a handshake, between messages (b) and (c)."""

    hello: Hello
    offer: Offer
    keys: Keys
    offered_at: datetime


def make_offer(
    hello: Hello, keys: Keys, record: EvidenceRecord, nonce: bytes, now: datetime
) -> Offered:
    """Answer message (a).

    Args:
        hello: Parsed.
        keys: The responder's, with HPKE keys.
        record: Its evidence over the hello's nonce.
        nonce: 32 fresh bytes, good for one ``accept``.
        now: The time.
    """
    offer = Offer(nonce=nonce, key_document=keys.document, record=record)
    return Offered(hello=hello, offer=offer, keys=keys, offered_at=now)


def accept(
    offered: Offered,
    finish: Finish,
    judge: Judge,
    *,
    max_age_seconds: float,
    now: datetime,
    draw: Callable[[Session], Document | None] | None = None,
) -> tuple[Session, Document]:
    """Take in message (c); return the session and message (d).

    Args:
        offered: What ``make_offer`` returned for the finish's nonce; used up.
        finish: Parsed.
        judge: Accepts the caller, or raises.
        max_age_seconds: Of evidence: the session ends with the older of both.
        now: The time.
        draw: From an entry: makes its signed commitment to the session's first draw,
            asked once the caller is accepted.

    Raises:
        VerificationError: A signature or the sealed secret does not hold, or less than
            the best suite was chosen.
        PolicyRejected: What the session rests on has ended already.
        SecureError: From ``judge``.
    """
    keys, offer, caller = offered.keys, offered.offer, finish.key_document
    said = [offered.hello.to_json(), offer.to_json()]
    # 1. Whoever signs holds the key that the document, and so the evidence, names.
    VerificationKey.from_hex(caller.ed25519).verify(
        finish.signature, _CALLER + transcript(*said, finish.unsigned())
    )
    # 2. The suite is the best that was offered: less would be a downgrade.
    offered_suites = dict(offer.key_document.hpke)
    if keys.hpke is None or finish.suite != choose(offered_suites):
        raise VerificationError(
            f"session finish suite: got {finish.suite}, want the best of"
            f" {', '.join(offered_suites)}"
        )
    # 3. Who it is, by evidence over this handshake's nonce.
    shown = Shown(
        document=caller,
        record=finish.record,
        nonce=offer.nonce,
        nonce_issued_at=offered.offered_at,
    )
    result = judge(shown)
    if result is None and caller.role is not Role.CLIENT:
        raise VerificationError(f"session finish: a {caller.role} without evidence")
    ends = [
        offered.offered_at + timedelta(seconds=max_age_seconds),
        keys.document.not_after,
        caller.not_after,
    ]
    expires_at = _end(*ends, *([] if result is None else [result.expires_at]), now=now)
    # 4. The master secret, sealed to this end, for this handshake.
    info = _info(offered.hello, offer, caller, offer.nonce, finish.suite)
    master = keys.hpke.open(finish.suite, finish.sealed, info=info)
    if len(master) != MASTER_BYTES:
        raise MalformedInputError("session finish: a master secret has 32 bytes")
    said.append(finish.to_json())
    derived = Secrets.derive(master, transcript(*said))
    own = Shown(
        document=keys.document,
        record=offer.record,
        nonce=offered.hello.nonce,
        nonce_issued_at=offered.offered_at,
    )
    session = Session(
        secrets=derived,
        keys=replace(keys, hpke=None),
        own=own,
        peer=shown,
        result=result,
        responder=keys.document,
        expires_at=expires_at,
    )
    # 5. Show that it arrived, under the attested key.
    confirm = Confirm(draw=draw(session) if draw is not None else None)
    signed = transcript(*said, confirm.unsigned())
    confirm = replace(
        confirm,
        mac=derived.confirmation(signed),
        signature=keys.signing.sign(_RESPONDER + signed),
    )
    return session, confirm.to_json()
