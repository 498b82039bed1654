"""Epochs and challenges: order, shares, and what grinding and colluding bring."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from itertools import count
from math import sqrt

import pytest

from bentoml_secure.audit.challenge import (
    Epoch,
    EpochLog,
    challenge_seed,
    is_challenged,
    require_secret,
)
from bentoml_secure.audit.merkle import MerkleTree
from bentoml_secure.audit.planning import evasion
from bentoml_secure.digest import Digest, digest_bytes, digest_json
from bentoml_secure.errors import ConfigurationError, VerificationError

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
RECEIPTS = [digest_json(index) for index in range(4000)]
SECRET = bytes(range(32))


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def random(label: object) -> bytes:
    return hashlib.sha256(repr(label).encode()).digest()


@pytest.fixture
def log() -> EpochLog:
    numbers = count()
    return EpochLog(seconds=60, draw=lambda: random(next(numbers)))


def seed_of(receipts: list[Digest], secret: bytes, nonce: bytes = b"") -> bytes:
    """As if the root document said nothing but the root."""
    return challenge_seed(digest_json(MerkleTree(receipts).root), secret, nonce)


def test_an_epoch_gathers_what_joins_it(log: EpochLog) -> None:
    epochs = [log.join(later(at)) for at in (0, 1, 59.9)]
    assert [log.add(e, r) for e, r in zip(epochs, RECEIPTS, strict=False)] == [0, 1, 2]
    assert len(set(epochs)) == 1
    assert log.close(later(59.9)) == ()
    (closed,) = log.close(later(60))
    assert closed.receipts == tuple(RECEIPTS[:3])
    assert closed.tree.root == MerkleTree(RECEIPTS[:3]).root
    assert closed.epoch == epochs[0]
    assert closed.epoch.commitment == digest_bytes(closed.secret)
    assert log.close(later(120)) == ()


def test_who_joins_later_is_in_the_next_epoch(log: EpochLog) -> None:
    first, second = log.join(NOW), log.join(later(60))
    assert (first.number, second.number) == (0, 1)
    assert first.commitment != second.commitment
    assert second.opened_at > first.opened_at


def test_an_epoch_waits_for_who_joined(log: EpochLog) -> None:
    epoch, gone = log.join(NOW), log.join(NOW)
    assert log.close(later(61)) == ()
    log.leave(gone)
    assert log.close(later(62)) == ()
    log.add(epoch, RECEIPTS[0])
    assert len(log.close(later(63))) == 1


def test_an_epoch_without_receipts_is_forgotten(log: EpochLog) -> None:
    epoch = log.join(NOW)
    log.leave(epoch)
    assert log.close(later(60)) == ()
    with pytest.raises(ConfigurationError, match="epoch 0: is not open here"):
        log.add(epoch, RECEIPTS[0])


def test_no_receipt_is_added_to_a_closed_epoch(log: EpochLog) -> None:
    epoch = log.join(NOW)
    log.add(epoch, RECEIPTS[0])
    log.close(later(60))
    with pytest.raises(ConfigurationError, match="epoch 0: is not open here"):
        log.add(epoch, RECEIPTS[1])


def test_receipts_are_added_once_each_and_after_joining(log: EpochLog) -> None:
    epoch = log.join(NOW)
    log.add(epoch, RECEIPTS[0])
    with pytest.raises(ConfigurationError, match="no receipt is awaited"):
        log.add(epoch, RECEIPTS[1])
    log.join(NOW)
    with pytest.raises(ConfigurationError, match="stands there"):
        log.add(epoch, RECEIPTS[0])


def test_a_full_epoch_makes_way(log: EpochLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bentoml_secure.audit.challenge.MAX_LEAVES", 2)
    assert [log.join(NOW).number for _ in range(5)] == [0, 0, 1, 1, 2]


def test_an_epoch_is_taken_up_again_from_what_was_stored(log: EpochLog) -> None:
    epoch = Epoch(
        number=7,
        commitment=digest_bytes(SECRET),
        opened_at="2026-06-01T12:00:00.000Z",
    )
    log.restore(epoch, SECRET, RECEIPTS[:3])
    assert log.join(later(1)) == epoch
    assert log.add(epoch, RECEIPTS[3]) == 3
    (closed,) = log.close(later(60))
    assert closed.tree.root == MerkleTree(RECEIPTS[:4]).root
    assert log.join(later(61)).number == 8


def test_what_was_not_stored_so_is_not_taken_up(log: EpochLog) -> None:
    epoch = Epoch(
        number=0,
        commitment=digest_bytes(SECRET),
        opened_at="2026-06-01T12:00:00.000Z",
    )
    with pytest.raises(VerificationError, match="epoch secret: got one of digest"):
        log.restore(epoch, bytes(32), RECEIPTS[:1])
    with pytest.raises(ConfigurationError, match="a receipt stands twice"):
        log.restore(epoch, SECRET, [RECEIPTS[0], RECEIPTS[0]])
    log.restore(epoch, SECRET, RECEIPTS[:1])
    with pytest.raises(ConfigurationError, match="it is open"):
        log.restore(epoch, SECRET, RECEIPTS[:1])


def test_too_many_receipts_are_not_taken_up(
    log: EpochLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bentoml_secure.audit.challenge.MAX_LEAVES", 2)
    epoch = Epoch(
        number=0,
        commitment=digest_bytes(SECRET),
        opened_at="2026-06-01T12:00:00.000Z",
    )
    with pytest.raises(ConfigurationError, match="got 3 receipts, want at most 2"):
        log.restore(epoch, SECRET, RECEIPTS[:3])


def test_secrets_have_one_length() -> None:
    with pytest.raises(ConfigurationError, match="epoch secret: got 8 bytes, want 32"):
        EpochLog(seconds=1, draw=lambda: bytes(8)).join(NOW)
    with pytest.raises(ConfigurationError, match="a secret of 31 and a nonce of 0"):
        challenge_seed(RECEIPTS[0], bytes(31))
    with pytest.raises(ConfigurationError, match="a secret of 32 and a nonce of 16"):
        challenge_seed(RECEIPTS[0], SECRET, bytes(16))
    with pytest.raises(VerificationError, match="epoch secret"):
        require_secret(b"", digest_bytes(b""))
    require_secret(SECRET, digest_bytes(SECRET))


def test_a_seed_and_a_lot_by_hand() -> None:
    root = digest_json("a root")
    seed = hashlib.sha256(
        b"bentoml-secure/challenge/v1" + root.encode() + SECRET + bytes(32)
    ).digest()
    assert challenge_seed(root, SECRET, bytes(32)) == seed
    lot = hashlib.sha256(
        b"bentoml-secure/challenge-lot/v1" + seed + RECEIPTS[0].encode()
    ).digest()
    mac = hmac.digest(lot, b"bentoml-secure/audit/v1", "sha256")
    share = int.from_bytes(mac[:8], "big") / 2**64
    assert is_challenged(RECEIPTS[0], [seed], min(1.0, share + 1e-9))
    assert not is_challenged(RECEIPTS[0], [seed], share - 1e-9)


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_the_share_challenged_follows_the_number_of_draws(draws: int) -> None:
    seeds = [seed_of(RECEIPTS[:9], SECRET, random(draw)) for draw in range(draws)]
    share = sum(is_challenged(r, seeds, 0.1) for r in RECEIPTS) / len(RECEIPTS)
    want = 1 - 0.9**draws
    assert share == pytest.approx(want, abs=4 * sqrt(want * (1 - want) / len(RECEIPTS)))


def test_another_nonce_only_ever_adds_challenges() -> None:
    seeds = [seed_of(RECEIPTS[:9], SECRET, random(draw)) for draw in range(4)]
    for receipt in RECEIPTS[:500]:
        drawn = [is_challenged(receipt, seeds[:n], 0.2) for n in range(5)]
        assert drawn == sorted(drawn)


def test_cheats_are_caught_as_often_as_the_formula_says() -> None:
    """1 - (1 - q)^m for m cheats, however they are spread over epochs."""
    rate, cheats, trials = 0.1, 12, 800
    caught = sum(
        any(
            is_challenged(
                random_receipt((trial, cheat)),
                [challenge_seed(RECEIPTS[cheat % 3], random(trial))],
                rate,
            )
            for cheat in range(cheats)
        )
        for trial in range(trials)
    )
    want = 1 - (1 - rate) ** cheats
    assert caught / trials == pytest.approx(want, abs=4 * sqrt(want * (1 - want) / 800))


def random_receipt(label: object) -> Digest:
    return digest_json(repr(label))


def test_an_entry_that_draws_its_secret_last_would_never_be_challenged() -> None:
    """Why receipts name the secret's digest: with it open, one try in two suits."""
    cheated = RECEIPTS[:3]
    for tries in count(1):
        seed = seed_of(RECEIPTS[:9], random(tries))
        if not any(is_challenged(r, [seed], 0.5) for r in cheated):
            break
    assert tries < 200
    # The receipts named another, so this one is shown in vain.
    with pytest.raises(VerificationError, match="epoch secret"):
        require_secret(random(tries), digest_bytes(SECRET))


def test_an_entry_that_knows_its_secret_arranges_the_leaves() -> None:
    """Why auditors send nonces: one that fits no arrangement undoes the choice."""
    cheated = RECEIPTS[0]
    for tries in count(1):
        leaves = [*RECEIPTS[:9], random_receipt(tries)]
        if not is_challenged(cheated, [seed_of(leaves, SECRET)], 0.5):
            break
    share = sum(
        is_challenged(cheated, [seed_of(leaves, SECRET, random(draw))], 0.5)
        for draw in range(400)
    )
    assert share / 400 == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("rate", "cheats", "tries"), [(0.5, 3, 1), (0.5, 3, 8), (0.2, 4, 3), (0.1, 1, 2)]
)
def test_grinding_brings_what_the_formula_says(
    rate: float, cheats: int, tries: int
) -> None:
    trials, evaded = 1500, 0
    for trial in range(trials):
        evaded += any(
            not any(
                is_challenged(receipt, [random((trial, attempt))], rate)
                for receipt in RECEIPTS[:cheats]
            )
            for attempt in range(tries)
        )
    want = evasion(rate=rate, cheats=cheats, tries=tries)
    spread = 4 * sqrt(max(want * (1 - want), 1e-4) / trials)
    assert evaded / trials == pytest.approx(want, abs=spread)
    assert want <= tries * (1 - rate) ** cheats + 1e-12
