"""Which requests are audited: exactly the rate, and nobody's choice."""

from __future__ import annotations

import hashlib
import hmac
import math
from math import sqrt

import pytest

from bentoml_secure.audit.sampling import audited
from bentoml_secure.consensus.committee import Candidate, draw_order
from bentoml_secure.errors import ConfigurationError

SEEDS = [hashlib.sha256(str(index).encode()).digest() for index in range(5000)]


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5, 0.9])
def test_the_share_audited_is_the_rate(rate: float) -> None:
    share = sum(audited(seed, rate) for seed in SEEDS) / len(SEEDS)
    assert share == pytest.approx(rate, abs=4 * sqrt(rate * (1 - rate) / len(SEEDS)))


def test_none_at_0_and_every_one_at_1() -> None:
    assert not any(audited(seed, 0) for seed in SEEDS[:500])
    assert all(audited(seed, 1) for seed in SEEDS[:500])


def test_who_is_audited_at_a_rate_is_at_every_higher_one() -> None:
    for seed in SEEDS[:200]:
        drawn = [audited(seed, rate) for rate in (0.0, 0.1, 0.3, 0.7, 1.0)]
        assert drawn == sorted(drawn)


@pytest.mark.parametrize("lot", [0, 1, 2**63, 2**64 - 1])
def test_the_comparison_is_exact(monkeypatch: pytest.MonkeyPatch, lot: int) -> None:
    mac = lot.to_bytes(8, "big") + bytes(24)
    monkeypatch.setattr(hmac, "digest", lambda *_: mac)
    # As a float, 2^64 - 1 over 2^64 is 1: it must be audited at 1 and at nothing less.
    assert audited(bytes(32), 1.0)
    assert not audited(bytes(32), 0.0)
    assert audited(bytes(32), math.nextafter(1.0, 0.0)) is (lot < 2**64 - 2**11)
    assert audited(bytes(32), 2.0**-64) is (lot < 1)
    assert audited(bytes(32), math.ulp(0.0)) is (lot < 1)
    assert audited(bytes(32), 0.5) is (lot < 2**63)


def test_known_answer() -> None:
    mac = hmac.new(SEEDS[0], b"bentoml-secure/audit/v1", hashlib.sha256).digest()
    lot = int.from_bytes(mac[:8], "big") / 2**64
    assert audited(SEEDS[0], lot + 1e-9)
    assert not audited(SEEDS[0], lot - 1e-9)


def test_audits_do_not_depend_on_committees() -> None:
    drawn = [Candidate(replica=name) for name in "abcd"]
    first = [
        draw_order(seed, drawn, infer_index=0, segment_index=0)[0] == "a"
        for seed in SEEDS[:2000]
    ]
    both = sum(a and audited(seed, 0.5) for a, seed in zip(first, SEEDS, strict=False))
    assert both / 2000 == pytest.approx(1 / 8, abs=4 * sqrt(1 / 8 * 7 / 8 / 2000))


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, math.inf])
def test_rates_that_are_no_share_are_refused(rate: float) -> None:
    with pytest.raises(ConfigurationError, match=r"audit rate: got .*, want 0 to 1"):
        audited(bytes(32), rate)


def test_seeds_have_one_length() -> None:
    with pytest.raises(ConfigurationError, match="seed: got 31 bytes, want 32"):
        audited(bytes(31), 0.5)
