"""Epochs of receipts in memory, honest or not.

For drafts of a deployment whose scenario challenges. ``gather`` has them name an epoch
and closes it; ``Gathered.record`` says where one stands, ``Gathered.attach`` signs the
receipt and that; in between, change what you like with ``dataclasses.replace``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from bentoml_secure.audit.challenge import ClosedEpoch, EpochLog
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.epoch import (
    EPOCH,
    EpochRecord,
    issue_epoch,
    longest_epoch,
)
from bentoml_secure.receipts.epoch_closing import close_epoch, settle_epoch
from bentoml_secure.receipts.epoch_root import EpochAuditor, sign_root, verify_root
from bentoml_secure.receipts.receipt import RequiredAttachment, issue
from bentoml_secure.scenario import Proving
from bentoml_secure.signing import Envelope, SigningKey
from bentoml_secure.statements import format_time
from bentoml_secure.testing.deployment import Deployment, build_deployment, key_of
from bentoml_secure.testing.proof_set_up import ProofSetUp
from bentoml_secure.testing.receipts import Draft, build_draft
from bentoml_secure.testing.request import draw_bytes

EPOCH_SECONDS = 10
CLOSES = timedelta(seconds=12)
"""After the deployment's time; receipts are issued one second after it."""


def challenging_deployment(
    rate: float, set_up: ProofSetUp, **options: Any
) -> Deployment:
    """Return a deployment whose scenario challenges that share of its receipts.

    Args:
        rate: Of every draw.
        set_up: Of its proofs.
        options: Of ``build_deployment``.
    """
    terms = {
        "proof": Proving.CHALLENGE,
        "challenge_rate": rate,
        "epoch_seconds": EPOCH_SECONDS,
        "proof_deadline_seconds": 60,
    }
    return build_deployment(terms=terms, set_up=set_up, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Drafts that stand in one epoch, and what the entry and auditors sign of it.

    Attributes:
        drafts: In order of arrival; each names the epoch.
        closed: The epoch.
        root: Signed.
        nonces: Of auditors, over the root.
    """

    drafts: tuple[Draft, ...]
    closed: ClosedEpoch
    root: Envelope
    nonces: tuple[Envelope, ...] = ()

    @property
    def signed_at(self) -> datetime:
        """When attachments are signed."""
        return self.drafts[0].deployment.now + CLOSES + timedelta(seconds=1)

    def record(self, index: int) -> EpochRecord:
        """Return what an honest entry signs of a draft."""
        ids = [draft.receipt.receipt_id for draft in self.drafts]
        records = settle_epoch(
            self.closed,
            self.root,
            self.nonces,
            receipt_ids=dict(zip(self.closed.receipts, ids, strict=True)),
            scenario=self.drafts[index].deployment.scenario,
            issued_at=self.signed_at,
        )
        # Whatever a test has made of the draft since, an honest entry says of that.
        draft = self.drafts[index]
        signed = issue(draft.receipt, draft.deployment.entry.signing)
        return replace(records[index], receipt_digest=signed.payload_digest)

    def attach(self, index: int, record: EpochRecord | None = None) -> Bundle:
        """Sign a draft's receipt and where it stands, and return the whole bundle.

        Args:
            index: Of the draft.
            record: In place of the honest one.
        """
        draft = self.drafts[index]
        bundle = draft.bundle()
        key = draft.deployment.entry.signing
        signed = issue_epoch(record or self.record(index), key)
        return replace(bundle, attachments=(*bundle.attachments, signed))

    def audited(self, *names: str) -> Gathered:
        """Return it with a nonce of each auditor of those names."""
        entry = self.drafts[0].deployment.entry.signing.public
        auditors = [auditor(name) for name in names]
        nonces = tuple(a.answer(self.root, entry) for a in auditors)
        return replace(self, nonces=(*self.nonces, *nonces))

    def rooted(self, **changes: Any) -> Gathered:
        """Return it with a root that says something else, signed all the same."""
        key = self.drafts[0].deployment.entry.signing
        root = replace(verify_root(self.root, key.public), **changes)
        return replace(self, root=sign_root(root, key))


def auditor_key(name: str) -> SigningKey:
    """Return the key of the auditor of a name."""
    return SigningKey(key_of(f"auditor {name}"))


def auditor(name: str) -> EpochAuditor:
    """Return an auditor whose nonce follows from its name."""
    return EpochAuditor(auditor_key(name), draw=lambda: draw_bytes(name, "nonce", 32))


def gather(
    deployment: Deployment, labels: Sequence[str], *, secret: bytes | None = None
) -> Gathered:
    """Run a request for each label and gather their receipts into one epoch.

    Args:
        deployment: Of ``challenging_deployment``.
        labels: Of the requests, in order of arrival.
        secret: Of the epoch; made up by default.
    """
    log = EpochLog(
        seconds=EPOCH_SECONDS,
        draw=lambda: secret or draw_bytes("an epoch", "secret", 32),
    )
    drafts = tuple(_join(log, build_draft(deployment, label=la)) for la in labels)
    (closed,) = log.close(deployment.now + CLOSES)
    root = close_epoch(
        closed,
        key_document=deployment.entry.document.digest,
        scenario=deployment.scenario.digest,
        key=deployment.entry.signing,
    )
    return Gathered(drafts=drafts, closed=closed, root=root)


def _join(log: EpochLog, draft: Draft) -> Draft:
    deployment = draft.deployment
    epoch = log.join(deployment.now)
    ends = deployment.now + longest_epoch(deployment.scenario)
    due = RequiredAttachment(kind=EPOCH, deadline=format_time(ends))
    attachments = (*draft.receipt.attachments, due)
    receipt = replace(draft.receipt, epoch=epoch, attachments=attachments)
    log.add(epoch, issue(receipt, deployment.entry.signing).payload_digest)
    return replace(draft, receipt=receipt)
