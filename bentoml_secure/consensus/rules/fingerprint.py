"""Fingerprint: the largest activations, as TOPLOC compares them.

Each floating-point tensor is taken in groups of 32 rows along its last axis (tokens'
hidden states), of more where they are narrow: at least GROUP_ELEMENTS entries. Of each
group the 128 entries of largest magnitude, rounded to bfloat16, are compared with those
of the other answer, both ways. An entry that is not among the other's 128 counts as a
wrong exponent, where a fingerprint of 258 bytes gives bits at random.

d = max over groups and both ways of
    max(exponent mismatches / 38 of 128, mantissa mean / 10, mantissa median / 8)

so that a tolerance of 1 is TOPLOC's published one, which is for bfloat16 on GPUs. What
that lets pass depends on the model; calibrate instead.

Blind to everything under the largest: of 32 x 4096 entries it looks at 128, and who
knows the rule can alter the rest at a distance of 0. Blind to what bfloat16 rounds
away: weights rounded to float16 look nearly honest. It finds the lazy, not who lies
with care; use it where bfloat16 noise leaves ``within_tolerance`` nothing to see, and
for audits against a recorded fingerprint. Tensors that are not floating point must be
equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from bentoml_secure.consensus.rules.pairing import Pair, comparable, peak
from bentoml_secure.consensus.rules.toploc import (
    MAX_MAGNITUDE,
    Difference,
    bfloat16_bits,
    differ,
    largest,
)
from bentoml_secure.tensors import Array

GROUP_ROWS = 32
GROUP_ELEMENTS = 1 << 12
"""Narrow rows are taken together, or their groups would cost more than they tell."""


class LargestActivations:
    """Severity of the worst group, 1 being the most that TOPLOC's thresholds accept."""

    def distance(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
        """Return the severity of the worst group, from 0 to 16; see the module.

        None where names, dtypes or shapes differ, anything is NaN, infinite or beyond
        bfloat16, or tensors that are not floating point differ.
        """
        pairs = comparable(a, b)
        if pairs is None or any(peak(x) > MAX_MAGNITUDE for p in pairs for x in p):
            return None
        severities = (
            difference.severity
            for pair in pairs
            for group in _groups(pair)
            for difference in _differences(group)
        )
        return max(severities, default=0.0)


def _groups(pair: Pair) -> Iterator[Pair]:
    width = pair[0].shape[-1] if pair[0].ndim else 1
    elements = max(GROUP_ROWS, GROUP_ELEMENTS // width) * width
    left, right = pair[0].reshape(-1), pair[1].reshape(-1)
    for start in range(0, left.size, elements):
        piece = slice(start, start + elements)
        yield left[piece], right[piece]


def _differences(group: Pair) -> tuple[Difference, Difference]:
    places = largest(group[0]), largest(group[1])
    bits = [bfloat16_bits(side[places[0]]) for side in group]
    there = differ(bits[1], bits[0], np.isin(places[0], places[1]))
    bits = [bfloat16_bits(side[places[1]]) for side in group]
    back = differ(bits[0], bits[1], np.isin(places[1], places[0]))
    return there, back
