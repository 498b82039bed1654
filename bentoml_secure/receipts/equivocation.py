"""Two bundles that show an entry to have said two things of one epoch.

Each may verify by itself. An entry that signs one root for a caller whose answer is
honest and another for one whose answer is not, or that begins an epoch twice, can
choose between draws; and leaves two signatures under one key that contradict each
other. Who compares receipts of different callers finds them here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from bentoml_secure.audit.challenge import Epoch
from bentoml_secure.digest import Digest
from bentoml_secure.errors import (
    Finding,
    MalformedInputError,
    ReceiptError,
    VerificationError,
)
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.epoch import epoch_among
from bentoml_secure.receipts.epoch_root import verify_root
from bentoml_secure.receipts.receipt import parse_receipt
from bentoml_secure.signing import Envelope, VerificationKey, verify
from bentoml_secure.statements import INTOTO_TYPE

__all__ = ["require_one_word"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What an entry signed of an epoch.

    Attributes:
        place: Key id, scenario and number: what there is one epoch of.
        epoch: As it is named.
        envelope: That says so.
        root: Whether that is a root, of which there is one, or one of many receipts.
    """

    place: tuple[str, Digest, int]
    epoch: Epoch
    envelope: Envelope
    root: bool

    def contradicts(self, other: _Said) -> bool:
        """Tell whether no honest entry signs both."""
        if self.place != other.place:
            return False
        if self.root and other.root:
            return self.envelope.payload != other.envelope.payload
        return self.epoch != other.epoch


def require_one_word(first: Bundle, second: Bundle) -> None:
    """Refuse two bundles whose entry says two things of one epoch.

    Args:
        first: Of one caller. What is not signed by the entry's key says nothing here.
        second: Of another, or of the same later on.

    Raises:
        ReceiptError: Two signatures that contradict each other; the findings name the
            digests of what was signed, which both are in the bundles.
        MalformedInputError: A bundle whose receipt does not parse.
    """
    said = [*_said(first), *_said(second)]
    findings = [
        Finding(
            f"epoch {one.place[2]} under key {one.place[0]}",
            f"{one.envelope.payload_digest} and {other.envelope.payload_digest}",
            "one root, over receipts that name one secret",
        )
        for one, other in combinations(said, 2)
        if one.contradicts(other)
    ]
    if findings:
        raise ReceiptError("the entry contradicts itself", findings)


def _said(bundle: Bundle) -> Iterator[_Said]:
    receipt = parse_receipt(bundle.receipt)
    named = {party.key_document for party in receipt.parties}
    for document in bundle.key_documents:
        if document.service != receipt.service or document.digest not in named:
            continue
        key = VerificationKey.from_hex(document.ed25519)
        try:
            verify(bundle.receipt, key, payload_type=INTOTO_TYPE)
        except VerificationError:
            continue
        if receipt.epoch is not None:
            yield _Said(
                place=(key.key_id, receipt.scenario_digest, receipt.epoch.number),
                epoch=receipt.epoch,
                envelope=bundle.receipt,
                root=False,
            )
        record = epoch_among(bundle.attachments, key, bundle.receipt.payload_digest)
        if record is not None:
            try:
                root = verify_root(record.root, key)
            except (VerificationError, MalformedInputError):
                continue
            yield _Said(
                place=(key.key_id, root.scenario, root.epoch.number),
                epoch=root.epoch,
                envelope=record.root,
                root=True,
            )
