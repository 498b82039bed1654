"""Advice on texts does not depend on their order, and no text breaks it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.consensus.semantic_similarity import (
    SIMILAR,
    SimilarityAdvice,
    advise_on_similarity,
)
from bentoml_secure.consensus.semantic_vetoes import contrasts, parse_traits
from bentoml_secure.tensors import Array

WORDS = ["Paris", "paris", "is", "not", "safe", "unsafe", "5", "6", "The", ".", "isn't"]
SENTENCE = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
TEXTS = st.lists(SENTENCE | st.text(max_size=12), min_size=2, max_size=7)


def embed(texts: Sequence[str]) -> Array:
    """Return vectors that depend on the text alone, many of them close."""
    seeds = [hashlib.sha256(repr(text).encode()).digest() for text in texts]
    return np.array([[9.0, seed[0] % 8, seed[1] % 8] for seed in seeds])


def said(texts: Sequence[str], advice: SimilarityAdvice) -> Any:
    """Return the advice by what the texts say instead of where they stand."""
    clusters = {tuple(sorted(texts[i] for i in c)) for c in advice.clusters}
    vetoes = set()
    for v in advice.vetoes:
        sides = (texts[v.first], v.only_first), (texts[v.second], v.only_second)
        vetoes.add((v.kind, *sorted(sides)))
    return clusters, advice.entropy, texts[advice.typical], advice.doubts, vetoes


@given(TEXTS, st.randoms(use_true_random=False))
def test_the_order_of_texts_is_irrelevant(texts: list[str], random: Any) -> None:
    before = said(texts, advise_on_similarity(texts, embed))
    random.shuffle(texts)
    assert said(texts, advise_on_similarity(texts, embed)) == before


@given(TEXTS)
def test_every_pair_of_a_cluster_is_similar_and_not_vetoed(texts: list[str]) -> None:
    advice = advise_on_similarity(texts, embed)
    assert sorted(i for c in advice.clusters for i in c) == list(range(len(texts)))
    assert 0 <= advice.entropy <= 1
    assert advice.typical in advice.clusters[0]
    sizes = [len(cluster) for cluster in advice.clusters]
    assert sizes == sorted(sizes, reverse=True)
    vectors = embed(texts)
    for cluster in advice.clusters:
        for i, j in combinations(cluster, 2):
            a, b = vectors[i], vectors[j]
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert cosine >= SIMILAR - 1e-9
            assert contrasts(parse_traits(texts[i]), parse_traits(texts[j])) == []


@given(st.text(max_size=60), st.text(max_size=60))
def test_traits_of_any_text(a: str, b: str) -> None:
    left, right = parse_traits(a), parse_traits(b)
    assert contrasts(left, left) == []
    swapped = [(kind, theirs, ours) for kind, ours, theirs in contrasts(right, left)]
    assert contrasts(left, right) == swapped
