"""Challenges: which receipts must be proven, drawn after all of them are fixed. Pure.

Proving every request costs more than most are worth. So requests are gathered into
*epochs*, and a share of each is challenged, in this order:

1. when the epoch opens, its *secret* e is drawn; every receipt of the epoch names
   SHA-256(e), so that e is older than the receipts are
2. when it closes, a Merkle root over its receipts is signed (``merkle``)
3. after that, whoever audits sends a nonce, signed over the root
4. e is shown, and with it who is challenged

    seed  =  SHA-256("bentoml-secure/challenge/v1" || digest of the root document || e
             || nonce)
    lot   =  SHA-256("bentoml-secure/challenge-lot/v1" || seed || receipt digest)

A receipt is challenged if ``sampling.audited(lot, rate)`` says so for *any* seed: that
without a nonce, or that of an auditor. So a further nonce only ever adds challenges,
and no auditor who colludes, waits for the others or leaves can take one back. A lot is
the receipt's, wherever it stands: its index is no choice.

Runners and provers know neither e nor the root. The entry knows e: it may arrange the
leaves under its control until the seed without a nonce suits it, and the nonce of an
auditor is what stands against that (``planning.evasion`` has the odds).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bentoml_secure.audit.merkle import MAX_LEAVES, MerkleTree
from bentoml_secure.audit.sampling import audited
from bentoml_secure.digest import NONCE_BYTES, Digest, digest_bytes, equal
from bentoml_secure.errors import ConfigurationError, VerificationError
from bentoml_secure.statements import format_time, parse_time

CHALLENGE_LABEL = b"bentoml-secure/challenge/v1"
LOT_LABEL = b"bentoml-secure/challenge-lot/v1"
SECRET_BYTES = 32
MAX_EPOCH = 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What every receipt of an epoch says of it.

    Attributes:
        number: Counted by the entry from 0, under one key and for one scenario.
        commitment: SHA-256 digest of the secret.
        opened_at: When the secret was drawn; the entry's clock.
    """

    number: int
    commitment: Digest
    opened_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedEpoch:
    """An epoch that takes no more receipts.

    Attributes:
        epoch: As its receipts name it.
        closed_at: The entry's clock.
        secret: To be shown once the root is signed and auditors have had their say.
        receipts: Digests, in order of arrival.
        tree: Over them.
    """

    epoch: Epoch
    closed_at: str
    secret: bytes
    receipts: tuple[Digest, ...]
    tree: MerkleTree


def require_secret(secret: bytes, commitment: Digest) -> None:
    """Refuse a secret that is not the one committed to.

    Raises:
        VerificationError: Another length or digest.
    """
    if len(secret) != SECRET_BYTES or not equal(digest_bytes(secret), commitment):
        raise VerificationError(
            f"epoch secret: got one of digest {digest_bytes(secret)}, want {commitment}"
        )


def challenge_seed(root: Digest, secret: bytes, nonce: bytes = b"") -> bytes:
    """Return what one draw of an epoch follows from.

    Args:
        root: Digest of the signed root document: root, count and epoch are all in it.
        secret: Of the epoch, 32 bytes.
        nonce: Of an auditor, 32 bytes; none for the draw that needs no auditor.

    Raises:
        ConfigurationError: Another length.
    """
    if len(secret) != SECRET_BYTES or len(nonce) not in (0, NONCE_BYTES):
        raise ConfigurationError(
            f"challenge: got a secret of {len(secret)} and a nonce of {len(nonce)} "
            f"bytes, want {SECRET_BYTES} and {NONCE_BYTES}, or no nonce"
        )
    return hashlib.sha256(CHALLENGE_LABEL + root.encode() + secret + nonce).digest()


def is_challenged(receipt: Digest, seeds: Iterable[bytes], rate: float) -> bool:
    """Tell whether a receipt must be proven.

    Each seed challenges it with probability ``rate``, independently of the others and
    of every other receipt: k seeds with 1 - (1 - rate)^k.

    Args:
        receipt: Its digest.
        seeds: Of ``challenge_seed``.
        rate: Share that each seed challenges, 0 to 1.

    Raises:
        ConfigurationError: A rate that is no share.
    """
    return any(
        audited(hashlib.sha256(LOT_LABEL + seed + receipt.encode()).digest(), rate)
        for seed in seeds
    )


@dataclass(slots=True)
class _Gathering:
    """An epoch that is open, or closing while receipts are being signed."""

    epoch: Epoch
    ends: datetime
    secret: bytes
    receipts: dict[Digest, int] = field(default_factory=dict)
    awaited: int = 0


class EpochLog:
    """Gathers one scenario's receipts into epochs; for one thread, without I/O.

    A receipt names its epoch, so its place is asked for before it is signed:
    ``join``, sign, ``add``; or ``leave`` where it came to nothing. An epoch whose time
    is over waits for those that joined, so that no receipt names an epoch which does
    not hold it.

    Args:
        seconds: How long an epoch is open.
        draw: Returns 32 random bytes.
        first: Number of the first epoch.
    """

    def __init__(
        self, *, seconds: float, draw: Callable[[], bytes], first: int = 0
    ) -> None:
        self._open_for = timedelta(seconds=seconds)
        self._draw = draw
        self._next = first
        self._gathering: dict[int, _Gathering] = {}

    def join(self, now: datetime) -> Epoch:
        """Return the epoch that a receipt must name which is signed next."""
        for held in self._gathering.values():
            room = len(held.receipts) + held.awaited < MAX_LEAVES
            if now < held.ends and room:
                held.awaited += 1
                return held.epoch
        secret = self._draw()
        epoch = Epoch(
            number=self._next,
            commitment=digest_bytes(secret),
            opened_at=format_time(now),
        )
        self._hold(epoch, secret).awaited = 1
        return epoch

    def add(self, epoch: Epoch, receipt: Digest) -> int:
        """Take in a signed receipt that joined, and return its index.

        Raises:
            ConfigurationError: Nobody joined; the receipt is there already.
        """
        held = self._held(epoch)
        if receipt in held.receipts:
            raise ConfigurationError(f"epoch {epoch.number}: {receipt} stands there")
        self.leave(epoch)
        held.receipts[receipt] = len(held.receipts)
        return held.receipts[receipt]

    def leave(self, epoch: Epoch) -> None:
        """Wait no longer for a receipt that joined.

        Raises:
            ConfigurationError: Nobody joined.
        """
        held = self._held(epoch)
        if not held.awaited:
            raise ConfigurationError(
                f"epoch {epoch.number}: no receipt is awaited.",
                remedy="Call join before the receipt is signed.",
            )
        held.awaited -= 1

    def close(self, now: datetime) -> tuple[ClosedEpoch, ...]:
        """Return the epochs that are over, and forget them; the oldest first.

        An epoch without receipts has nobody to tell: it is forgotten only.
        """
        over = [h for h in self._gathering.values() if h.ends <= now and not h.awaited]
        for held in over:
            del self._gathering[held.epoch.number]
        return tuple(
            ClosedEpoch(
                epoch=held.epoch,
                closed_at=format_time(now),
                secret=held.secret,
                receipts=tuple(held.receipts),
                tree=MerkleTree(held.receipts),
            )
            for held in over
            if held.receipts
        )

    @property
    def is_idle(self) -> bool:
        """Whether no epoch is open here."""
        return not self._gathering

    def restore(
        self, epoch: Epoch, secret: bytes, receipts: Collection[Digest]
    ) -> None:
        """Take up an epoch again from what was stored of it.

        Only under the key that signed its receipts: after a restart an entry has
        another, can sign no root for them, and they fail when their deadline is over.

        Args:
            epoch: As its receipts name it.
            secret: Of the epoch.
            receipts: Digests, in order of arrival.

        Raises:
            VerificationError: Not the epoch's secret.
            ConfigurationError: The epoch is there; a receipt stands twice; too many.
        """
        require_secret(secret, epoch.commitment)
        indexes = {receipt: index for index, receipt in enumerate(receipts)}
        if epoch.number in self._gathering or len(indexes) != len(receipts):
            raise ConfigurationError(
                f"epoch {epoch.number}: it is open, or a receipt stands twice"
            )
        if len(indexes) > MAX_LEAVES:
            raise ConfigurationError(
                f"epoch {epoch.number}: got {len(indexes)} receipts, want at most "
                f"{MAX_LEAVES}"
            )
        self._hold(epoch, secret).receipts = indexes

    def _hold(self, epoch: Epoch, secret: bytes) -> _Gathering:
        if len(secret) != SECRET_BYTES:
            raise ConfigurationError(
                f"epoch secret: got {len(secret)} bytes, want {SECRET_BYTES}"
            )
        opened = parse_time(epoch.opened_at, what="epoch opened_at")
        held = _Gathering(epoch=epoch, ends=opened + self._open_for, secret=secret)
        self._gathering[epoch.number] = held
        self._next = max(self._next, epoch.number + 1)
        return held

    def _held(self, epoch: Epoch) -> _Gathering:
        held = self._gathering.get(epoch.number)
        if held is None or held.epoch != epoch:
            raise ConfigurationError(f"epoch {epoch.number}: is not open here")
        return held
