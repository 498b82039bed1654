"""Attestation that is somebody else's: real evidence about the wrong thing.

Whoever has the development root can attest anything; these show that evidence which
verifies is still refused when it is not about this replica of this deployment.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bentoml_secure.attestation.dev_chain import make_root
from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.attestation.key_document import KeyDocument, Role, report_data
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.digest import NONCE_BYTES, Digest
from bentoml_secure.serving.runner_app import attestation_document
from bentoml_secure.session.identity import Keys
from bentoml_secure.statements import utc_now
from bentoml_secure.testing.rogue.replica import Replica

Attestation = Callable[[Replica, bytes], Any]
"""From a replica and a nonce of 32 bytes to the JSON document it answers."""

_OTHER = Digest(f"sha256-jcs-v1:{'0' * 64}")


def _document(replica: Replica, nonce: bytes, document: KeyDocument) -> Any:
    """Attest any key document, with evidence that verifies."""
    keys = replica.core.identity.keys
    evidence = replica.attester.attest(report_data(nonce, document))
    return attestation_document(
        Keys(keys.signing, keys.hpke, document, document.digest),
        EvidenceRecord(evidence=evidence),
    )


def honest(replica: Replica, nonce: bytes) -> Any:
    """Return what an honest replica answers."""
    identity = replica.core.identity
    return attestation_document(identity.keys, identity.attest(nonce, identity.keys))


def _claiming(**changes: Any) -> Attestation:
    def attestation(replica: Replica, nonce: bytes) -> Any:
        document = replica.core.identity.keys.document
        return _document(replica, nonce, replace(document, **changes))

    return attestation


def _neighbour(replica: Replica, nonce: bytes) -> Any:
    return honest(replica.neighbour or replica, nonce)


def _neighbours_key(replica: Replica, nonce: bytes) -> Any:
    neighbour = replica.neighbour or replica
    answer = honest(replica, nonce)
    answer["key_document"]["ed25519"] = neighbour.core.identity.keys.document.ed25519
    return answer


def _ended(replica: Replica, nonce: bytes) -> Any:
    past = (utc_now() - timedelta(days=1)).replace(microsecond=0)
    return _claiming(not_after=past)(replica, nonce)


def _replayed(replica: Replica, nonce: bytes) -> Any:
    return honest(replica, secrets.token_bytes(NONCE_BYTES))


def _unknown_root(replica: Replica, nonce: bytes) -> Any:
    key = Ed25519PrivateKey.generate()
    now = utc_now()
    attester = SimulatedAttester(
        key,
        make_root(key, now=now),
        platform_id="rogue",
        measurement="0" * 64,
        clock=lambda: now,
    )
    identity = replica.core.identity
    evidence = attester.attest(report_data(nonce, identity.keys.document))
    return attestation_document(identity.keys, EvidenceRecord(evidence=evidence))


def _unknown_field(replica: Replica, nonce: bytes) -> Any:
    return {**honest(replica, nonce), "trusted": True}


def _too_long(replica: Replica, nonce: bytes) -> Any:
    return {**honest(replica, nonce), "endorsements": ["A" * (2 << 20)]}


def as_offer(shown: dict[str, Any]) -> dict[str, Any]:
    """Return what is shown as message (b) of a handshake."""
    shown = dict(shown)
    document = shown.pop("key_document")
    return {
        "version": 1,
        "nonce": secrets.token_hex(NONCE_BYTES),
        "key_document": document,
        "attestation": shown,
    }


ATTESTATIONS: Mapping[str, Attestation] = {
    "neighbour": _neighbour,
    "neighbours-key": _neighbours_key,
    "other-role": _claiming(role=Role.ENTRY, segment=None),
    "other-service": _claiming(service="Somebody"),
    "other-segment": _claiming(segment=_OTHER),
    "other-plan": _claiming(plan=_OTHER),
    "other-package": _claiming(package=_OTHER),
    "other-config": _claiming(config_digest=_OTHER),
    "ended": _ended,
    "replayed": _replayed,
    "unknown-root": _unknown_root,
    "unknown-field": _unknown_field,
    "too-long": _too_long,
}
