"""Which replicas are asked: a weighted draw that anybody can repeat. Pure.

1. The seed is SHA-256("bentoml-secure/committee/v1" || r || nonce || request id). The
   entry committed to ``r`` before it saw the caller's nonce, and the caller drew that
   without knowing ``r``: neither chooses the seed alone.
2. Of HMAC-SHA256(seed, infer || segment || name) the first 8 bytes are n, big-endian;
   infer and segment are 4 bytes each, big-endian, the name is UTF-8. The replica's
   lot is u = (2n + 1) / 2^65, which is never 0 and never 1.
3. Replicas stand in the order of -ln(u) / weight, least first, as real numbers. Equal
   ones stand by name. The first k of that order have the distribution of a weighted
   draw without replacement, for every k.

The logarithm of a float is another on another machine, in its last digits. So floats
decide only what lies clearly apart, and decimal arithmetic of 50 digits the rest: the
order is the same everywhere.

Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006,
algorithm A, whose keys u^(1/w) these are, in the order of their logarithms.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact
from itertools import pairwise
from math import log, log1p

from bentoml_secure.consensus.quorum import MAX_WEIGHT
from bentoml_secure.consensus.tally import MAX_COMMITTEE, is_replica_name
from bentoml_secure.digest import NONCE_BYTES, REQUEST_ID_BYTES, is_finite_number
from bentoml_secure.errors import ConfigurationError, Finding, MalformedInputError

SEED_LABEL = b"bentoml-secure/committee/v1"
SEED_BYTES = 32
R_BYTES = 32
MAX_CANDIDATES = MAX_COMMITTEE

_LOT_BITS = 64
_INDEX_BYTES = 4
_MAX_INDEX = 2 ** (8 * _INDEX_BYTES) - 1
# A float's logarithm is a few units in the last place off, 1e-15, on any machine.
_CLEARLY = 1e-9
_EXACT = Context(
    prec=50, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999, traps=[]
)
_WIDE = Context(
    prec=100, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999, traps=[Inexact]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A replica that may be drawn.

    Attributes:
        replica: The replica's name.
        weight: How likely it is drawn against the others, above 0.
    """

    replica: str
    weight: float = 1.0


def seed(r: bytes, nonce: bytes, request_id: bytes) -> bytes:
    """Return the 32 bytes that every draw of a request follows from.

    Args:
        r: The entry's 32 bytes, which it committed to beforehand.
        nonce: The caller's 32 bytes.
        request_id: 16 bytes.

    Raises:
        MalformedInputError: Another length.
    """
    for what, got, want in (
        ("r", r, R_BYTES),
        ("nonce", nonce, NONCE_BYTES),
        ("request id", request_id, REQUEST_ID_BYTES),
    ):
        if len(got) != want:
            raise MalformedInputError(
                f"committee seed {what}: got {len(got)} bytes, want {want}"
            )
    return hashlib.sha256(SEED_LABEL + r + nonce + request_id).digest()


def draw_order(
    seed: bytes,
    candidates: Sequence[Candidate],
    *,
    infer_index: int,
    segment_index: int,
) -> tuple[str, ...]:
    """Return every candidate in the order in which they are asked.

    Seats go to the first of them (``seating.py``). The order of ``candidates`` does
    not matter.

    Args:
        seed: Of ``seed``, 32 bytes.
        candidates: Each replica once.
        infer_index: Which ``infer`` of the request, from 0.
        segment_index: Which segment of the plan, from 0.

    Raises:
        ConfigurationError: Candidates that nothing can be drawn from, see
            ``candidate_faults``; a seed or an index of another size.
    """
    if faults := candidate_faults(candidates):
        raise ConfigurationError("; ".join(map(str, faults)))
    if len(seed) != SEED_BYTES:
        raise ConfigurationError(f"seed: got {len(seed)} bytes, want {SEED_BYTES}")
    task = b""
    for what, index in (("infer", infer_index), ("segment", segment_index)):
        if not 0 <= index <= _MAX_INDEX:
            raise ConfigurationError(
                f"{what} index: got {index}, want 0 to {_MAX_INDEX}"
            )
        task += index.to_bytes(_INDEX_BYTES, "big")
    lots = [(c, _lot(seed, task, c.replica)) for c in candidates]
    rough = sorted((_rough_key(lot, c.weight), c.replica) for c, lot in lots)
    # Written so that infinite keys, of weights next to nothing, are not apart.
    if all(low + _CLEARLY * high < high for (low, _), (high, _) in pairwise(rough)):
        return tuple(name for _, name in rough)
    exact = sorted((_exact_key(lot, c.weight), c.replica) for c, lot in lots)
    return tuple(name for _, name in exact)


def candidate_faults(candidates: Sequence[Candidate]) -> list[Finding]:
    """Return why nothing can be drawn from these candidates, if nothing can."""
    if not 0 < len(candidates) <= MAX_CANDIDATES:
        want = f"1 to {MAX_CANDIDATES}"
        return [Finding("candidates", str(len(candidates)), want)]
    faults = []
    for candidate in candidates:
        name, weight = candidate.replica, candidate.weight
        if not is_replica_name(name):
            faults.append(Finding("replica", repr(name)[:60], "a short printable name"))
        if not (is_finite_number(weight) and 0 < weight <= MAX_WEIGHT):
            want = f"above 0, at most {MAX_WEIGHT:g}"
            faults.append(Finding(f"weight of {name!r:.60}", repr(weight)[:40], want))
    counts = Counter(candidate.replica for candidate in candidates)
    faults += [
        Finding("candidates", f"{name!r:.60} {count} times", "each replica once")
        for name, count in counts.items()
        if count > 1
    ]
    return faults


def _lot(seed: bytes, task: bytes, replica: str) -> int:
    """Return 2n + 1: the lot as a count of 2^-65."""
    mac = hmac.digest(seed, task + replica.encode(), "sha256")
    return 2 * int.from_bytes(mac[: _LOT_BITS // 8], "big") + 1


def _rough_key(lot: int, weight: float) -> float:
    whole = 2 ** (_LOT_BITS + 1)
    # Next to 1 a lot keeps no digits as a float; its distance from 1 does.
    if 2 * lot < whole:
        return -log(lot / whole) / weight
    return -log1p(-((whole - lot) / whole)) / weight


def _exact_key(lot: int, weight: float) -> Decimal:
    # A divisor of two's alone: 65 digits hold the quotient.
    u = _WIDE.divide(Decimal(lot), Decimal(2 ** (_LOT_BITS + 1)))
    return _EXACT.divide(_EXACT.ln(u).copy_negate(), Decimal(weight))
