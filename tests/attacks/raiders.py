"""An attacker with a session: an attested caller whose inside has been taken over.

It runs the released package with the deployment's configuration, under evidence that
verifies: nothing before the session stops it, and what it seals reaches the parsers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bentoml_secure.attestation.appraisal import parse_policy
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.attestation.roles import Attester
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.digest import Digest, parse_json
from bentoml_secure.errors import SecureError
from bentoml_secure.scenario import Configuration, parse_scenarios
from bentoml_secure.serving.sealed import INFER
from bentoml_secure.session.bodies import SEALED_TYPE, SealedCall, Whole
from bentoml_secure.session.handshake import Initiator
from bentoml_secure.session.identity import Identity, Keys, caller_keys
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Session
from bentoml_secure.split.plan import load_plan
from bentoml_secure.statements import utc_now
from tests.attacks import raw
from tests.attacks.targets import SERVICE
from tests.harness import Project

HELLO, FINISH = "/bsec/v1/session/hello", "/bsec/v1/session/finish"
INFER_PATH = "/bsec/v1/infer"
SEALED = [("Content-Type", SEALED_TYPE)]
JSON = [("Content-Type", "application/json")]


def configuration(project: Project) -> Configuration:
    """Return the configuration of the deployment under attack."""
    plan = load_plan(project.plan)
    policy = parse_policy((project.dev_root / "policy.toml").read_bytes())
    scenarios = parse_scenarios((project.folder / "attacked.toml").read_bytes())
    return Configuration(
        service=SERVICE,
        replicas=3,
        segments=len(plan.segments),
        scenarios=scenarios,
        policy=policy.to_json(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Raider:
    """Who can attest itself under a project's development root.

    Attributes:
        project: Whose root and configuration it has.
        identity: What it shows.
    """

    project: Project
    identity: Identity

    @classmethod
    def of(
        cls,
        project: Project,
        *,
        role: Role = Role.ENTRY,
        service: str = SERVICE,
        segment: Digest | None = None,
        config_digest: Digest | None = None,
        plan: Digest | None = None,
        attester: Attester | None = None,
    ) -> Raider:
        """Return a raider that shows a key document, by evidence, of its choice."""
        identity = Identity(
            attester or SimulatedAttester.from_folder(project.dev_root, clock=utc_now),
            role=role,
            service=service,
            segment=segment,
            plan=plan or load_plan(project.plan).digest,
            config_digest=config_digest or configuration(project).digest,
        )
        return cls(project=project, identity=identity)

    def begin(self, keys: Keys | None = None) -> Initiator:
        """Return the caller's end of a handshake."""
        return Initiator(keys or self.identity.keys, max_age_seconds=300, clock=utc_now)

    def offer(self, url: str, initiator: Initiator) -> Any:
        """Send message (a); return the offer, judged by the root alone."""
        said = raw.post(url, HELLO, json.dumps(initiator.hello()).encode(), JSON)
        assert said.status == 200, said
        policy = parse_policy((self.project.dev_root / "policy.toml").read_bytes())
        message = parse_json(said.body, what="offer", max_bytes=1 << 22)
        return initiator.read_offer(
            message, lambda shown: judge(shown, policy, now=utc_now())
        )

    def finish(self, url: str, message: Any) -> raw.Said:
        """Send message (c)."""
        return raw.post(url, FINISH, json.dumps(message).encode(), JSON)

    def session(self, url: str) -> Session:
        """Open a session as what it shows."""
        initiator = self.begin()
        offer = self.offer(url, initiator)
        record = self.identity.attest(offer.nonce, self.identity.keys)
        said = self.finish(url, initiator.finish(record))
        assert said.status == 200, said
        message = parse_json(said.body, what="confirm", max_bytes=1 << 20)
        return initiator.conclude(message)

    def client_session(self, url: str) -> Session:
        """Open a session as a client without evidence."""
        initiator = self.begin(caller_keys(utc_now, timedelta(minutes=5)))
        self.offer(url, initiator)
        said = self.finish(url, initiator.finish(None))
        assert said.status == 200, said
        message = parse_json(said.body, what="confirm", max_bytes=1 << 20)
        return initiator.conclude(message)


@dataclass(frozen=True, slots=True)
class Opened:
    """An answer, opened where it was sealed."""

    status: int
    body: bytes
    was_sealed: bool

    @property
    def error(self) -> dict[str, Any]:
        """The error of a refusal."""
        document = parse_json(self.body, what="answer", max_bytes=1 << 20)
        found: dict[str, Any] = document["error"]
        return found


def new_call(
    session: Session, operation: str = INFER, request_id: bytes | None = bytes(16)
) -> SealedCall:
    """Return a new exchange in a session."""
    return SealedCall.begin(session, operation, request_id)


def sealed(call: SealedCall, message: bytes) -> bytes:
    """Return a request's body."""
    return b"".join(call.seal((message,), (len(message),)).pieces)


def opened(call: SealedCall, said: raw.Said) -> Opened:
    """Open what came back, or return it as it is."""
    whole: list[Whole] = []

    def begin(length: int) -> Whole:
        whole.append(Whole(length))
        return whole[0]

    try:
        opener = call.open(said.status, len(said.body), begin)
        opener.feed(said.body)
        opener.finish()
    except SecureError:
        return Opened(said.status, said.body, False)
    return Opened(said.status, whole[0].result(), True)


def ask(url: str, call: SealedCall, message: bytes, path: str = INFER_PATH) -> Opened:
    """Seal a message, send it, open the answer."""
    return opened(call, raw.post(url, path, sealed(call, message), SEALED))
