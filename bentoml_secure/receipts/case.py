"""What a receipt is judged on, and what the steps of the judgement write down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bentoml_secure.attestation.evidence import EvidenceRecord, UncheckedField
from bentoml_secure.attestation.key_document import KeyDocument
from bentoml_secure.digest import Digest, digest_json
from bentoml_secure.errors import Finding, SecureError
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.receipt import Party, Receipt
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.scenario import Topology
from bentoml_secure.signing import VerificationKey

MAX_FINDINGS = 1000
"""Enough for anybody to see that a bundle is bad; a hostile one could have millions."""

_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A parsed bundle, whose trust file judges it, and for which time.

    Attributes:
        bundle: As it came; nothing in it is trusted.
        receipt: What the bundle's receipt says.
        receipt_digest: Of the receipt's payload.
        trust: The caller's.
        at: The time that evidence is judged for.
        now: The caller's clock; judges deadlines.
        parties: By name.
        key_documents: Of the parties whose document the bundle holds, by name.
        evidence: Of the parties whose evidence the bundle holds, by name.
        keys: That ``key_documents`` announce, by name.
        topology: Of the deployment, as the bundle's configuration has it; None where
            that is not the one that the receipt names.
    """

    bundle: Bundle
    receipt: Receipt
    receipt_digest: Digest
    trust: Trust
    at: datetime
    now: datetime
    parties: Mapping[str, Party]
    key_documents: Mapping[str, KeyDocument]
    evidence: Mapping[str, EvidenceRecord]
    keys: Mapping[str, VerificationKey]
    topology: Topology | None

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        receipt: Receipt,
        trust: Trust,
        *,
        at: datetime,
        now: datetime,
    ) -> Case:
        """Look up each party's document and evidence by the digests in the receipt."""
        documents = {document.digest: document for document in bundle.key_documents}
        records = {record.digest: record for record in bundle.evidence}
        found = {
            party.name: documents[party.key_document]
            for party in receipt.parties
            if party.key_document in documents
        }
        return cls(
            bundle=bundle,
            receipt=receipt,
            receipt_digest=bundle.receipt.payload_digest,
            trust=trust,
            at=at,
            now=now,
            parties={party.name: party for party in receipt.parties},
            key_documents=found,
            evidence={
                party.name: records[party.evidence]
                for party in receipt.parties
                if party.evidence in records
            },
            keys={
                name: VerificationKey.from_hex(document.ed25519)
                for name, document in found.items()
            },
            topology=_topology(bundle, receipt),
        )


def _topology(bundle: Bundle, receipt: Receipt) -> Topology | None:
    if digest_json(bundle.configuration) != receipt.config_digest:
        return None
    return Topology.from_configuration(bundle.configuration)


@dataclass(slots=True)
class Report:
    """What the steps write down: every finding, none of them the last.

    Attributes:
        findings: Reasons to reject, the first ``MAX_FINDINGS`` of them.
        unchecked: What the trust file or its policy leaves out, and why.
        dissenters: Who answered otherwise, where and when.
        absent: Who did not answer, where and why.
        skipped: Who was drawn and not asked, or not waited for, where and why.
        ruled: Where a referee decided in place of a quorum.
        doubts: Chains that ended apart from the agreed one, as names by segment.
        sighted: Whose vote counts though it committed after the reveal had begun.
        audited: What recomputing the request came to, by segment.
        late: Kinds of required attachments that are not there yet.
        gathered: Where the receipt stands in its epoch, and if it is challenged.
        proven: What the proofs that are there come to.
        unjudged: Why something could not be judged at all, which is nobody's fault.
    """

    findings: list[Finding] = field(default_factory=list)
    unchecked: list[UncheckedField] = field(default_factory=list)
    dissenters: list[dict[str, Any]] = field(default_factory=list)
    absent: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    ruled: list[dict[str, Any]] = field(default_factory=list)
    doubts: list[dict[str, Any]] = field(default_factory=list)
    sighted: list[dict[str, Any]] = field(default_factory=list)
    audited: list[dict[str, Any]] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    gathered: dict[str, Any] = field(default_factory=dict)
    proven: dict[str, Any] = field(default_factory=dict)
    unjudged: list[SecureError] = field(default_factory=list)

    def add(self, name: str, got: object, want: object) -> None:
        """Note a check that failed."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(name, _shown(got), _shown(want)))

    def require(self, name: str, got: object, want: object) -> None:
        """Note a failure if the two differ."""
        if got != want:
            self.add(name, got, want)

    def adopt(self, prefix: str, findings: Sequence[Finding]) -> None:
        """Note what another room found, under the name of the thing it is about."""
        for finding in findings:
            self.add(f"{prefix} {finding.field}", finding.got, finding.want)

    def dissent(self, infer: int, segment: int, replica: str, where: str) -> None:
        """Note a replica whose answer differs from the one that was served."""
        self.dissenters.append(
            {"infer": infer, "segment": segment, "replica": replica, "where": where}
        )

    def skip(self, infer: int, segment: int, replica: str, reason: str) -> None:
        """Note a replica that lost its seat to a spare."""
        self.skipped.append(
            {"infer": infer, "segment": segment, "replica": replica, "reason": reason}
        )

    def doubt(self, infer: int, chain: Sequence[str]) -> None:
        """Note a chain that ended apart from the agreed one."""
        self.doubts.append({"infer": infer, "chain": list(chain)})

    def see(self, infer: int, segment: int, replica: str) -> None:
        """Note a vote that was not blind."""
        self.sighted.append({"infer": infer, "segment": segment, "replica": replica})

    def rule(self, infer: int, segment: int, referee: str) -> None:
        """Note a round that a referee decided."""
        self.ruled.append({"infer": infer, "segment": segment, "referee": referee})

    def miss(
        self, infer: int, segment: int, replica: str, reason: str, where: str
    ) -> None:
        """Note a replica that gave no answer."""
        self.absent.append(
            {
                "infer": infer,
                "segment": segment,
                "replica": replica,
                "reason": reason,
                "where": where,
            }
        )


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    printable = "".join(c if c.isprintable() else "?" for c in text)
    if len(printable) <= _SHOWN_CHARACTERS:
        return printable
    return printable[:_SHOWN_CHARACTERS] + "..."
