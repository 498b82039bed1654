"""Hosts that shake hands: real keys and evidence, a clock that moves, no network."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.dev_chain import make_root
from bentoml_secure.attestation.evidence import AttestationResult, EvidenceRecord
from bentoml_secure.attestation.key_document import KeyDocument, Role
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.digest import digest_bytes, digest_json
from bentoml_secure.errors import AttestationError
from bentoml_secure.session.handshake import Initiator, Judge
from bentoml_secure.session.identity import Identity, Keys, caller_keys
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Session, Shown
from bentoml_secure.session.responders import Responder, TokenBucket
from bentoml_secure.session.suites import CLASSIC
from bentoml_secure.testing.deployment import NOW, key_of

MAX_AGE = 300
SEGMENT = digest_json("segment 0")
OTHER_SEGMENT = digest_json("segment 1")

Message = dict[str, Any]
Alter = Callable[[Message], Message]


@dataclass(slots=True)
class Clock:
    """A clock that goes when it is told to."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@functools.cache
def root() -> bytes:
    return make_root(key_of("session root"), now=NOW - timedelta(days=1))


@functools.cache
def policy() -> AppraisalPolicy:
    return AppraisalPolicy.from_table(
        {
            "version": 1,
            "max_age_seconds": MAX_AGE,
            "allow": ["simulated"],
            "simulated": {
                "roots": [digest_bytes(root())],
                "measurement": {"unchecked": "tests change the code"},
            },
        }
    )


def travelled(message: Message) -> Message:
    """Return a message as the other end parses it."""
    parsed: Message = json.loads(json.dumps(message))
    return parsed


def unaltered(message: Message) -> Message:
    return message


@dataclass(slots=True)
class Ground:
    """One development root, one clock, hosts under both."""

    clock: Clock = field(default_factory=Clock)

    def identity(
        self,
        role: Role = Role.RUNNER,
        service: str = "Runner0",
        *,
        host: str = "host-a",
        segment: str | None = SEGMENT,
        suites: tuple[str, ...] | None = None,
        **options: Any,
    ) -> Identity:
        attester = SimulatedAttester(
            key_of("session root"),
            root(),
            platform_id=host,
            measurement="ab" * 32,
            clock=self.clock,
        )
        made = Identity(
            attester,
            role=role,
            service=service,
            segment=segment if role is Role.RUNNER else None,  # type: ignore[arg-type]
            plan=digest_json("plan"),
            config_digest=digest_json("configuration"),
            clock=self.clock,
            **options,
        )
        return made if suites is None else _Offering(made, suites)

    def entry(self, **options: Any) -> Identity:
        return self.identity(Role.ENTRY, "Entry", **options)

    def judge_runner(self, shown: Shown) -> AttestationResult:
        """Accept the one runner that callers here want, and nothing else."""
        got, want = _names(shown.document), (Role.RUNNER, "Runner0", SEGMENT)
        if got != want:
            raise AttestationError(f"peer: got {got}, want {want}")
        return judge(shown, policy(), now=self.clock())

    def judge_entry(self, shown: Shown) -> AttestationResult:
        """Accept an entry: as its callers do, and as runners do."""
        if shown.document.role is not Role.ENTRY:
            raise AttestationError(f"peer: got {shown.document.role}, want entry")
        return judge(shown, policy(), now=self.clock())

    def judge_anybody(self, shown: Shown) -> AttestationResult | None:
        """Accept clients without evidence, all others with it: as an entry does."""
        if shown.document.role is Role.CLIENT and shown.record is None:
            return None
        return judge(shown, policy(), now=self.clock())

    def responder(
        self, identity: Identity, judged: Judge | None = None, **options: Any
    ) -> Responder:
        options.setdefault("quotes", TokenBucket(1e9, 10**9))
        return Responder(
            identity,
            judged or self.judge_entry,
            max_age_seconds=MAX_AGE,
            clock=self.clock,
            **options,
        )

    def initiator(self, keys: Keys, **options: Any) -> Initiator:
        return Initiator(keys, max_age_seconds=MAX_AGE, clock=self.clock, **options)

    def client_keys(self) -> Keys:
        return caller_keys(self.clock, timedelta(seconds=MAX_AGE))

    def shake(
        self,
        caller: Identity,
        responder: Responder,
        judged: Judge | None = None,
        *,
        a: Alter = unaltered,
        b: Alter = unaltered,
        c: Alter = unaltered,
        d: Alter = unaltered,
    ) -> tuple[Session, Session]:
        """Return both ends of a session; somebody between may alter each message."""
        keys = caller.keys
        initiator = self.initiator(keys)
        offer = initiator.read_offer(
            b(travelled(responder.offer(a(travelled(initiator.hello()))))),
            judged or self.judge_runner,
        )
        said = initiator.finish(caller.attest(offer.nonce, keys))
        confirmed = responder.accept(c(travelled(said)))
        session = initiator.conclude(d(travelled(confirmed)))
        return session, responder.find(session.secrets.session_id).session

    def shake_as_client(
        self,
        responder: Responder,
        *,
        c: Alter = unaltered,
        d: Alter = unaltered,
        keys: Keys | None = None,
    ) -> tuple[Session, Session]:
        """Return both ends of a client's session with an entry."""
        initiator = self.initiator(keys or self.client_keys())
        initiator.read_offer(
            travelled(responder.offer(initiator.hello())), self.judge_entry
        )
        said = travelled(initiator.finish(None))
        session = initiator.conclude(d(travelled(responder.accept(c(said)))))
        return session, responder.find(session.secrets.session_id).session


def _names(document: KeyDocument) -> tuple[Role, str, str | None]:
    return document.role, document.service, document.segment


class _Offering(Identity):
    """An identity whose document lists some suites only."""

    def __init__(self, real: Identity, suites: tuple[str, ...]) -> None:
        self._real = real
        self._some = with_suites(real.keys, suites)

    @property
    def keys(self) -> Keys:
        return self._some

    def attest(self, nonce: bytes, keys: Keys) -> EvidenceRecord:
        return self._real.attest(nonce, keys)


def with_suites(keys: Keys, suites: tuple[str, ...]) -> Keys:
    """Return keys whose document lists these suites, with a classic key behind each."""
    own = dict(keys.document.hpke)
    listed = tuple(sorted((suite, own.get(suite, own[CLASSIC])) for suite in suites))
    return with_hpke(keys, listed)


def with_hpke(keys: Keys, hpke: tuple[tuple[str, str], ...]) -> Keys:
    document = dataclasses.replace(keys.document, hpke=hpke)
    return Keys(keys.signing, keys.hpke, document, document.digest)


def replaced(message: Mapping[str, Any], path: tuple[str, ...], value: Any) -> Message:
    """Return a copy with one field, named by its path, replaced."""
    copy = travelled(dict(message))
    node: Any = copy
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    return copy


def flipped(text: str, at: int = 0) -> str:
    """Return hex or base64 with one character changed to another of its alphabet."""
    other = "1" if text[at] == "0" else "0"
    return text[:at] + other + text[at + 1 :]
