"""Which key goes to whom: one segment's, to one attested process, once.

The session has verified the evidence and bound it to the key document. Here what both
say is compared with the owner's policy, all of it, and the outcome is in the log
before anything leaves:

    1. the evidence, again, against this policy: kind, measurement, age, machine
    2. the key document: role, plan, configuration, package, not ended
    3. the request: the segment is the asker's own, the key the one its files name, and
       not one that another role alone may have
    4. nothing of it revoked, the exchange not answered before
    5. the entry in the log, on disk; then the key
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bentoml_secure.attestation.appraisal import appraise
from bentoml_secure.attestation.checks import compare
from bentoml_secure.attestation.evidence import AttestationResult, format_seconds
from bentoml_secure.attestation.key_document import KeyDocument
from bentoml_secure.attestation.reference_values import (
    Unchecked,
    compare_reference,
    one_of,
)
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.digest import parse_hex
from bentoml_secure.errors import Finding, PolicyRejected
from bentoml_secure.keys.audit_log import AuditEntry, Event
from bentoml_secure.keys.broker_policy import BrokerPolicy
from bentoml_secure.keys.broker_store import BrokerStore, Revoked, StoredKey
from bentoml_secure.keys.release_messages import ReleasedKey, ReleaseRequest
from bentoml_secure.keys.wrapping_key import WrappingKey
from bentoml_secure.statements import EXCHANGE_ID_BYTES

_BY_SESSION = Unchecked("the session compared it when it began")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks, as a session knows it.

    Attributes:
        document: Its key document, which the evidence binds.
        result: What the evidence came to.
        exchange_id: Of this request, 16 bytes in hex; never used twice.
    """

    document: KeyDocument
    result: AttestationResult
    exchange_id: str


class Broker:
    """Decides on requests for keys and keeps account of them.

    Args:
        policy: The models' owner's.
        store: Keys, revocations, log.
        wrapping: What the store's keys are wrapped under.

    Raises:
        ConfigurationError: The store was made with another wrapping key.
    """

    def __init__(
        self, policy: BrokerPolicy, store: BrokerStore, wrapping: WrappingKey
    ) -> None:
        store.require_wrapping(wrapping)
        self._policy = policy
        self._store = store
        self._wrapping = wrapping

    def release(
        self, request: ReleaseRequest, asker: Asker, *, now: datetime
    ) -> ReleasedKey:
        """Return the key that was asked for, if the asker may have it.

        Args:
            request: From within the session.
            asker: Who the session is with.
            now: With a time zone.

        Raises:
            PolicyRejected: It may not; ``findings`` lists every reason, as does the
                log.
            CheckFailedError: The key in the store was edited.
            MalformedInputError: An exchange id out of its form.
            UnavailableError: The log cannot be written: then nothing is released.
        """
        parse_hex(asker.exchange_id, what="exchange id", length=EXCHANGE_ID_BYTES)
        with self._store.writing():
            stored = self._store.key(request.segment, request.key_id)
            findings = self._findings(request, asker, stored, now)
            about = _about(request, asker)
            if findings or stored is None:
                details = about | {"findings": [f.to_json() for f in findings]}
                self._store.append(Event.REFUSED, details, now=now)
            else:
                key = self._wrapping.unwrap(
                    stored.wrapped,
                    segment=stored.segment,
                    plan=stored.plan,
                    key_id=stored.key_id,
                    role=stored.role,
                )
                self._store.spend(asker.exchange_id)
                entry = self._store.append(Event.RELEASED, about, now=now)
        if findings or stored is None:
            who = f"{asker.document.role} {asker.document.service}"
            raise PolicyRejected(f"key of {request.segment} for {who}", findings)
        return ReleasedKey(segment=request.segment, key=key, audit=entry.digest)

    def audit(self) -> Sequence[AuditEntry]:
        """Return the log, its chain verified; see ``BrokerStore.audit``."""
        return self._store.audit()

    def _findings(
        self,
        request: ReleaseRequest,
        asker: Asker,
        stored: StoredKey | None,
        now: datetime,
    ) -> tuple[Finding, ...]:
        compared = (
            self._compare_evidence(asker.result, now)
            + self._compare_document(asker.document, now)
            + _compare_request(request, asker.document, stored)
            + self._compare_revocations(request, asker)
            + compare(
                "exchange_id",
                not self._store.is_spent(asker.exchange_id),
                got=f"{asker.exchange_id}, answered before",
                want="a new one",
            )
        )
        return compared.findings

    def _compare_evidence(self, result: AttestationResult, now: datetime) -> Comparison:
        until = format_seconds(result.expires_at)
        expired = compare(
            "session",
            result.expires_at > now,
            got=f"good until {until}",
            want=f"good after {format_seconds(now)}",
        )
        try:
            appraise(
                result.claims,
                self._policy.appraisal,
                report_data=_BY_SESSION,
                now=now,
                nonce_issued_at=None,
            )
        except PolicyRejected as rejection:
            return expired + Comparison(findings=rejection.findings)
        return expired

    def _compare_document(self, document: KeyDocument, now: datetime) -> Comparison:
        until = format_seconds(document.not_after)
        compared = compare(
            "not_after",
            document.not_after > now,
            got=until,
            want=f"after {format_seconds(now)}",
        )
        model = self._policy.models.get(document.plan) if document.plan else None
        known = one_of(tuple(self._policy.models))
        compared += compare("plan", model is not None, got=document.plan, want=known)
        if model is None:
            return compared
        got, want = document.config_digest, model.config_digests
        return (
            compared
            + compare(
                "role",
                document.role in model.roles,
                got=document.role,
                want=one_of(model.roles),
            )
            + compare("config_digest", got in want, got=got, want=one_of(want))
            + compare_reference("package", document.package, model.packages)
        )

    def _compare_revocations(self, request: ReleaseRequest, asker: Asker) -> Comparison:
        document, platform = asker.document, asker.result.claims.platform_id
        segment, plan = document.segment or "none", document.plan or "none"
        keys, is_revoked = document.digest, self._store.is_revoked
        want = "not revoked"
        return (
            compare(
                "revoked_segment",
                not is_revoked(Revoked.SEGMENT, segment),
                got=segment,
                want=want,
            )
            + compare(
                "revoked_plan", not is_revoked(Revoked.PLAN, plan), got=plan, want=want
            )
            + compare(
                "revoked_platform",
                not is_revoked(Revoked.PLATFORM, platform),
                got=platform,
                want=want,
            )
            + compare(
                "revoked_key_document",
                not is_revoked(Revoked.KEY_DOCUMENT, keys),
                got=keys,
                want=want,
            )
            + compare(
                "revoked_key",
                not is_revoked(Revoked.KEY, request.key_id),
                got=request.key_id,
                want=want,
            )
        )


def _compare_request(
    request: ReleaseRequest, document: KeyDocument, stored: StoredKey | None
) -> Comparison:
    compared = compare(
        "segment",
        request.segment == document.segment,
        got=f"asked for {request.segment}",
        want=f"the asker's own, {document.segment}",
    ) + compare(
        "key",
        stored is not None,
        got=f"{request.key_id} of {request.segment}",
        want="one that this broker has",
    )
    if stored is None:
        return compared
    return (
        compared
        + compare(
            "key_plan",
            stored.plan == document.plan,
            got=document.plan,
            want=stored.plan,
        )
        + compare(
            "key_role",
            stored.role in (None, document.role),
            got=document.role,
            want=stored.role,
        )
    )


def _about(request: ReleaseRequest, asker: Asker) -> dict[str, Any]:
    document, claims = asker.document, asker.result.claims
    return {
        "segment": request.segment,
        "key_id": request.key_id,
        "exchange_id": asker.exchange_id,
        "key_document": document.digest,
        "role": document.role.value,
        "service": document.service,
        "plan": document.plan,
        "config_digest": document.config_digest,
        "package": document.package,
        "kind": claims.kind,
        "platform_id": claims.platform_id,
        "root": claims.root,
        "simulated": claims.simulated,
    }
