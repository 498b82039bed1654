"""Chains: replicas of all segments in a row, compared at the end only.

In mode "end-to-end" the n-th replica drawn for each segment hands its output to the
n-th drawn for the next, and only what comes out of the last segments is compared. A
chain is named by its replica of the last segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

from bentoml_secure.consensus.committee import Candidate, draw_order
from bentoml_secure.consensus.reputation import capped
from bentoml_secure.consensus.tally import Tally
from bentoml_secure.receipts.strict import fields, items, mapping, numbers, text
from bentoml_secure.signing import Envelope
from bentoml_secure.split.plan import Plan
from bentoml_secure.statements import parse_statement_envelope

MAX_SEGMENTS = 256
MAX_REPLICAS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainsRecord:
    """One run of the whole plan, compared at its end.

    Attributes:
        weights: Of every replica by name, per segment, as the draws were weighted.
        tally: Of the chains, each by the name of its last replica.
        statements: Of every replica of a chain that voted, per segment, by name.
    """

    weights: tuple[Mapping[str, float], ...]
    tally: Tally
    statements: tuple[Mapping[str, Envelope], ...]

    def to_json(self) -> dict[str, Any]:
        """Return an infer's ``chains``."""
        return {
            "weights": [dict(weights) for weights in self.weights],
            "tally": self.tally.to_json(),
            "statements": [
                {name: envelope.to_json() for name, envelope in row.items()}
                for row in self.statements
            ],
        }

    @classmethod
    def from_json(cls, document: object, *, what: str) -> ChainsRecord:
        """Parse an infer's ``chains``.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        got = fields(document, cls.__slots__, what=what)
        weights = items(got["weights"], what=f"{what} weights", most=MAX_SEGMENTS)
        rows = items(got["statements"], what=f"{what} statements", most=MAX_SEGMENTS)
        return cls(
            weights=tuple(numbers(row, what=f"{what} weights") for row in weights),
            tally=Tally.from_json(got["tally"], what=f"{what} tally"),
            statements=tuple(
                statements_from_json(row, what=f"{what} statements") for row in rows
            ),
        )


def statements_from_json(document: object, *, what: str) -> dict[str, Envelope]:
    """Parse signed statements by replica.

    Raises:
        MalformedInputError: Too many, or one of another form.
    """
    got = mapping(document, what=what, most=MAX_REPLICAS)
    return {
        text(name, what=f"{what} replica"): parse_statement_envelope(envelope)
        for name, envelope in got.items()
    }


def chain_tolerance(plan: Plan) -> float:
    """Return the tolerance at a chain's end: deviations add up along it."""
    return fsum(segment.tolerance for segment in plan.segments)


def draw_chains(
    seed: bytes, weights: Sequence[Mapping[str, float]], *, infer_index: int, size: int
) -> list[tuple[str, ...]]:
    """Return the chains of a draw: the replica of each segment, in the plan's order.

    Args:
        seed: Of the request.
        weights: Of every replica by name, per segment.
        infer_index: Which ``infer`` of the request, from 0.
        size: How many chains.
    """
    orders = [
        draw_order(
            seed,
            [Candidate(replica=name, weight=weight) for name, weight in row.items()],
            infer_index=infer_index,
            segment_index=index,
        )
        for index, row in enumerate(weights)
    ]
    return list(zip(*orders, strict=False))[:size]


def weigh_chains(
    chains: Sequence[Sequence[str]], weights: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Return the weight of each chain by name: of its least replica, none too heavy."""
    least = {
        chain[-1]: min(weights[index][name] for index, name in enumerate(chain))
        for chain in chains
    }
    return capped(least)
