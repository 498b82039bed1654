"""The keys of this process and the evidence that binds them.

Keys live in memory only. A key document is made anew before it ends; evidence is made
per nonce, by the attester that the process was configured with.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from bentoml_secure.attestation.endorsement_folder import (
    EndorsementFolder,
    endorsed,
)
from bentoml_secure.attestation.evidence import Endorsements, EvidenceRecord
from bentoml_secure.attestation.key_document import (
    BOOT_ID_BYTES,
    KeyDocument,
    Role,
    gpu_nonce,
    package_digest,
    report_data,
)
from bentoml_secure.attestation.roles import Attester
from bentoml_secure.digest import Digest
from bentoml_secure.session.suites import HpkeKeys
from bentoml_secure.signing import SigningKey
from bentoml_secure.statements import utc_now

KEY_LIFETIME = timedelta(days=1)
# Where evidence is much younger than that: for clocks that differ.
_SPARE_SHARE = 1 / 8
_MOST_SPARE_SHARE = 1 / 2


@dataclass(frozen=True, slots=True)
class Keys:
    """A signing key, HPKE keys and the document that announces them.

    Only who answers handshakes has HPKE keys; a caller's are None.
    """

    signing: SigningKey
    hpke: HpkeKeys | None
    document: KeyDocument
    digest: Digest


class Identity:
    """Who this process is: role, service, segment, plan, configuration, keys.

    Args:
        attester: Makes the evidence.
        role: Of this process.
        service: Its name.
        segment: Identity of its segment; runners and provers have one.
        plan: Digest of its plan; brokers may have none.
        config_digest: Of its deployment.
        gpu: Makes evidence of the GPU beside, which the attester's covers.
        folder: Endorsements that go along with the evidence, and that the evidence of
            others is judged with, beside what they send.
        key_lifetime: How long keys are good for; new ones are made before that.
        evidence_age: Up to which evidence is used: so long before their end keys are
            replaced, that sessions end with their evidence and not with the keys; but
            keys are used for half of their life at least.
        clock: The time, with a time zone.
    """

    def __init__(
        self,
        attester: Attester,
        *,
        role: Role,
        service: str,
        segment: Digest | None,
        plan: Digest | None,
        config_digest: Digest,
        gpu: Attester | None = None,
        folder: EndorsementFolder | None = None,
        key_lifetime: timedelta = KEY_LIFETIME,
        evidence_age: timedelta = timedelta(0),
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._attester = attester
        self._gpu = gpu
        self._folder = folder
        self._role = role
        self._service = service
        self._segment = segment
        self._plan = plan
        self._config_digest = config_digest
        self._key_lifetime = key_lifetime
        self._used_for = key_lifetime - max(
            key_lifetime * _SPARE_SHARE,
            min(evidence_age, key_lifetime * _MOST_SPARE_SHARE),
        )
        self._clock = clock
        self._boot_id = secrets.token_hex(BOOT_ID_BYTES)
        self._lock = threading.Lock()
        self._keys = self._make_keys()
        self._renew_at = clock() + self._used_for

    @property
    def keys(self) -> Keys:
        """The keys in force, renewed before their document ends."""
        if self._clock() > self._renew_at:
            with self._lock:
                if self._clock() > self._renew_at:
                    self._keys = self._make_keys()
                    self._renew_at = self._clock() + self._used_for
        return self._keys

    @property
    def endorsements(self) -> Endorsements:
        """What this process knows of platforms itself, as of now."""
        return () if self._folder is None else self._folder.endorsements

    def attest(self, nonce: bytes, keys: Keys) -> EvidenceRecord:
        """Return fresh evidence that binds ``keys`` to ``nonce``; blocks on a device.

        Args:
            nonce: 32 bytes, drawn by who asks.
            keys: This identity's.

        Raises:
            UnavailableError: The attester's device does not answer.
        """
        gpu = None
        if self._gpu is not None:
            gpu = self._gpu.attest(gpu_nonce(nonce, keys.document))
        covered = report_data(nonce, keys.document, None if gpu is None else gpu.blob)
        made = EvidenceRecord(
            evidence=self._attester.attest(covered),
            endorsements=self._attester.endorsements,
            gpu=gpu,
        )
        return endorsed(made, self.endorsements)

    def _make_keys(self) -> Keys:
        signing, hpke = SigningKey.generate(), HpkeKeys.generate()
        document = KeyDocument(
            role=self._role,
            service=self._service,
            segment=self._segment,
            plan=self._plan,
            package=package_digest(),
            config_digest=self._config_digest,
            hpke=hpke.public,
            ed25519=signing.public.raw.hex(),
            platform=self._attester.kind,
            boot_id=self._boot_id,
            not_after=(self._clock() + self._key_lifetime).replace(microsecond=0),
        )
        return Keys(signing, hpke, document, document.digest)


def caller_keys(clock: Callable[[], datetime], lifetime: timedelta) -> Keys:
    """Return the keys of a caller without evidence: for one session, then forgotten.

    Args:
        clock: The time, with a time zone.
        lifetime: Of the session, at most.
    """
    signing = SigningKey.generate()
    document = KeyDocument(
        role=Role.CLIENT,
        service="client",
        segment=None,
        plan=None,
        package=package_digest(),
        config_digest=None,
        hpke=(),
        ed25519=signing.public.raw.hex(),
        platform=None,
        boot_id=secrets.token_hex(BOOT_ID_BYTES),
        not_after=(clock() + lifetime).replace(microsecond=0) + timedelta(seconds=1),
    )
    return Keys(signing, None, document, document.digest)
