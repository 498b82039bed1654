"""The replicas as the entry knows them: reachable how, attested when, by what.

A replica is believed only while the entry holds accepted evidence over a nonce that
the entry drew, about a key document that names exactly that service and segment,
this plan, this configuration and this package. Evidence is renewed before it is too
old, and at once when a replica shows another key: it was restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from bentoml_secure import metrics
from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.evidence import (
    AttestationResult,
    EvidenceRecord,
)
from bentoml_secure.attestation.key_document import KeyDocument, Role
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.digest import NONCE_BYTES
from bentoml_secure.errors import (
    AttestationError,
    Finding,
    MalformedInputError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.receipts.receipt import RUNNER, Party
from bentoml_secure.serving.channel import Channel
from bentoml_secure.session.identity import Identity
from bentoml_secure.signing import VerificationKey
from bentoml_secure.split.plan import Segment
from bentoml_secure.statements import format_time, utc_now

logger = logging.getLogger("bentoml_secure")

ATTEST_SECONDS = 5.0
RETRY_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 3600.0
PROBE_SECONDS = 1.0
# A receipt is judged at its issue: evidence must not age out while the request runs.
FRESH_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """Accepted evidence of one replica and what it binds."""

    document: KeyDocument
    key: VerificationKey
    record: EvidenceRecord
    result: AttestationResult
    party: Party
    nonce_issued_at: datetime


def parse_attestation(answer: object) -> tuple[KeyDocument, EvidenceRecord]:
    """Parse the answer to a nonce: a key document and a record of its evidence.

    Raises:
        MalformedInputError: A field is missing, unknown or of another form.
    """
    if not isinstance(answer, dict) or "key_document" not in answer:
        raise MalformedInputError(
            "attest answer: want key_document, evidence and endorsements"
        )
    record = {name: answer[name] for name in answer if name != "key_document"}
    return (
        KeyDocument.from_json(answer["key_document"]),
        EvidenceRecord.from_json(record),
    )


class Peer:
    """One replica of one segment.

    Args:
        name: Of its service.
        index: Of its segment.
        segment: The plan's entry.
        channel: How it is reached.
        policy: Judges its evidence.
        own: The entry's identity: plan, configuration and package must be the same.
        clock: For nonces and ages.
    """

    def __init__(
        self,
        name: str,
        index: int,
        segment: Segment,
        channel: Channel,
        *,
        policy: AppraisalPolicy,
        own: Identity,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.name = name
        self.index = index
        self.segment = segment
        self.channel = channel
        self._policy = policy
        self._own = own
        self._clock = clock
        self._attested: Attested | None = None
        self._reason = "not attested yet"
        self._renewing: asyncio.Task[None] | None = None
        self._given_up = asyncio.Event()

    def require(self, max_age_seconds: float) -> Attested:
        """Return accepted evidence no older than a scenario allows.

        Raises:
            UnavailableError: There is none; ``keep_attested`` goes on asking.
        """
        attested = self._attested
        if attested is None:
            raise UnavailableError(f"not attested: {self._reason}")
        age = self._age(attested)
        if age > FRESH_SHARE * min(max_age_seconds, self._policy.max_age_seconds):
            self.renew()
            raise UnavailableError(f"evidence is {age:.0f} s old")
        return attested

    def _age(self, attested: Attested) -> float:
        return (self._clock() - attested.nonce_issued_at).total_seconds()

    def renew(self) -> None:
        """Start a new attestation, unless one is running."""
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        try:
            await self.attest()
        except SecureError as error:
            logger.warning("%s: attestation failed: %s", self.name, error)

    async def attest(self) -> None:
        """Ask for evidence over a fresh nonce and verify it.

        Raises:
            SecureError: No answer, or evidence that is not accepted. Accepted
                evidence held until then is given up if the replica is at fault.
        """
        nonce, drawn_at = secrets.token_bytes(NONCE_BYTES), self._clock()
        try:
            async with asyncio.timeout(ATTEST_SECONDS):
                answer = await self.channel.attest(nonce)
            with metrics.verification("attestation", str(self.index)):
                self._attested = self._verify(answer, nonce, drawn_at)
        except TimeoutError as error:
            self._hold_on(f"no evidence within {ATTEST_SECONDS:g} s")
            raise UnavailableError(f"{self.name}: {self._reason}") from error
        except UnavailableError as error:
            self._hold_on(str(error))
            raise
        except SecureError as error:
            self._give_up(str(error))
            raise
        metrics.set_attested(
            str(self.index), self.name, self._attested.result.kind, True
        )

    def _hold_on(self, reason: str) -> None:
        # Not reachable now: what it proved earlier still holds for its age.
        self._reason = reason
        held = self._attested
        if held is not None and self._age(held) > self._policy.max_age_seconds:
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        self._reason = reason
        if self._attested is not None:
            kind = self._attested.result.kind
            metrics.set_attested(str(self.index), self.name, kind, False)
        self._attested = None
        self._given_up.set()

    def _verify(self, answer: object, nonce: bytes, drawn_at: datetime) -> Attested:
        document, record = parse_attestation(answer)
        own = self._own.keys.document
        findings = [
            Finding(f"{self.name} key document {field}", str(got), str(want))
            for field, got, want in (
                ("role", document.role, Role.RUNNER),
                ("service", document.service, self.name),
                ("segment", document.segment, self.segment.identity),
                ("plan", document.plan, own.plan),
                ("config_digest", document.config_digest, own.config_digest),
                ("package", document.package, own.package),
            )
            if got != want
        ]
        if findings:
            raise AttestationError("; ".join(map(str, findings)))
        result = verify_key_document(
            document,
            record.evidence,
            record.endorsements,
            self._policy,
            nonce=nonce,
            now=self._clock(),
            nonce_issued_at=drawn_at,
            gpu=record.gpu,
        )
        return Attested(
            document=document,
            key=VerificationKey.from_hex(document.ed25519),
            record=record,
            result=result,
            nonce_issued_at=drawn_at,
            party=Party(
                name=self.name,
                role=RUNNER,
                key_document=document.digest,
                evidence=record.digest,
                evidence_nonce=nonce.hex(),
                nonce_issued_at=format_time(drawn_at),
            ),
        )

    async def keep_attested(self) -> None:
        """Attest, and again before the evidence is too old, until cancelled."""
        # Half of the age: what is in use must not age out while it is asked for anew.
        pause = min(self._policy.max_age_seconds / 2, _LONGEST_PAUSE_SECONDS)
        while True:
            try:
                await self.attest()
            except SecureError as error:
                logger.warning("%s: attestation failed: %s", self.name, error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            # A replica that is given up meanwhile may be itself again at any time.
            self._given_up.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._given_up.wait()

    async def is_ready(self, max_age_seconds: float) -> bool:
        """Tell within a second whether it is attested and answers at all."""
        try:
            self.require(max_age_seconds)
            async with asyncio.timeout(PROBE_SECONDS):
                await self.channel.probe()
        except (SecureError, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        """Stop renewing and give up the connection."""
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        await self.channel.close()


async def ready(
    peers: Sequence[Sequence[Peer]], *, quorum: int, max_age_seconds: float
) -> bool:
    """Tell whether every segment has a quorum of attested replicas that answer.

    Bounded by one probe's time, however many replicas are stopped or hang.
    """
    answers = await asyncio.gather(
        *(peer.is_ready(max_age_seconds) for replicas in peers for peer in replicas)
    )
    found = iter(answers)
    return all(sum(next(found) for _ in replicas) >= quorum for replicas in peers)
