"""The attachment "epoch": where a receipt stands in its epoch, and if it is challenged.

Every receipt of a scenario with ``proof = "challenge"`` must have one. What it says can
be recomputed from what the receipt, the root and the auditors signed:

1. the receipt names an epoch: the digest of its secret is older than the receipt
2. the root is signed by the entry, of this epoch, scenario and key document; the epoch
   was open for no longer than the scenario says, and the receipt was issued within
3. the path leads from the receipt to the root, at the index and count that are said
4. the secret is the one whose digest the receipt names
5. each nonce is signed by its auditor over this root, one for each auditor; those that
   the trust file lists are all there
6. it is challenged if and only if a seed draws it, with a deadline that the scenario
   explains, and none if it is not
7. whoever is challenged must have every proof by that deadline (``obligations``)

An entry that signs two roots of one epoch shows one caller one and another the other.
One bundle does not show that; two of them do (``equivocation``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from bentoml_secure.audit.challenge import (
    SECRET_BYTES,
    challenge_seed,
    is_challenged,
    require_secret,
)
from bentoml_secure.audit.merkle import (
    MAX_LEAVES,
    MAX_PATH,
    parse_node,
    require_included,
)
from bentoml_secure.digest import Digest, parse_hex
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.receipts.attachments import (
    Attachment,
    issue_attachment,
    read_attachment,
    verify_attachment,
)
from bentoml_secure.receipts.epoch_root import (
    EpochRoot,
    parse_epoch_envelope,
    verify_nonce,
    verify_root,
)
from bentoml_secure.receipts.records import parse_moment
from bentoml_secure.receipts.strict import fields, flag, items, whole
from bentoml_secure.scenario import Proving, Scenario
from bentoml_secure.signing import Envelope, SigningKey, VerificationKey
from bentoml_secure.statements import parse_time

if TYPE_CHECKING:
    from bentoml_secure.receipts.judgement import Judgement

EPOCH = "epoch"
CLOSE_SECONDS = 30
"""After an epoch's time is over: for receipts that were being signed."""

SETTLE_SECONDS = 120
"""After that: for auditors' nonces, to sign, and to write where the receipt is kept."""

MAX_AUDITORS = 16

_CONTENT = ("root", "index", "path", "secret", "nonces", "challenged", "deadline")


def epoch_due(scenario: Scenario) -> bool:
    """Tell whether a scenario's receipts are gathered into epochs."""
    return scenario.proof is Proving.CHALLENGE


def longest_epoch(scenario: Scenario) -> timedelta:
    """Return how long after its issue a receipt may wait for its epoch."""
    return timedelta(seconds=scenario.epoch_seconds + CLOSE_SECONDS + SETTLE_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """Where a receipt stands in its epoch, and whether it was challenged.

    Attributes:
        receipt_id: Of the receipt.
        receipt_digest: Of the receipt.
        issued_at: When this is signed; the entry's clock.
        root: Signed by the entry before the secret was shown.
        index: Of the receipt among those of the epoch.
        path: From the receipt to the root.
        secret: Of the epoch.
        nonces: Signed by auditors over the root.
        challenged: Whether the receipt must be proven.
        deadline: By which it must be; None where it is not challenged.
    """

    receipt_id: str
    receipt_digest: Digest
    issued_at: str
    root: Envelope
    index: int
    path: tuple[Digest, ...]
    secret: bytes
    nonces: tuple[Envelope, ...]
    challenged: bool
    deadline: str | None

    def to_json(self) -> dict[str, Any]:
        """Return what the predicate says beyond what every attachment does."""
        return {
            "root": self.root.to_json(),
            "index": self.index,
            "path": list(self.path),
            "secret": self.secret.hex(),
            "nonces": [nonce.to_json() for nonce in self.nonces],
            "challenged": self.challenged,
            "deadline": self.deadline,
        }

    @classmethod
    def from_attachment(cls, attachment: Attachment) -> EpochRecord:
        """Parse what this kind of attachment says.

        Raises:
            MalformedInputError: A field is missing, unknown, too long or of another
                form; a deadline without a challenge, or the reverse.
        """
        got = fields(attachment.content, _CONTENT, what=EPOCH)
        challenged = flag(got["challenged"], what=f"{EPOCH} challenged")
        deadline = got["deadline"]
        if challenged is (deadline is None):
            raise MalformedInputError(
                f"{EPOCH}: want a deadline where it is challenged, and null elsewhere"
            )
        if deadline is not None:
            deadline = parse_moment(deadline, what=f"{EPOCH} deadline")
        path = items(got["path"], what=f"{EPOCH} path", most=MAX_PATH)
        nonces = items(got["nonces"], what=f"{EPOCH} nonces", most=MAX_AUDITORS)
        return cls(
            receipt_id=attachment.receipt_id,
            receipt_digest=attachment.receipt_digest,
            issued_at=attachment.issued_at,
            root=parse_epoch_envelope(got["root"], what=f"{EPOCH} root"),
            index=whole(
                got["index"], what=f"{EPOCH} index", low=0, high=MAX_LEAVES - 1
            ),
            path=tuple(parse_node(step, what=f"{EPOCH} path") for step in path),
            secret=parse_hex(
                got["secret"], what=f"{EPOCH} secret", length=SECRET_BYTES
            ),
            nonces=tuple(
                parse_epoch_envelope(nonce, what=f"{EPOCH} nonce") for nonce in nonces
            ),
            challenged=challenged,
            deadline=deadline,
        )


def issue_epoch(record: EpochRecord, key: SigningKey) -> Envelope:
    """Sign where a receipt stands in its epoch, with the receipt's key."""
    return issue_attachment(
        Attachment(
            kind=EPOCH,
            receipt_digest=record.receipt_digest,
            receipt_id=record.receipt_id,
            issued_at=record.issued_at,
            content=record.to_json(),
        ),
        key,
    )


def seeds_of(
    root: Digest, secret: bytes, nonces: Sequence[Envelope]
) -> tuple[bytes, ...]:
    """Return what the draws of an epoch follow from, that without an auditor first.

    Args:
        root: Digest of the root document.
        secret: Of the epoch.
        nonces: Of auditors; they are verified here.

    Raises:
        VerificationError: A nonce whose signature does not fit, over another root, or
            the second one of an auditor.
        MalformedInputError: No nonce.
    """
    said = [verify_nonce(envelope) for envelope in nonces]
    for nonce in said:
        if nonce.root != root:
            raise VerificationError(
                f"nonce of {nonce.auditor}: got one over {nonce.root}, want {root}"
            )
    if len({nonce.key for nonce in said}) != len(said):
        raise VerificationError("nonces: an auditor stands twice, want each once")
    given = [b"", *(bytes.fromhex(nonce.nonce) for nonce in said)]
    return tuple(challenge_seed(root, secret, nonce) for nonce in given)


def draws(record: EpochRecord, rate: float) -> bool:
    """Tell whether a record's secret and nonces challenge its receipt.

    Args:
        record: Its nonces are verified here, nothing else of it is.
        rate: Of the receipt's scenario.

    Raises:
        VerificationError: Nonces that do not belong to this root, or not together.
        MalformedInputError: No nonce.
    """
    seeds = seeds_of(record.root.payload_digest, record.secret, record.nonces)
    return is_challenged(record.receipt_digest, seeds, rate)


def judge(attachment: Attachment, judgement: Judgement) -> None:
    """Judge where a receipt is said to stand; see the module's rules.

    Raises:
        MalformedInputError: Not of this kind's form.
    """
    record = EpochRecord.from_attachment(attachment)
    case, report = judgement.case, judgement.report
    named, key = case.receipt.epoch, case.keys.get(case.receipt.service)
    if not epoch_due(case.bundle.scenario) or named is None or key is None:
        report.add(EPOCH, "one", "none: the receipt names no epoch to stand in")
        return
    try:
        root = verify_root(record.root, key)
    except (VerificationError, MalformedInputError) as error:
        report.add(f"{EPOCH} root", str(error), "one that the entry signed")
        return
    _judge_root(judgement, root, record.issued_at)
    _judge_place(judgement, record, root)
    auditors = _judge_draw(judgement, record)
    report.gathered.update(
        number=root.epoch.number,
        index=record.index,
        of=root.count,
        root=record.root.payload_digest,
        auditors=auditors,
        challenged=record.challenged,
        deadline=record.deadline,
    )


def _judge_root(judgement: Judgement, root: EpochRoot, signed_at: str) -> None:
    case, report = judgement.case, judgement.report
    receipt = case.receipt
    party = case.parties[receipt.service]
    pairs: tuple[tuple[str, object, object], ...] = (
        ("epoch", root.epoch, receipt.epoch),
        ("scenario", root.scenario, receipt.scenario_digest),
        ("key_document", root.key_document, party.key_document),
    )
    for name, got, want in pairs:
        report.require(f"{EPOCH} root {name}", got, want)
    opened, closed = root.epoch.opened_at, root.closed_at
    # The format has one length, so text sorts as time does.
    if not opened <= receipt.issued_at <= closed <= signed_at:
        wanted = f"the receipt within it, and signed after: {receipt.issued_at}"
        report.add(f"{EPOCH} times", f"{opened} to {closed}", wanted)
    most = timedelta(seconds=case.bundle.scenario.epoch_seconds + CLOSE_SECONDS)
    if _moment(closed) - _moment(opened) > most:
        wanted = f"at most {most.total_seconds():g} s after it opened"
        report.add(f"{EPOCH} closed_at", closed, wanted)


def _judge_place(judgement: Judgement, record: EpochRecord, root: EpochRoot) -> None:
    case, report = judgement.case, judgement.report
    try:
        require_included(
            case.receipt_digest,
            index=record.index,
            count=root.count,
            path=record.path,
            root=root.root,
        )
    except VerificationError as error:
        report.add(f"{EPOCH} path", str(error), "one from this receipt to the root")
    try:
        require_secret(record.secret, root.epoch.commitment)
    except VerificationError as error:
        report.add(f"{EPOCH} secret", str(error), "the one committed to")


def _judge_draw(judgement: Judgement, record: EpochRecord) -> list[str]:
    """Judge whether a record's receipt is challenged; return which auditors drew."""
    case, report = judgement.case, judgement.report
    scenario = case.bundle.scenario
    try:
        drawn = draws(record, scenario.challenge_rate)
    except (VerificationError, MalformedInputError) as error:
        report.add(f"{EPOCH} nonces", str(error), "one by each auditor, over this root")
        return []
    signers = sorted(verify_nonce(envelope).auditor for envelope in record.nonces)
    for auditor in case.trust.challenge_auditors:
        if auditor not in signers:
            want = f"one by {auditor} (challenge_auditors)"
            report.add(f"{EPOCH} nonces", ", ".join(signers) or "none", want)
    report.require(f"{EPOCH} challenged", record.challenged, drawn)
    if record.deadline is not None:
        most = timedelta(seconds=scenario.proof_deadline_seconds)
        after = _moment(record.deadline) - _moment(record.issued_at)
        if not timedelta(0) <= after <= most:
            want = f"up to {most.total_seconds():g} s after {record.issued_at}"
            report.add(f"{EPOCH} deadline", record.deadline, want)
    return signers


def _moment(text: str) -> datetime:
    return parse_time(text, what="time")


def epoch_of(judgement: Judgement) -> EpochRecord | None:
    """Return what the entry signed of a receipt's place in its epoch, if it did.

    Args:
        judgement: Of a bundle whose attachments need not be judged yet.
    """
    case = judgement.case
    key = case.keys.get(case.receipt.service)
    if key is None:
        return None
    return epoch_among(case.bundle.attachments, key, case.receipt_digest)


def epoch_among(
    attachments: Sequence[Envelope], key: VerificationKey, receipt: Digest
) -> EpochRecord | None:
    """Return the first attachment of this kind that a key signed for a receipt.

    Args:
        attachments: Of a bundle.
        key: The entry's.
        receipt: Digest of the receipt.
    """
    for envelope in attachments:
        try:
            if read_attachment(envelope).kind != EPOCH:
                continue
            attachment = verify_attachment(envelope, key)
            if attachment.receipt_digest == receipt:
                return EpochRecord.from_attachment(attachment)
        except (VerificationError, MalformedInputError):
            # Judged, and named in a finding, where every attachment is.
            continue
    return None


def challenged(judgement: Judgement) -> str | None:
    """Return by when a receipt must be proven; None where it is not challenged.

    It follows from the draw, not from what the attachment says of it: where the two
    differ the receipt is rejected anyway, and its proofs are still asked for.

    Args:
        judgement: Of a bundle whose attachments need not be judged yet.
    """
    record = epoch_of(judgement)
    if record is None or not epoch_due(judgement.case.bundle.scenario):
        return None
    try:
        drawn = draws(record, judgement.case.bundle.scenario.challenge_rate)
    except (VerificationError, MalformedInputError):
        drawn = True
    return record.deadline or record.issued_at if drawn else None
