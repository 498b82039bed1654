"""A broker's door: an explicit list of paths, and nothing else is answered.

    POST /bsec/v1/session/hello    messages (a) and (b) of a handshake
    POST /bsec/v1/session/finish   messages (c) and (d)
    POST /bsec/v1/release          one release, sealed in such a session
    GET  /metrics                  Prometheus
    GET  /livez /readyz            BentoML's own

A refusal is status 403. In a session it is sealed, with every reason, and in the audit
log; before there is one it is plain, tells what was compared but not with what, and the
process's log has the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.evidence import AttestationResult, Endorsements
from bentoml_secure.errors import (
    Finding,
    MalformedInputError,
    PolicyRejected,
    UnavailableError,
    VerificationError,
)
from bentoml_secure.keys.broker import Asker, Broker
from bentoml_secure.keys.broker_policy import ROLES
from bentoml_secure.keys.release import RELEASE_PATH
from bentoml_secure.keys.release_messages import (
    MAX_MESSAGE_BYTES,
    OPERATION,
    ReleaseRequest,
)
from bentoml_secure.serving.asgi import (
    App,
    NotFoundError,
    Receive,
    Scope,
    Send,
    answer_listed,
    content_length,
    describe,
    header,
    read_body,
    send_json,
)
from bentoml_secure.serving.runner_app import BODY_SECONDS, HANDSHAKE, send_metrics
from bentoml_secure.serving.sealed import sealed_refusal, send_sealed
from bentoml_secure.session.bodies import (
    SEALED_TYPE,
    Answering,
    RequestOpener,
    SealedBody,
    Whole,
    sealed_cap,
)
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Shown
from bentoml_secure.session.responders import Responder, UnknownSessionError
from bentoml_secure.statements import utc_now

MAX_EXCHANGES = 16
"""Of one session: an asker needs one, and each leaves a line in the log."""

T = TypeVar("T")

logger = logging.getLogger("bentoml_secure")


def judge_asker(
    shown: Shown,
    policy: AppraisalPolicy,
    *,
    now: datetime,
    endorsements: Endorsements = (),
) -> AttestationResult:
    """Return what a broker accepts of a caller's evidence.

    Args:
        shown: By the caller.
        policy: The models' owner's.
        now: The time, with a time zone.
        endorsements: The broker's own, beside those that were shown.

    Raises:
        PolicyRejected: Nobody who has a use for weights, or evidence that is not
            acceptable.
        AttestationError: It is not authentic.
    """
    document = shown.document
    if document.role not in ROLES:
        wanted = " or ".join(ROLES)
        raise PolicyRejected(
            f"{document.role} {document.service}",
            [Finding("role", document.role, wanted)],
        )
    return judge(shown, policy, now=now, endorsements=endorsements)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerCore:
    """A broker and its sessions. Knows nothing of HTTP.

    Attributes:
        broker: Decides.
        responder: Its sessions.
        clock: The time, with a time zone.
    """

    broker: Broker
    responder: Responder
    clock: Callable[[], datetime] = utc_now

    def answer(self, message: bytes, answering: Answering) -> SealedBody:
        """Decide on one request, and seal the key. Blocks on the store.

        Args:
            message: What the asker sealed.
            answering: The exchange that it came in.

        Raises:
            SecureError: Refused, or the message is not of its form.
        """
        session = answering.served.session
        if session.result is None:
            raise VerificationError("release: the asker has no evidence")
        request = ReleaseRequest.from_bytes(message)
        asker = Asker(
            document=session.peer.document,
            result=session.result,
            exchange_id=answering.exchange_id.hex(),
        )
        released = self.broker.release(request, asker, now=self.clock())
        logger.info(
            "key of %s released to %s; log entry %s",
            released.segment,
            asker.document.service,
            released.audit,
        )
        body = released.to_bytes()
        return answering.seal(200, (body,), (len(body),))


class BrokerDoor:
    """ASGI middleware in front of a broker's BentoML app. Never raises.

    Args:
        app: What BentoML built; sees its own health paths only.
        core: Returns this process's broker, once it has started.
        body_seconds: How long a body may take to arrive, and a handshake's step.
    """

    def __init__(
        self,
        app: App,
        core: Callable[[], BrokerCore],
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app = app
        self._core = core
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection's request, or hand a health check on."""
        await answer_listed(
            self._app,
            scope,
            receive,
            send,
            route=self._route,
            describe_error=_describe,
        )

    async def _route(
        self, asked: tuple[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        if asked == ("POST", RELEASE_PATH):
            await self._release(scope, receive, send)
        elif asked in HANDSHAKE:
            step = HANDSHAKE[asked]
            document = await self._in_time(step(self._core().responder, receive))
            await send_json(send, 200, document)
        elif asked == ("GET", "/metrics"):
            await send_metrics(send)
        else:
            raise NotFoundError(f"{asked[0]} {asked[1][:100]}: no such path")

    async def _release(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        if header(headers, b"content-type") != SEALED_TYPE:
            raise MalformedInputError(f"content-type: want {SEALED_TYPE}")
        length = content_length(headers, max_bytes=sealed_cap(MAX_MESSAGE_BYTES))
        core, wholes = self._core(), list[Whole]()

        def begin(message_bytes: int) -> Whole:
            wholes.append(Whole(message_bytes))
            return wholes[0]

        opener = RequestOpener(core.responder, OPERATION, length, begin)
        try:
            await self._in_time(read_body(opener.feed, receive))
            answering = opener.finish()
            body = await asyncio.to_thread(core.answer, wholes[0].result(), answering)
        except Exception as error:
            if opener.answering is None:
                raise
            status, document = _describe(error)
            refusal = sealed_refusal(opener.answering, status, document)
            await send_sealed(send, status, refusal)
            return
        await send_sealed(send, 200, body)

    async def _in_time(self, step: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._body_seconds):
                return await step
        except TimeoutError as error:
            raise UnavailableError(
                f"broker: not done within {self._body_seconds:g} s"
            ) from error


def _describe(error: BaseException) -> tuple[int, dict[str, Any]]:
    status, document = describe(error)
    if isinstance(error, UnknownSessionError):
        return status, document
    if isinstance(error, PolicyRejected | VerificationError):
        # A handshake's was logged with what would be accepted.
        if not isinstance(error.__cause__, PolicyRejected):
            logger.warning("refused: %s", error)
        return 403, document
    return status, document
