"""Getting the key of one's own segment from a broker, at a process's start.

    1. a session: the broker's evidence is judged, then this process shows its own
    2. one sealed request in it; the key comes back sealed
    3. a broker that is not there is asked again until the patience ends; one that
       refuses is not

Blocking, for nothing can be served before. Nothing of a key is logged but its id.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from bentoml_secure.attestation.checks import require
from bentoml_secure.attestation.key_document import KeyDocument, Role
from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import (
    ConfigurationError,
    Finding,
    MalformedInputError,
    PolicyRejected,
    SecureError,
    UnavailableError,
)
from bentoml_secure.keys.http_calls import Answer, Call, Send, make_send, parse_url
from bentoml_secure.keys.release_messages import (
    MAX_MESSAGE_BYTES,
    OPERATION,
    ReleasedKey,
    ReleaseRequest,
)
from bentoml_secure.session.bodies import SEALED_TYPE, SealedCall, Whole, sealed_cap
from bentoml_secure.session.handshake import Initiator, Judge
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.keys import Session
from bentoml_secure.session.messages import (
    MAX_MESSAGE_BYTES as MAX_HANDSHAKE_BYTES,
)
from bentoml_secure.session.responders import UNKNOWN_SESSION
from bentoml_secure.statements import utc_now

HELLO_PATH = "/bsec/v1/session/hello"
FINISH_PATH = "/bsec/v1/session/finish"
RELEASE_PATH = "/bsec/v1/release"

PATIENCE_SECONDS = 300.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 10.0

_JSON_TYPE = "application/json"
_MAX_TOLD = 2000

logger = logging.getLogger("bentoml_secure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a broker that does not answer is asked again.

    Attributes:
        seconds: From the first attempt to the last.
        sleep: Waits so many seconds.
        monotonic: Seconds that never go back.
    """

    seconds: float = PATIENCE_SECONDS
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic


def require_broker(document: KeyDocument, own: KeyDocument) -> None:
    """Refuse a responder that is no broker of this release.

    What configuration it has is not compared: its policy names this deployment's.

    Args:
        document: The responder's.
        own: This process's.

    Raises:
        CheckFailedError: Another role or package.
    """
    got, want = document.role, Role.BROKER
    require("broker_role", got == want, got=got, want=want)
    same = document.package == own.package
    require("broker_package", same, got=document.package, want=own.package)


def fetch_segment_key(
    url: str,
    identity: Identity,
    judge: Judge,
    request: ReleaseRequest,
    *,
    max_age_seconds: float,
    send: Send | None = None,
    patience: Patience | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> ReleasedKey:
    """Return the key of one's own segment; blocks until it is there.

    Args:
        url: Of the broker. http will do: what is said is sealed.
        identity: This process's, shown to the broker: of the segment that is asked for.
        judge: Accepts the broker, or raises.
        request: The segment, and the key that its sealed files name.
        max_age_seconds: Of the broker's evidence.
        send: Makes the calls; over the network where left out.
        patience: With a broker that does not answer.
        clock: The time, with a time zone.

    Raises:
        PolicyRejected: The broker refuses, or its evidence is not acceptable.
        VerificationError: The broker, or its answer, is not authentic.
        MalformedInputError: An answer out of its form, or another key.
        ConfigurationError: No such address, or no broker there.
        UnavailableError: No key until the patience ended.
    """
    parse_url(url, what="broker", plain=True)
    desk = _Desk(
        url=url.rstrip("/"),
        identity=identity,
        judge=judge,
        max_age_seconds=max_age_seconds,
        send=send or make_send(max_answer_bytes=MAX_HANDSHAKE_BYTES, plain=True),
        clock=clock,
    )
    patience = patience or Patience()
    ends = patience.monotonic() + patience.seconds
    for pause in _pauses():
        try:
            released = desk.release(request)
        except UnavailableError as error:
            if patience.monotonic() + pause > ends:
                raise UnavailableError(
                    f"broker {url}: no key within {patience.seconds:g} s: {error}"
                ) from error
            logger.warning("broker %s: %s; again in %g s", url, error, pause)
        else:
            break
        patience.sleep(pause)
    logger.info(
        "broker %s: key %s; its log has it under %s",
        url,
        released.key.key_id,
        released.audit,
    )
    return released


def _pauses() -> Iterator[float]:
    for doublings in itertools.count():
        yield min(
            FIRST_PAUSE_SECONDS * 2.0 ** min(doublings, 16), LONGEST_PAUSE_SECONDS
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """One broker, as this process asks it."""

    url: str
    identity: Identity
    judge: Judge
    max_age_seconds: float
    send: Send
    clock: Callable[[], datetime]

    def release(self, request: ReleaseRequest) -> ReleasedKey:
        """Ask once, in a session of its own."""
        call = SealedCall.begin(self._open_session(), OPERATION)
        message = request.to_bytes()
        body = b"".join(call.seal((message,), (len(message),)).pieces)
        answer = self._post(RELEASE_PATH, SEALED_TYPE, body)
        if _content_type(answer) == SEALED_TYPE:
            opened = _open(call, answer)
            if answer.status != 200:
                raise _refusal(self.url, answer.status, opened)
            return ReleasedKey.from_bytes(opened, request=request)
        if answer.status != 200:
            raise _refusal(self.url, answer.status, answer.body)
        raise MalformedInputError(f"broker {self.url}: answers unsealed")

    def _open_session(self) -> Session:
        keys = self.identity.keys
        initiator = Initiator(
            keys, max_age_seconds=self.max_age_seconds, clock=self.clock
        )
        offer = initiator.read_offer(
            self._say(HELLO_PATH, initiator.hello()), self.judge
        )
        record = self.identity.attest(offer.nonce, keys)
        return initiator.conclude(self._say(FINISH_PATH, initiator.finish(record)))

    def _say(self, path: str, message: dict[str, object]) -> object:
        answer = self._post(path, _JSON_TYPE, canonical_json(message))
        if answer.status != 200:
            raise _refusal(self.url, answer.status, answer.body)
        return parse_json(
            answer.body, what="broker's answer", max_bytes=MAX_HANDSHAKE_BYTES
        )

    def _post(self, path: str, content_type: str, body: bytes) -> Answer:
        headers = {"Content-Type": content_type}
        return self.send(
            Call(method="POST", url=f"{self.url}{path}", headers=headers, body=body)
        )


def _content_type(answer: Answer) -> str | None:
    values = [value for name, value in answer.headers if name == "content-type"]
    return values[0] if len(values) == 1 else None


def _open(call: SealedCall, answer: Answer) -> bytes:
    wholes: list[Whole] = []

    def begin(length: int) -> Whole:
        wholes.append(Whole(length))
        return wholes[0]

    length = len(answer.body)
    if length > sealed_cap(MAX_MESSAGE_BYTES):
        raise MalformedInputError(f"broker's answer: got {length} sealed bytes")
    opener = call.open(answer.status, length, begin)
    opener.feed(answer.body)
    opener.finish()
    return wholes[0].result()


def _refusal(url: str, status: int, body: bytes) -> SecureError:
    code, message = _told(body)
    said = f"broker {url}: status {status}: {message!r:.{_MAX_TOLD}}"
    # A proxy in front of a broker that is down answers for it, in its own form.
    if status == 429 or status >= 500 or code == UNKNOWN_SESSION:
        return UnavailableError(said)
    if status == 403:
        finding = Finding("broker", f"{message!r:.{_MAX_TOLD}}", "the key")
        return PolicyRejected(f"broker {url} refuses", [finding])
    return ConfigurationError(
        f"{said}.", remedy="Is a broker of this release at that address?"
    )


def _told(body: bytes) -> tuple[str, str]:
    """Return code and message of an error, as far as the body tells them."""
    try:
        document = parse_json(body, what="error", max_bytes=MAX_HANDSHAKE_BYTES)
    except MalformedInputError:
        return "", body[:_MAX_TOLD].decode("utf-8", "replace")
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return "", body[:_MAX_TOLD].decode("utf-8", "replace")
    return str(error.get("code")), str(error.get("message"))
