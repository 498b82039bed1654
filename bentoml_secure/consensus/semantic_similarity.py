"""Advice on generated texts: do they seem to say the same? Never a vote.

Texts are clustered by the cosine of their embeddings, complete-link: every pair inside
a cluster is similar enough, and no pair differs in numbers, negation or names
(``semantic_vetoes``). How the texts spread over clusters is a heuristic for texts that
a model makes up: asked the same several times, it tends to repeat what it knows and to
vary what it invents.

It is not a rule of consensus, has no distance and decides no quorum:

- All replicas of one model agree on the same wrong answer. Agreement says that the
  model is consistent, not that it is right, nor that anyone ran it.
- Embeddings see topics. Without the vetoes "is not safe" and "is safe" are one cluster;
  with them, antonyms, units and roles still pass.
- Paraphrases are split: "Paris." does not name France, and is no match for the sentence
  that does.

What verifies text is the model's numbers: token ids of greedy decoding and
``token_agreement`` or ``jensen_shannon_of_logits`` on its logits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

import numpy as np

from bentoml_secure.consensus.semantic_vetoes import (
    Traits,
    VetoKind,
    contrasts,
    parse_traits,
)
from bentoml_secure.consensus.tally import printable
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.tensors import Array

Embed = Callable[[Sequence[str]], Array]
"""float[texts, dimensions] of texts: distinct ones, in sorted order."""

MAX_TEXTS = 32
MAX_TEXT_CHARACTERS = 1 << 14

SIMILAR = 0.85
"""Cosine from which all-MiniLM-L6-v2 puts paraphrases of a short sentence."""

SCATTERED_ENTROPY = 0.5

_SHOWN_WORDS = 8
_SHOWN_CHARACTERS = 40


class Doubt(StrEnum):
    """Why the texts may not be trusted as one answer."""

    NO_MAJORITY = "no-majority"
    SCATTERED = "scattered"
    VETOED = "vetoed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Veto:
    """Two texts that are similar, and kept apart.

    Attributes:
        first: Place of a text.
        second: Place of the other, which is later.
        kind: In what they differ.
        only_first: What only the first has, in short and printable.
        only_second: What only the second has.
    """

    first: int
    second: int
    kind: VetoKind
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityAdvice:
    """How texts cluster. Advice for who reads them; no quorum follows from it.

    Attributes:
        clusters: Places of the texts in each, the largest cluster first.
        entropy: Of the clusters' shares: 0 where all texts are together, 1 where each
            is alone.
        typical: Place of the text most similar to the others of the largest cluster.
        doubts: Reasons for doubt, in alphabetical order. None is no proof.
        vetoes: Pairs that similarity alone would have put together.
    """

    clusters: tuple[tuple[int, ...], ...]
    entropy: float
    typical: int
    doubts: tuple[Doubt, ...]
    vetoes: tuple[Veto, ...]


def advise_on_similarity(
    texts: Sequence[str], embed: Embed, *, similar: float = SIMILAR
) -> SimilarityAdvice:
    """Cluster texts by what they seem to say. The order of texts does not matter.

    Args:
        texts: Answers of replicas, or of one model asked several times.
        embed: A model of meaning, trusted and the caller's own.
        similar: Cosine from which two texts may be together; depends on the model.

    Raises:
        ConfigurationError: Fewer than two texts, a threshold out of range, or
            embeddings that are not finite vectors, one of each text.
        MalformedInputError: Too many texts, or one that is too long.
    """
    _require_fit(texts, similar)
    count = Counter(texts)
    distinct = sorted(count)
    cosines = _cosines(_embeddings(distinct, embed))
    traits = [parse_traits(text) for text in distinct]
    vetoes = _vetoes(cosines, traits, similar)
    groups = _clusters(cosines, {(v.first, v.second) for v in vetoes}, similar)
    sizes = [sum(count[distinct[item]] for item in group) for group in groups]
    order = sorted(range(len(groups)), key=lambda i: (-sizes[i], groups[i]))
    shares = [size / len(texts) for size in sizes]
    entropy = -math.fsum(p * math.log(p) for p in shares) / math.log(len(texts))
    places = [_places(texts, distinct, groups[i]) for i in order]
    return SimilarityAdvice(
        clusters=tuple(places),
        entropy=min(1.0, abs(entropy)),
        typical=_typical(texts, distinct, cosines, groups[order[0]]),
        doubts=_doubts(len(places[0]), len(texts), entropy, vetoes),
        vetoes=_placed(vetoes, texts, distinct),
    )


def _require_fit(texts: Sequence[str], similar: float) -> None:
    if len(texts) < 2 or not 0 < similar <= 1:
        raise ConfigurationError(
            f"semantic similarity: got {len(texts)} texts and threshold {similar}, "
            "want two or more, and above 0 to 1"
        )
    if len(texts) > MAX_TEXTS or max(map(len, texts)) > MAX_TEXT_CHARACTERS:
        raise MalformedInputError(
            f"semantic similarity: got {len(texts)} texts of up to "
            f"{max(map(len, texts))} characters, want at most {MAX_TEXTS} of "
            f"{MAX_TEXT_CHARACTERS}"
        )


def _embeddings(texts: Sequence[str], embed: Embed) -> Array:
    vectors = np.asarray(embed(texts), np.float64)
    if (
        vectors.ndim != 2
        or len(vectors) != len(texts)
        or not np.isfinite(vectors).all()
    ):
        raise ConfigurationError(
            f"embeddings: got shape {vectors.shape}, want a finite vector of each of "
            f"{len(texts)} texts"
        )
    lengths = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    if not (lengths > 0).all():
        raise ConfigurationError("embeddings: got a vector of length 0, want none")
    return np.asarray(vectors / lengths)


def _cosines(vectors: Array) -> Array:
    # Not a product of matrices: BLAS would wake threads for a few numbers.
    cosines = np.eye(len(vectors))
    for i, j in combinations(range(len(vectors)), 2):
        cosines[i, j] = cosines[j, i] = float((vectors[i] * vectors[j]).sum())
    return cosines


def _vetoes(cosines: Array, traits: Sequence[Traits], similar: float) -> list[Veto]:
    return [
        Veto(
            first=i,
            second=j,
            kind=kind,
            only_first=_shown(ours),
            only_second=_shown(theirs),
        )
        for i, j in combinations(range(len(traits)), 2)
        if cosines[i, j] >= similar
        for kind, ours, theirs in contrasts(traits[i], traits[j])
    ]


def _shown(words: frozenset[str]) -> tuple[str, ...]:
    return tuple(
        printable(word[:_SHOWN_CHARACTERS]) for word in sorted(words)[:_SHOWN_WORDS]
    )


def _clusters(
    cosines: Array, apart: set[tuple[int, int]], similar: float
) -> list[tuple[int, ...]]:
    """Merge the two closest clusters while every pair of both is similar."""
    links = np.array(cosines)
    for i, j in apart:
        links[i, j] = links[j, i] = -np.inf
    clusters: list[tuple[int, ...]] = [(item,) for item in range(len(links))]
    while len(clusters) > 1:
        link, a, b = max(
            (
                (min(links[i, j] for i in a for j in b), a, b)
                for a, b in combinations(clusters, 2)
            ),
            # Of equally close ones the first, in the order of their texts.
            key=lambda candidate: (candidate[0], [-i for i in sum(candidate[1:], ())]),
        )
        if link < similar:
            break
        clusters = [c for c in clusters if c not in (a, b)]
        clusters.append(tuple(sorted(a + b)))
    return clusters


def _places(
    texts: Sequence[str], distinct: Sequence[str], group: Sequence[int]
) -> tuple[int, ...]:
    said = {distinct[item] for item in group}
    return tuple(place for place, text in enumerate(texts) if text in said)


def _typical(
    texts: Sequence[str],
    distinct: Sequence[str],
    cosines: Array,
    group: Sequence[int],
) -> int:
    count = Counter(texts)
    weights = {item: count[distinct[item]] for item in group}
    closeness = {
        item: math.fsum(cosines[item, other] * n for other, n in weights.items())
        for item in group
    }
    best = max(group, key=lambda item: (closeness[item], -item))
    return list(texts).index(distinct[best])


def _doubts(
    largest: int, count: int, entropy: float, vetoes: Sequence[Veto]
) -> tuple[Doubt, ...]:
    found = {
        Doubt.NO_MAJORITY: 2 * largest <= count,
        Doubt.SCATTERED: entropy > SCATTERED_ENTROPY,
        Doubt.VETOED: bool(vetoes),
    }
    return tuple(doubt for doubt, holds in found.items() if holds)


def _placed(
    vetoes: Sequence[Veto], texts: Sequence[str], distinct: Sequence[str]
) -> tuple[Veto, ...]:
    """Return vetoes by places of the texts that were given, in their order."""
    places = [list(texts).index(text) for text in distinct]
    placed = []
    for veto in vetoes:
        sides = [
            (places[veto.first], veto.only_first),
            (places[veto.second], veto.only_second),
        ]
        (first, ours), (second, theirs) = sorted(sides)
        placed.append(
            Veto(
                first=first,
                second=second,
                kind=veto.kind,
                only_first=ours,
                only_second=theirs,
            )
        )
    return tuple(sorted(placed, key=lambda v: (v.first, v.second, v.kind)))
