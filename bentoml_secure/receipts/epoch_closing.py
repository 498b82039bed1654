"""What the entry signs when an epoch is over, in the order that makes it count.

1. the root is signed (``close_epoch``), kept, and shown to auditors
2. their nonces over it come back, or do not, within a time that the entry sets
3. each receipt's attachment is made with the secret in it (``settle_epoch``)

The secret leaves the process in step 3 and not before. The nonces of step 2 are fixed
for all receipts at once: an auditor that comes later draws for itself
(``epoch_root.challenge_again``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from bentoml_secure.audit.challenge import ClosedEpoch, is_challenged
from bentoml_secure.digest import Digest
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.receipts.epoch import MAX_AUDITORS, EpochRecord, seeds_of
from bentoml_secure.receipts.epoch_root import EpochRoot, sign_root
from bentoml_secure.scenario import Scenario
from bentoml_secure.signing import Envelope, SigningKey
from bentoml_secure.statements import format_time


def close_epoch(
    closed: ClosedEpoch, *, key_document: Digest, scenario: Digest, key: SigningKey
) -> Envelope:
    """Return the signed root of an epoch: what auditors are shown.

    Args:
        closed: Of ``EpochLog.close``.
        key_document: The entry's.
        scenario: Digest of the scenario whose receipts were gathered.
        key: That signed the receipts.
    """
    root = EpochRoot.of(closed, key_document=key_document, scenario=scenario)
    return sign_root(root, key)


def settle_epoch(
    closed: ClosedEpoch,
    root: Envelope,
    nonces: Sequence[Envelope],
    *,
    receipt_ids: Mapping[Digest, str],
    scenario: Scenario,
    issued_at: datetime,
) -> tuple[EpochRecord, ...]:
    """Return what is to be signed of each receipt of an epoch, in order of arrival.

    Args:
        closed: Of ``EpochLog.close``.
        root: Of ``close_epoch``.
        nonces: Of auditors; those that do not verify must be left out before.
        receipt_ids: By digest of the receipt.
        scenario: Whose receipts were gathered.
        issued_at: When attachments are signed; proofs of the challenged are due
            ``proof_deadline_seconds`` after that.

    Raises:
        VerificationError: A nonce whose signature does not fit, over another root, or
            the second one of an auditor.
        MalformedInputError: No nonce.
        ConfigurationError: Too many nonces; a receipt without an id.
    """
    if len(nonces) > MAX_AUDITORS:
        raise ConfigurationError(
            f"epoch {closed.epoch.number} nonces: got {len(nonces)}, want at most "
            f"{MAX_AUDITORS}"
        )
    if missing := [r for r in closed.receipts if r not in receipt_ids]:
        raise ConfigurationError(
            f"epoch {closed.epoch.number}: no id of receipt {missing[0]}"
        )
    seeds = seeds_of(root.payload_digest, closed.secret, nonces)
    ends = issued_at + timedelta(seconds=scenario.proof_deadline_seconds)
    drawn = [is_challenged(r, seeds, scenario.challenge_rate) for r in closed.receipts]
    return tuple(
        EpochRecord(
            receipt_id=receipt_ids[receipt],
            receipt_digest=receipt,
            issued_at=format_time(issued_at),
            root=root,
            index=index,
            path=closed.tree.path(index),
            secret=closed.secret,
            nonces=tuple(nonces),
            challenged=drawn[index],
            deadline=format_time(ends) if drawn[index] else None,
        )
        for index, receipt in enumerate(closed.receipts)
    )
