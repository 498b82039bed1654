"""The entry's evidence: whom the caller talks to, before it says anything."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import datetime, timedelta

from bentoml_secure.attestation.evidence import AttestationResult, Endorsements
from bentoml_secure.attestation.key_document import KeyDocument, Role
from bentoml_secure.attestation.reference_values import References, compare_reference
from bentoml_secure.client.draws import Commitments
from bentoml_secure.client.exchange import Exchange, Reply, post_json
from bentoml_secure.client.steps import Steps
from bentoml_secure.digest import Digest
from bentoml_secure.errors import AttestationError, Finding, PolicyRejected
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.session.handshake import Initiator
from bentoml_secure.session.identity import caller_keys
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Session, Shown
from bentoml_secure.session.messages import MAX_MESSAGE_BYTES

HELLO = "/bsec/v1/session/hello"
FINISH = "/bsec/v1/session/finish"

# The entry puts evidence into receipts for half of its maximum age; asked for anew at
# a quarter, what a call relies on cannot age out while the call is served.
_RENEWALS_PER_AGE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedEntry:
    """An entry that has shown acceptable evidence over the caller's nonce.

    Attributes:
        document: Its key document.
        nonce: 32 bytes, drawn by the caller.
        result: Of the appraisal.
        session: Seals what is said to it.
        commitments: To draws, that it has given out in the session.
        renew_at: The caller's clock. After that it is asked again.
    """

    document: KeyDocument
    nonce: bytes
    result: AttestationResult
    session: Session
    commitments: Commitments
    renew_at: datetime


def session_flow(
    trust: Trust,
    *,
    clock: Callable[[], datetime],
    random_bytes: Callable[[int], bytes],
    steps: Steps,
    pin: Digest | None = None,
    endorsements: Endorsements = (),
) -> Generator[Exchange, Reply, AttestedEntry]:
    """Have the entry show evidence over a fresh nonce, and open a session with it.

    Args:
        trust: The caller's.
        clock: The caller's.
        random_bytes: Draws the nonce and the session's master secret.
        steps: Told of each step.
        pin: Digest of the only key document accepted, or None.
        endorsements: The caller's own, beside those that the entry shows.

    Raises:
        MalformedInputError: What came back does not parse.
        AttestationError: Evidence that is not authentic.
        PolicyRejected: Evidence, role, plan, package or configuration that the trust
            file does not accept; ``findings`` lists all.
        VerificationError: The handshake does not hold.
        UnavailableError: The entry does not answer.
    """
    max_age, now = trust.policy.max_age_seconds, clock()
    age = timedelta(seconds=max_age)
    initiator = Initiator(
        caller_keys(clock, age),
        max_age_seconds=max_age,
        clock=clock,
        random_bytes=random_bytes,
    )
    with steps.doing("ask the entry for evidence over a fresh nonce"):
        offered = yield from post_json(
            HELLO, initiator.hello(), max_bytes=MAX_MESSAGE_BYTES
        )
    with steps.doing("judge its evidence, configuration, plan and package"):
        initiator.read_offer(
            offered, lambda shown: _judge(shown, trust, now, pin, endorsements)
        )
    with steps.doing("open a session with the keys that the evidence binds"):
        confirmed = yield from post_json(
            FINISH, initiator.finish(None), max_bytes=MAX_MESSAGE_BYTES
        )
        session = initiator.conclude(confirmed)
    document, result = session.peer.document, session.result
    if result is None:
        raise AttestationError("entry: a session without evidence")
    commitments = Commitments(document, session.peer.nonce)
    if session.draw is not None:
        commitments.add(session.draw)
    return AttestedEntry(
        document=document,
        nonce=session.peer.nonce,
        result=result,
        session=session,
        commitments=commitments,
        renew_at=min(
            now + age / _RENEWALS_PER_AGE, result.expires_at, document.not_after
        ),
    )


def _judge(
    shown: Shown,
    trust: Trust,
    now: datetime,
    pin: Digest | None,
    endorsements: Endorsements,
) -> AttestationResult:
    document = shown.document
    if pin is not None and document.digest != pin:
        raise PolicyRejected(
            f"entry {document.service!r} shows other keys than those pinned",
            [Finding("key_document", document.digest, pin)],
        )
    result = judge(shown, trust.policy, now=now, endorsements=endorsements)
    if findings := _document_findings(document, trust):
        raise PolicyRejected(
            f"entry {document.service!r} is authentic but not the one trusted", findings
        )
    return result


def _document_findings(document: KeyDocument, trust: Trust) -> list[Finding]:
    findings = []
    if document.role is not Role.ENTRY:
        findings.append(Finding("role", document.role, Role.ENTRY))
    listed: tuple[tuple[str, str | None, References], ...] = (
        ("plan", document.plan, trust.plan_digests),
        ("config_digest", document.config_digest, trust.config_digests),
        ("package", document.package, trust.package_digests),
    )
    for name, got, references in listed:
        # What the trust file leaves unchecked, the verdict on the receipt shows.
        findings += compare_reference(name, str(got), references).findings
    return findings
