"""What is signed of an epoch: its root by the entry, nonces over it by auditors.

The order is shown by what names what: every receipt of the epoch names the digest of
its secret, the root is over those receipts, and a nonce is signed over the root. An
auditor signs one root for each epoch and no second one (``EpochAuditor``), so that an
entry who does not like a nonce cannot ask for another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from bentoml_secure.audit.challenge import (
    MAX_EPOCH,
    ClosedEpoch,
    Epoch,
    challenge_seed,
    is_challenged,
    require_secret,
)
from bentoml_secure.audit.merkle import MAX_LEAVES, MerkleTree, parse_node
from bentoml_secure.digest import (
    JSON,
    NONCE_BYTES,
    Digest,
    equal,
    parse_digest,
    parse_hex,
    parse_json,
)
from bentoml_secure.errors import VerificationError
from bentoml_secure.receipts.records import parse_moment
from bentoml_secure.receipts.strict import fields, whole
from bentoml_secure.signing import (
    Envelope,
    SigningKey,
    VerificationKey,
    parse_envelope,
    sign,
    verify,
)

ROOT_TYPE = "application/vnd.bentoml-secure.epoch-root.v1+json"
NONCE_TYPE = "application/vnd.bentoml-secure.epoch-nonce.v1+json"
MAX_DOCUMENT_BYTES = 4096

_EPOCH = ("number", "commitment", "opened_at")
_ROOT = ("version", "key_document", "scenario", "epoch", "closed_at", "count", "root")
_NONCE = ("version", "root", "nonce", "key")


def epoch_to_json(epoch: Epoch) -> dict[str, Any]:
    """Return an epoch as receipts and roots name it."""
    return {name: getattr(epoch, name) for name in _EPOCH}


def epoch_from_json(document: object, *, what: str) -> Epoch:
    """Parse what a receipt or a root says of its epoch.

    Raises:
        MalformedInputError: A field is missing, unknown or of another form.
    """
    got = fields(document, _EPOCH, what=what)
    return Epoch(
        number=whole(got["number"], what=f"{what} number", low=0, high=MAX_EPOCH),
        commitment=_sha256(got["commitment"], f"{what} commitment"),
        opened_at=parse_moment(got["opened_at"], what=f"{what} opened_at"),
    )


def _sha256(value: object, what: str) -> Digest:
    digest = parse_digest(value, what=what, algorithm="sha256")
    size = hashlib.sha256().digest_size
    parse_hex(digest.partition(":")[2], what=what, length=size)
    return digest


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRoot:
    """What the entry signs of an epoch that takes no more receipts.

    Attributes:
        key_document: The entry's, whose key signs.
        scenario: Digest of the scenario whose receipts were gathered.
        epoch: As each of its receipts names it.
        closed_at: The entry's clock.
        count: Receipts.
        root: Of the Merkle tree over them, in order of arrival.
    """

    key_document: Digest
    scenario: Digest
    epoch: Epoch
    closed_at: str
    count: int
    root: Digest

    @classmethod
    def of(
        cls, closed: ClosedEpoch, *, key_document: Digest, scenario: Digest
    ) -> EpochRoot:
        """Return what an entry signs of an epoch."""
        return cls(
            key_document=key_document,
            scenario=scenario,
            epoch=closed.epoch,
            closed_at=closed.closed_at,
            count=closed.tree.count,
            root=closed.tree.root,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the document that is signed."""
        return {
            "version": 1,
            "key_document": self.key_document,
            "scenario": self.scenario,
            "epoch": epoch_to_json(self.epoch),
            "closed_at": self.closed_at,
            "count": self.count,
            "root": self.root,
        }

    @classmethod
    def from_json(cls, document: object) -> EpochRoot:
        """Parse a signed document.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        what = "epoch root"
        got = fields(document, _ROOT, what=what)
        whole(got["version"], what=f"{what} version", low=1, high=1)
        return cls(
            key_document=parse_digest(
                got["key_document"], what=f"{what} key_document", algorithm=JSON
            ),
            scenario=parse_digest(
                got["scenario"], what=f"{what} scenario", algorithm=JSON
            ),
            epoch=epoch_from_json(got["epoch"], what=f"{what} epoch"),
            closed_at=parse_moment(got["closed_at"], what=f"{what} closed_at"),
            count=whole(got["count"], what=f"{what} count", low=1, high=MAX_LEAVES),
            root=parse_node(got["root"], what=what),
        )


def sign_root(root: EpochRoot, key: SigningKey) -> Envelope:
    """Sign a root as the entry whose key document it names."""
    return sign(key, ROOT_TYPE, root.to_json())


def verify_root(envelope: Envelope, key: VerificationKey) -> EpochRoot:
    """Verify an entry's envelope and return the root.

    Raises:
        VerificationError: Another key or type, or the signature does not fit.
        MalformedInputError: Signed, but not a root.
    """
    return EpochRoot.from_json(verify(envelope, key, payload_type=ROOT_TYPE))


def parse_epoch_envelope(document: object, *, what: str) -> Envelope:
    """Parse the JSON form of a root's or a nonce's envelope, within its size limit.

    Raises:
        MalformedInputError: Not an envelope, or too large.
    """
    return parse_envelope(document, what=what, max_bytes=MAX_DOCUMENT_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditorNonce:
    """What an auditor signs of a root that it was shown.

    Attributes:
        root: Digest of the root document.
        nonce: 32 random bytes, hex.
        key: The auditor's Ed25519 key, hex; ``auditor`` is its id.
    """

    root: Digest
    nonce: str
    key: str

    @property
    def auditor(self) -> str:
        """Key id, as trust files list it."""
        return VerificationKey.from_hex(self.key).key_id

    def to_json(self) -> dict[str, Any]:
        """Return the document that is signed."""
        return {"version": 1} | {name: getattr(self, name) for name in _NONCE[1:]}

    @classmethod
    def from_json(cls, document: object) -> AuditorNonce:
        """Parse a signed document.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        what = "epoch nonce"
        got = fields(document, _NONCE, what=what)
        whole(got["version"], what=f"{what} version", low=1, high=1)
        return cls(
            root=parse_digest(got["root"], what=f"{what} root", algorithm=JSON),
            nonce=parse_hex(got["nonce"], what=what, length=NONCE_BYTES).hex(),
            key=VerificationKey.from_hex(got["key"]).raw.hex(),
        )


def verify_nonce(envelope: Envelope) -> AuditorNonce:
    """Verify an auditor's envelope under the key that it names.

    Whether that key is an auditor's is for the trust file to say.

    Raises:
        VerificationError: Another type, or the signature does not fit.
        MalformedInputError: Not a nonce.
    """
    said = AuditorNonce.from_json(
        parse_json(envelope.payload, what="epoch nonce", max_bytes=MAX_DOCUMENT_BYTES)
    )
    verify(envelope, VerificationKey.from_hex(said.key), payload_type=NONCE_TYPE)
    return said


class EpochAuditor:
    """Signs a nonce for each epoch's root, and none for a second root.

    Args:
        key: The auditor's.
        draw: Returns 32 random bytes.
        seen: Digests of the root documents signed so far; kept by the caller where
            they must outlive this process.
    """

    def __init__(
        self,
        key: SigningKey,
        *,
        draw: Callable[[], bytes],
        seen: MutableMapping[tuple[str, str, int], Digest] | None = None,
    ) -> None:
        self._key = key
        self._draw = draw
        self._seen = {} if seen is None else seen

    def answer(self, envelope: Envelope, entry: VerificationKey) -> Envelope:
        """Return a signed nonce over a root.

        Args:
            envelope: Of the root.
            entry: The entry's attested key.

        Raises:
            VerificationError: Not signed by the entry; the auditor has answered for
                this epoch, whether with this root or with another.
            MalformedInputError: Signed, but not a root.
        """
        root = verify_root(envelope, entry)
        place = entry.key_id, root.scenario, root.epoch.number
        if (before := self._seen.get(place)) is not None:
            raise VerificationError(
                f"epoch {root.epoch.number}: got {envelope.payload_digest}, want no "
                f"root after {before}"
            )
        self._seen[place] = envelope.payload_digest
        said = AuditorNonce(
            root=envelope.payload_digest,
            nonce=self._draw().hex(),
            key=self._key.public.raw.hex(),
        )
        return sign(self._key, NONCE_TYPE, said.to_json())


def challenge_again(
    envelope: Envelope,
    entry: VerificationKey,
    receipts: Sequence[Digest],
    *,
    secret: bytes,
    nonce: bytes,
    rate: float,
) -> tuple[Digest, ...]:
    """Draw once more from an epoch, after its secret was shown; who is to be proven.

    The receipts are those that were committed to, all of them and no other, so a draw
    may come at any time and at any rate. An auditor's nonce must be its own.

    Args:
        envelope: Of the root.
        entry: The entry's attested key.
        receipts: Digests of the epoch's receipts, in order of arrival.
        secret: Of the epoch.
        nonce: The auditor's, 32 bytes.
        rate: Share that is drawn.

    Raises:
        VerificationError: The root is not the entry's, or not over these receipts; the
            secret is not the epoch's.
        MalformedInputError: Signed, but not a root.
        ConfigurationError: A nonce of another length, or a rate that is no share.
    """
    root = verify_root(envelope, entry)
    require_secret(secret, root.epoch.commitment)
    if len(receipts) != root.count or not equal(MerkleTree(receipts).root, root.root):
        raise VerificationError(
            f"epoch {root.epoch.number}: got {len(receipts)} receipts, want the "
            f"{root.count} under {root.root}"
        )
    seed = challenge_seed(envelope.payload_digest, secret, nonce)
    return tuple(r for r in receipts if is_challenged(r, [seed], rate))
