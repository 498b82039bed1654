"""Links: how proofs state their boundaries, so that two of them can be compared.

    hashed      Poseidon, an instance of the proof. It tells nothing but the hash.
    polycommit  KZG, the first points of the proof, and no rows of the circuit. The
                committed columns are not blinded: every proof tells the value of each
                at one point, one equation of 254 bits in what passes between segments.

The model's own input and output are hashed always: who has the request's root salt
recomputes these. Between segments a salt of ``POLYCOMMIT_SALT_BITS`` keeps the
equations of one run from being solved. That counts unknowns; nobody has proven that it
hides anything. So whoever is to accept such proofs has to say so, in a trust file
(``polycommit_links``).

Source: github.com/zkonduit/ezkl, docs/advanced_security/public_commitments.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LEAST_SALT_BITS = 128
POLYCOMMIT_SALT_BITS = 1024
"""One run tells three equations of 254 bits: 762. A proof made again tells 254 more."""

SPARE_ROWS = 32
"""Of a column that nothing is written to, at least: a commitment is to one column."""


class Link(StrEnum):
    """How the boundaries between segments are stated."""

    HASHED = "hashed"
    POLYCOMMIT = "polycommit"

    @property
    def salt_bits(self) -> int:
        """Of the salt of each boundary, at least."""
        return POLYCOMMIT_SALT_BITS if self is Link.POLYCOMMIT else LEAST_SALT_BITS


@dataclass(frozen=True, slots=True)
class Ends:
    """How one segment's two boundaries are stated.

    Attributes:
        input: Of what goes in: the boundary, and the salt of the next one.
        output: Of what comes out.
    """

    input: Link = Link.HASHED
    output: Link = Link.HASHED

    @classmethod
    def of(cls, link: Link, segment: int, segments: int) -> Ends:
        """Return those of a segment of a chain: the chain's own are hashed."""
        return cls(
            input=link if segment > 0 else Link.HASHED,
            output=link if segment < segments - 1 else Link.HASHED,
        )


HASHED = Ends()
