"""Top k: the share of rows whose k largest entries are not the same set.

The last axis has a score of every class or token: logits or probabilities, for only
their order matters. Entries that both answers have nearly tied may stand on either
side: a row counts where one answer puts an entry of its own set above one of the
other's by more than 2 x TIE x min(rms(a), rms(b)), which is what deviations within the
usual tolerance of ``within_tolerance`` can do. Rows of fewer than ten entries compare
half as many as they have.

Blind to the order within the k largest, to every score but for that order, and to the
size of a deviation: a row counts as one, however wrong. A tolerance of 0 demands every
row; 0.01 forgives one in a hundred, whichever that is. Use it for retrieval and
recommendation, where a caller is shown a set. Rows of fewer than two entries, and
tensors that are not floating point, must be equal.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bentoml_secure.consensus.rules.pairing import (
    Pair,
    blocks,
    comparable,
    root_mean_square,
    rows_of,
)
from bentoml_secure.consensus.rules.ranking import swap_gaps
from bentoml_secure.tensors import Array

TIE = 2e-5
"""Deviation, by the smaller root mean square, that two honest answers may have."""


class TopFive:
    """Share of rows, from 0 to 1, whose five largest entries differ beyond ties."""

    COUNT = 5

    def distance(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> float | None:
        """Return the largest share of any tensor; see the module.

        None where names, dtypes or shapes differ, anything is NaN or infinite, or
        tensors that are not floating point or have no rows differ.
        """
        pairs = comparable(a, b)
        if pairs is None:
            return None
        shares = [self._share(pair) for pair in pairs]
        known = [share for share in shares if share is not None]
        return max(known, default=0.0) if len(known) == len(shares) else None

    def _share(self, pair: Pair) -> float | None:
        rows = rows_of(pair)
        if rows is None:
            return 0.0 if np.array_equal(*pair) else None
        margin = 2 * TIE * min(map(root_mean_square, pair))
        count = min(self.COUNT, rows[0].shape[1] // 2)
        differ = sum(
            int(np.count_nonzero(swap_gaps(block, count) > margin))
            for block in blocks(rows)
        )
        return differ / len(rows[0])
