"""The bundle: a receipt and all that it takes to judge it, offline.

    {"version": 1, "receipt": envelope, "attachments": [envelope, ...],
     "key_documents": [...], "evidence": [{"evidence", "endorsements"}, ...],
     "plan": plan.json, "scenario": {...}, "configuration": {...},
     "verification_keys": {"manifest": envelope, "segments": [...]}}

The last field is there where the deployment proves (``proofs.folder``).
Nothing in a bundle is trusted for being there: the receipt names each part by digest,
evidence binds key documents, and the caller's trust file says what to accept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bentoml_secure.attestation.endorsement_folder import endorsed
from bentoml_secure.attestation.evidence import Endorsements, EvidenceRecord
from bentoml_secure.attestation.key_document import KeyDocument
from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.receipts.receipt import MAX_PARTIES
from bentoml_secure.receipts.strict import fields, items, whole
from bentoml_secure.scenario import Scenario
from bentoml_secure.signing import Envelope, parse_envelope
from bentoml_secure.split.plan import Plan, parse_plan

MAX_BUNDLE_BYTES = 64 << 20
MAX_BUNDLE_ATTACHMENTS = 4096
"""One for each segment of each infer is a proof."""

_KEYS = "verification_keys"

_FIELDS = (
    "version",
    "receipt",
    "attachments",
    "key_documents",
    "evidence",
    "plan",
    "scenario",
    "configuration",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A receipt and all that it takes to judge it.

    Attributes:
        receipt: The signed receipt.
        attachments: What came later, each signed apart.
        key_documents: Of every party that the receipt names.
        evidence: Of every party that the receipt names.
        plan: That the receipt names.
        scenario: That the receipt names.
        configuration: Document of the configuration that the receipt names.
        verification_keys: Document of the manifest and keys that verify proofs, where
            the deployment proves. Its manifest is the one that the configuration names.
        own: One's own endorsements, for evidence that stands within attachments; no
            part of the document.
    """

    receipt: Envelope
    attachments: tuple[Envelope, ...] = ()
    key_documents: tuple[KeyDocument, ...]
    evidence: tuple[EvidenceRecord, ...]
    plan: Plan
    scenario: Scenario
    configuration: Mapping[str, Any]
    verification_keys: Mapping[str, Any] | None = None
    own: Endorsements = ()

    def endorsed(self, own: Endorsements) -> Bundle:
        """Return the bundle with one's own endorsements beside all of its evidence.

        The receipt names evidence by what its sender signed, and holds all the same.
        """
        evidence = tuple(endorsed(record, own) for record in self.evidence)
        return replace(self, evidence=evidence, own=(*self.own, *own))

    def to_json(self) -> dict[str, Any]:
        """Return the document that is sent and stored as a file."""
        document = {
            "version": 1,
            "receipt": self.receipt.to_json(),
            "attachments": [envelope.to_json() for envelope in self.attachments],
            "key_documents": [document.to_json() for document in self.key_documents],
            "evidence": [record.to_json() for record in self.evidence],
            "plan": self.plan.to_json(),
            "scenario": self.scenario.to_json(),
            "configuration": dict(self.configuration),
        }
        if self.verification_keys is not None:
            document[_KEYS] = dict(self.verification_keys)
        return document


def parse_bundle(data: bytes) -> Bundle:
    """Parse a bundle; nothing in it is verified here.

    Args:
        data: UTF-8 JSON of at most 64 MiB.

    Raises:
        MalformedInputError: A field missing, unknown, of another form or too long.
    """
    document = parse_json(data, what="bundle", max_bytes=MAX_BUNDLE_BYTES)
    proves = isinstance(document, dict) and _KEYS in document
    got = fields(document, (*_FIELDS, *([_KEYS] if proves else [])), what="bundle")
    whole(got["version"], what="bundle version", low=1, high=1)
    attachments = items(
        got["attachments"], what="bundle attachments", most=MAX_BUNDLE_ATTACHMENTS
    )
    documents = items(
        got["key_documents"], what="bundle key_documents", most=MAX_PARTIES
    )
    evidence = items(got["evidence"], what="bundle evidence", most=MAX_PARTIES)
    return Bundle(
        receipt=parse_envelope(got["receipt"], what="receipt"),
        attachments=tuple(
            parse_envelope(envelope, what=f"attachment {index}")
            for index, envelope in enumerate(attachments)
        ),
        key_documents=tuple(map(KeyDocument.from_json, documents)),
        evidence=tuple(map(EvidenceRecord.from_json, evidence)),
        plan=parse_plan(canonical_json(got["plan"])),
        scenario=scenario_from_json(got["scenario"]),
        configuration=configuration_from_json(got["configuration"]),
        verification_keys=_object(got[_KEYS], _KEYS) if proves else None,
    )


def scenario_from_json(document: object) -> Scenario:
    """Parse the scenario of a bundle.

    Raises:
        MalformedInputError: Not what a service would load: here it comes from outside.
    """
    try:
        scenario = Scenario.from_json(document)
    except ConfigurationError as error:
        raise MalformedInputError(f"bundle: {error}") from error
    if scenario.to_json() != document:
        # Whoever digests the document itself must come to the same digest.
        raise MalformedInputError("bundle scenario: want every field, kinds sorted")
    return scenario


def configuration_from_json(document: object) -> Mapping[str, Any]:
    """Return the configuration of a bundle, as it came: its digest is what counts.

    Raises:
        MalformedInputError: No object.
    """
    return _object(document, "configuration")


def _object(document: object, name: str) -> Mapping[str, Any]:
    if not isinstance(document, dict):
        raise MalformedInputError(f"bundle {name}: want an object")
    return document
