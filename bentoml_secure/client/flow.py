"""The order of requests in a call, without I/O: a generator of exchanges.

1. POST /bsec/v1/session/hello and finish, unless there is a session still fresh: the
   entry's evidence is accepted, or nothing else is sent
2. POST the API, sealed, with a fresh nonce and root salt
3. GET the bundle; the entry waits a while for what the receipt still requires
4. judge the bundle against the trust file and the question
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Generator
from datetime import datetime
from typing import Any, TypeVar

from bentoml_secure.attestation.evidence import Endorsements
from bentoml_secure.client.answer import Announced, Answer, Question, judge
from bentoml_secure.client.entry import AttestedEntry, session_flow
from bentoml_secure.client.exchange import Exchange, Reply, require_success
from bentoml_secure.client.hop import SealedHop
from bentoml_secure.client.steps import Steps
from bentoml_secure.digest import NONCE_BYTES, SALT_BYTES, Digest, parse_json
from bentoml_secure.errors import (
    ConfigurationError,
    Finding,
    MalformedInputError,
    PolicyRejected,
)
from bentoml_secure.receipts.bundle import MAX_BUNDLE_BYTES, Bundle, parse_bundle
from bentoml_secure.receipts.draw import MAX_ENVELOPE_TEXT, Drawn
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.session.responders import UnknownSessionError

RECEIPTS = "/bsec/v1/receipts/"
JSON_TYPE = "application/json"
DRAW = "bsec-draw"
NEXT_DRAW = "bsec-next-draw"

_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_SCENARIO = re.compile(r"[!-~](?:[ -~]*[!-~])?")

T = TypeVar("T")
Flow = Generator[Exchange, Reply, T]

logger = logging.getLogger("bentoml_secure")


class Caller:
    """What both clients know between calls: the trust file and the entry's evidence.

    Args:
        trust: Judges everything that comes back.
        scenario: Asked for by name; None asks for the service's minimum.
        wait_seconds: How long the entry may wait for what a receipt still requires.
        max_body_bytes: Cap on a response's body.
        clock: The time, with a time zone.
        random_bytes: Draws nonces and salts.
        pin: Digest of the only key document of an entry that is accepted, or None.
        endorsements: Returns the caller's own, beside those that evidence comes with.
    """

    def __init__(
        self,
        trust: Trust,
        *,
        scenario: str | None,
        wait_seconds: float,
        max_body_bytes: int,
        clock: Callable[[], datetime],
        random_bytes: Callable[[int], bytes],
        pin: Digest | None = None,
        endorsements: Callable[[], Endorsements] = tuple,
    ) -> None:
        if scenario is not None and not _SCENARIO.fullmatch(scenario):
            raise ConfigurationError(
                f"scenario: got {scenario!r:.60}, want printable ASCII"
            )
        self._trust = trust
        self._scenario = scenario
        self._wait_seconds = wait_seconds
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._random_bytes = random_bytes
        self._pin = pin
        self._endorsements = endorsements
        self._entry: AttestedEntry | None = None
        self._has_warned = False

    def attest(self, steps: Steps | None = None) -> Flow[AttestedEntry]:
        """Have the entry show evidence and open a session, unless one is fresh.

        Args:
            steps: Told of each step.

        Raises:
            SecureError: As ``session_flow``.
        """
        # Another thread's call may forget it at any time.
        entry = self._entry
        if entry is None or entry.renew_at <= self._clock():
            # Not kept while it is asked for anew: a refusal leaves none.
            self._entry = None
            entry = yield from self._open(steps or Steps())
            self._entry = entry
        return entry

    def forget(self) -> None:
        """Have the entry show evidence anew before anything else is asked."""
        self._entry = None

    def _open(self, steps: Steps) -> Flow[AttestedEntry]:
        entry = yield from session_flow(
            self._trust,
            clock=self._clock,
            random_bytes=self._random_bytes,
            steps=steps,
            pin=self._pin,
            endorsements=self._endorsements(),
        )
        self._warn_simulated(entry.result.simulated)
        return entry

    def call(self, api: str, payload: Any) -> Flow[Answer]:
        """Ask with JSON; the answer's value is parsed JSON.

        Raises:
            SecureError: As ``call_raw``; MalformedInputError where the answer is not
                JSON.
        """
        try:
            body = json.dumps(payload, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"{api}: payload is not JSON: {error}") from error
        return (yield from self._ask(api, body, JSON_TYPE, self._read_json))

    def call_raw(self, api: str, body: bytes, content_type: str) -> Flow[Answer]:
        """Ask with bytes; the answer's value is bytes.

        Raises:
            PolicyRejected: The entry is not acceptable; nothing was sent.
            QuorumNotReached: The replicas did not agree.
            ReceiptError: The receipt does not hold, or is about something else.
            ConfigurationError: The service refuses the request as it is.
            UnavailableError: The service does not answer.
            MalformedInputError: What came back does not parse.
        """
        return (yield from self._ask(api, body, content_type, bytes))

    def confirm(self, answer: Answer) -> Flow[Answer]:
        """Fetch a bundle again and judge it anew, with what has come since.

        The entry waits a while for proofs too, where the receipt requires some.

        Raises:
            ReceiptError: It does not hold any more: what was required came too late,
                or not at all.
            UnavailableError: The service does not answer.
        """
        return (
            yield from self._judged(
                answer.question,
                answer.announced,
                Reply(status=answer.status, headers=(), body=answer.body),
                answer.answered_at,
                lambda _: answer.value,
                proofs=True,
            )
        )

    def _read_json(self, body: bytes) -> Any:
        return parse_json(body, what="answer", max_bytes=self._max_body_bytes)

    def _ask(
        self, api: str, body: bytes, content_type: str, read: Callable[[bytes], Any]
    ) -> Flow[Answer]:
        path = f"/{api.removeprefix('/')}"
        if not _PATH.fullmatch(path):
            raise ConfigurationError(
                f"api: got {api!r:.100}, want the path of an API without a query"
            )
        steps = Steps()
        try:
            try:
                return (
                    yield from self._ask_once(path, body, content_type, read, steps)
                )
            except UnknownSessionError:
                # It was restarted, or has new keys: followed once, by evidence anew.
                self._entry = None
                return (
                    yield from self._ask_once(path, body, content_type, read, steps)
                )
        except BaseException:
            # It may have been restarted, with other keys: ask for evidence anew.
            self._entry = None
            raise

    def _ask_once(
        self,
        path: str,
        body: bytes,
        content_type: str,
        read: Callable[[bytes], Any],
        steps: Steps,
    ) -> Flow[Answer]:
        entry, committed = yield from self._committed(steps)
        question = Question(
            path=path,
            body=body,
            scenario=self._scenario,
            entry=entry,
            committed=committed,
            nonce=self._random_bytes(NONCE_BYTES),
            root_salt=self._random_bytes(SALT_BYTES),
            asked_at=self._clock(),
        )
        with steps.doing("send the request sealed and open the answer"):
            sealed = SealedHop(entry.session, path, max_body_bytes=self._max_body_bytes)
            reply = yield sealed.request(self._headers(question, content_type), body)
            answered_at = self._clock()
            reply = sealed.open(reply)
            require_success(reply, path)
            _take_next(entry, reply)
            announced = Announced.of(reply)
        with steps.doing("fetch the receipt and judge it against the trust file"):
            return (
                yield from self._judged(question, announced, reply, answered_at, read)
            )

    def _committed(self, steps: Steps) -> Flow[tuple[AttestedEntry, Digest | None]]:
        """Return whom to ask, and its commitment to what it draws for this call."""
        entry = yield from self.attest(steps)
        committed = entry.commitments.take()
        if committed is None and self._trust.draw is Drawn.COMMITTED:
            # Calls at once have taken all there were: this one has its own session.
            entry = yield from self._open(steps)
            committed = entry.commitments.take()
            if committed is None:
                finding = Finding(
                    "draw", "no commitment", "one (the trust file's draw)"
                )
                raise PolicyRejected("entry: it commits to no draw", [finding])
        return entry, committed

    def _headers(self, question: Question, content_type: str) -> dict[str, str]:
        headers = {
            "content-type": content_type,
            "bsec-nonce": question.nonce.hex(),
            "bsec-root-salt": question.root_salt.hex(),
        }
        if question.committed is not None:
            headers[DRAW] = question.committed
        if question.scenario is not None:
            headers["bsec-scenario"] = question.scenario
        return headers

    def _judged(
        self,
        question: Question,
        announced: Announced,
        reply: Reply,
        answered_at: datetime,
        read: Callable[[bytes], Any],
        *,
        proofs: bool = False,
    ) -> Flow[Answer]:
        fetched = yield from self._fetch(announced.receipt_id, proofs=proofs)
        # Kept with them: so it can be judged again, offline and later.
        bundle = fetched.endorsed(self._endorsements())
        verdict = judge(
            bundle,
            question,
            announced,
            trust=self._trust,
            status=reply.status,
            body=reply.body,
            answered_at=answered_at,
            now=self._clock(),
        )
        self._warn_simulated(verdict.simulated)
        return Answer(
            value=read(reply.body),
            verdict=verdict,
            bundle=bundle,
            question=question,
            announced=announced,
            status=reply.status,
            body=reply.body,
            answered_at=answered_at,
        )

    def _fetch(self, receipt_id: str, *, proofs: bool) -> Flow[Bundle]:
        path = f"{RECEIPTS}{receipt_id}"
        # Votes come within moments; for proofs nobody waits who did not ask to.
        what = "&proofs=1" if proofs else ""
        reply = yield Exchange(
            method="GET",
            path=f"{path}?wait={self._wait_seconds:g}{what}",
            max_bytes=MAX_BUNDLE_BYTES,
            extra_seconds=self._wait_seconds,
            is_judged=True,
        )
        require_success(reply, path)
        try:
            return parse_bundle(reply.body)
        except MalformedInputError as error:
            raise MalformedInputError(f"{path}: {error}") from error

    def _warn_simulated(self, simulated: bool) -> None:
        if simulated and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "SIMULATED - NOT HARDWARE: the service shows simulated evidence, and"
                " the trust file accepts it; its receipts protect nothing"
            )


def _take_next(entry: AttestedEntry, reply: Reply) -> None:
    text = reply.header(NEXT_DRAW)
    if text is not None:
        entry.commitments.add(
            parse_json(text, what=NEXT_DRAW, max_bytes=MAX_ENVELOPE_TEXT)
        )
