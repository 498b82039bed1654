"""Replicas and provers as the entry knows them: reachable how, attested when, by what.

A replica is believed only while the entry holds accepted evidence over a nonce that
the entry drew, about a key document that names exactly that service and segment,
this plan, this configuration and this package. Evidence is renewed before it is too
old, and at once when a replica shows another key: it was restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from bentoml_secure import metrics
from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.endorsement_folder import endorsed
from bentoml_secure.attestation.evidence import (
    AttestationResult,
    EvidenceRecord,
    VerifiedClaims,
)
from bentoml_secure.attestation.key_document import KeyDocument, Role
from bentoml_secure.errors import (
    AttestationError,
    Finding,
    SecureError,
    UnavailableError,
)
from bentoml_secure.receipts.receipt import Party
from bentoml_secure.scenario import Scenario
from bentoml_secure.serving.channel import Channel
from bentoml_secure.serving.placement import Candidate, count_voices
from bentoml_secure.session.handshake import Initiator
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.judging import judge, require_same_deployment
from bentoml_secure.session.keys import Session, Shown
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
_LONGEST_ENDING_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """Accepted evidence of one replica and what it binds."""

    document: KeyDocument
    key: VerificationKey
    record: EvidenceRecord
    result: AttestationResult
    party: Party
    session: Session
    nonce_issued_at: datetime


class Peer:
    """One replica of one segment, or its prover.

    Args:
        name: Of its service.
        index: Of its segment.
        segment: The plan's entry.
        channel: How it is reached.
        policy: Judges its evidence.
        own: The entry's identity: plan, configuration and package must be the same.
        max_age_seconds: Of evidence that is of use to every scenario; by default the
            policy's.
        role: That it must have by its key document.
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
        max_age_seconds: float | None = None,
        role: Role = Role.RUNNER,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.name = name
        self.index = index
        self.segment = segment
        self.channel = channel
        self._policy = policy
        self._own = own
        self._role = role
        most = policy.max_age_seconds
        self._useful_seconds = min(most, max_age_seconds or most)
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
            raise UnavailableError(f"evidence is {age:.0f} s old{self._why()}")
        # Evidence may say that it is older than its nonce, and keys end too.
        left = (attested.session.expires_at - self._clock()).total_seconds()
        short = (1 - FRESH_SHARE) * self._policy.max_age_seconds
        if left < min(short, _LONGEST_ENDING_SECONDS):
            self.renew()
            raise UnavailableError(f"its session is about to end{self._why()}")
        return attested

    def _why(self) -> str:
        return f"; asked for anew: {self._reason}" if self._reason else ""

    def require_young(self, attested: Attested, max_age_seconds: float) -> None:
        """Refuse an answer under evidence that aged out while it was made.

        Raises:
            UnavailableError: It is older than scenario or policy allow by now.
        """
        age = self._age(attested)
        if age > min(max_age_seconds, self._policy.max_age_seconds):
            raise UnavailableError(f"evidence is {age:.0f} s old by now")
        if attested.session.expires_at <= self._clock():
            raise UnavailableError("its session has ended by now")

    @property
    def claims(self) -> VerifiedClaims | None:
        """Of the accepted evidence held now, whatever its age; or None."""
        return self._attested.result.claims if self._attested else None

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
        """Open a session anew: evidence over a fresh nonce, judged, on both sides.

        Exchanges under the session held until then may still end.

        Raises:
            SecureError: No answer, or evidence that is not accepted. Accepted
                evidence held until then is given up if the replica is at fault.
        """
        try:
            async with asyncio.timeout(ATTEST_SECONDS):
                self._attested = await self._handshake()
                self._reason = ""
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

    async def _handshake(self) -> Attested:
        keys, label = self._own.keys, str(self.index)
        initiator = Initiator(
            keys, max_age_seconds=self._policy.max_age_seconds, clock=self._clock
        )
        offered = await self.channel.hello(initiator.hello())
        with metrics.verification("attestation", label):
            # Signatures of some kinds take milliseconds: not on the loop.
            offer = await asyncio.to_thread(initiator.read_offer, offered, self._judge)
        record = await asyncio.to_thread(self._own.attest, offer.nonce, keys)
        confirmed = await self.channel.finish(initiator.finish(record))
        with metrics.verification("session", label):
            session = initiator.conclude(confirmed)
        return self._attested_by(session)

    def _judge(self, shown: Shown) -> AttestationResult:
        document = shown.document
        require_same_deployment(document, self._own.keys.document, role=self._role)
        findings = [
            Finding(f"{self.name} key document {field}", str(got), str(want))
            for field, got, want in (
                ("service", document.service, self.name),
                ("segment", document.segment, self.segment.identity),
            )
            if got != want
        ]
        if findings:
            raise AttestationError("; ".join(map(str, findings)))
        return judge(
            shown,
            self._policy,
            now=self._clock(),
            endorsements=self._own.endorsements,
        )

    def _attested_by(self, session: Session) -> Attested:
        shown, result = session.peer, session.result
        if result is None or shown.record is None:
            raise AttestationError(f"{self.name}: a session without evidence")
        document = shown.document
        return Attested(
            document=document,
            key=VerificationKey.from_hex(document.ed25519),
            # In receipts, others judge it with what it was judged with here.
            record=endorsed(shown.record, self._own.endorsements),
            result=result,
            nonce_issued_at=shown.nonce_issued_at,
            session=session,
            party=Party(
                name=self.name,
                role=self._role.value,
                key_document=document.digest,
                evidence=shown.record.digest,
                evidence_nonce=shown.nonce.hex(),
                nonce_issued_at=format_time(shown.nonce_issued_at),
            ),
        )

    async def keep_attested(self) -> None:
        """Attest, and again before the evidence is too old, until cancelled."""
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
                async with asyncio.timeout(self._pause()):
                    await self._given_up.wait()

    def _pause(self) -> float:
        # Half: what is in use must not end while it is asked for anew.
        attested, half = self._attested, self._useful_seconds / 2
        if attested is not None:
            left = attested.session.expires_at - self._clock()
            half = min(half, max(left.total_seconds() / 2, RETRY_SECONDS))
        return min(half, _LONGEST_PAUSE_SECONDS)

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


async def ready(peers: Sequence[Sequence[Peer]], scenario: Scenario) -> bool:
    """Tell whether every segment could seat a quorum of replicas that answer.

    Bounded by one probe's time, however many replicas are stopped or hang.

    Args:
        peers: The replicas of each segment.
        scenario: Says how many, which kinds, and what is one voice.
    """
    age = scenario.evidence_max_age_seconds
    answers = await asyncio.gather(
        *(peer.is_ready(age) for replicas in peers for peer in replicas)
    )
    found = iter(answers)
    rows = [
        [
            Candidate(replica=peer.name, claims=peer.claims if next(found) else None)
            for peer in replicas
        ]
        for replicas in peers
    ]
    return all(
        count_voices(candidates, scenario, segment) >= scenario.quorum
        for segment, candidates in enumerate(rows)
    )
