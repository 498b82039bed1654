"""The keys of this process and the evidence that binds them.

Keys live in memory only. A key document is made anew before it ends; evidence is made
per nonce, by the attester that the process was configured with.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.attestation.key_document import (
    BOOT_ID_BYTES,
    KeyDocument,
    Role,
    package_digest,
    report_data,
)
from bentoml_secure.attestation.roles import Attester
from bentoml_secure.digest import Digest
from bentoml_secure.signing import SigningKey
from bentoml_secure.statements import utc_now

KEY_LIFETIME = timedelta(days=7)
RENEW_BEFORE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Keys:
    """A signing key and the document that announces it."""

    signing: SigningKey
    document: KeyDocument
    digest: Digest


class Identity:
    """Who this process is: role, service, segment, plan, configuration, keys."""

    def __init__(
        self,
        attester: Attester,
        *,
        role: Role,
        service: str,
        segment: Digest | None,
        plan: Digest,
        config_digest: Digest,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._attester = attester
        self._role = role
        self._service = service
        self._segment = segment
        self._plan = plan
        self._config_digest = config_digest
        self._clock = clock
        self._boot_id = secrets.token_hex(BOOT_ID_BYTES)
        self._keys = self._make_keys()

    @property
    def keys(self) -> Keys:
        """The keys in force, renewed a day before their document ends."""
        if self._clock() > self._keys.document.not_after - RENEW_BEFORE:
            self._keys = self._make_keys()
        return self._keys

    def attest(self, nonce: bytes, keys: Keys) -> EvidenceRecord:
        """Return fresh evidence that binds ``keys`` to ``nonce``.

        Args:
            nonce: 32 bytes, drawn by who asks.
            keys: This identity's.

        Raises:
            UnavailableError: The attester's device does not answer.
        """
        evidence = self._attester.attest(report_data(nonce, keys.document))
        return EvidenceRecord(evidence=evidence)

    def _make_keys(self) -> Keys:
        signing = SigningKey.generate()
        document = KeyDocument(
            role=self._role,
            service=self._service,
            segment=self._segment,
            plan=self._plan,
            package=package_digest(),
            config_digest=self._config_digest,
            hpke=(),
            ed25519=signing.public.raw.hex(),
            platform=self._attester.kind,
            boot_id=self._boot_id,
            not_after=(self._clock() + KEY_LIFETIME).replace(microsecond=0),
        )
        return Keys(signing, document, document.digest)
