"""Advice on texts: with embeddings by hand, and with a trained encoder's.

What it cannot see is held here too: a test that passes shows the limit.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bentoml_secure
from bentoml_secure.consensus import semantic_similarity
from bentoml_secure.consensus.rules import RULES, load_rule
from bentoml_secure.consensus.semantic_similarity import (
    MAX_TEXT_CHARACTERS,
    MAX_TEXTS,
    Doubt,
    SimilarityAdvice,
    Veto,
    advise_on_similarity,
)
from bentoml_secure.consensus.semantic_vetoes import VetoKind, contrasts, parse_traits
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnknownKindError,
)
from bentoml_secure.tensors import Array

PACKAGE = Path(bentoml_secure.__file__).parent


def at_angles(**degrees: float) -> Callable[[Sequence[str]], Array]:
    """Return an embedding that puts each text at an angle."""

    def embed(texts: Sequence[str]) -> Array:
        turns = np.radians([degrees[text] for text in texts])
        return np.stack([np.cos(turns), np.sin(turns)], axis=1) * 7

    return embed


def nearby(texts: Sequence[str]) -> Array:
    """Embed whatever it is at the same place: only vetoes keep texts apart."""
    return np.ones((len(texts), 3), np.float32)


@pytest.mark.parametrize(
    ("texts", "clusters", "entropy", "typical", "doubts"),
    [
        ("aaa", [(0, 1, 2)], 0.0, 0, []),
        ("aab", [(0, 1, 2)], 0.0, 0, []),
        ("axa", [(0, 2), (1,)], 0.579, 0, ["scattered"]),
        ("ax", [(0,), (1,)], 1.0, 0, ["no-majority", "scattered"]),
        ("aaxx", [(0, 1), (2, 3)], 0.5, 0, ["no-majority"]),
        # b is near both, a and c are apart: complete-link takes the closer two.
        ("abc", [(0, 1), (2,)], 0.579, 0, ["scattered"]),
        ("cba", [(1, 2), (0,)], 0.579, 2, ["scattered"]),
        ("abbbb", [(0, 1, 2, 3, 4)], 0.0, 1, []),
        ("aaaaaaaax", [tuple(range(8)), (8,)], 0.159, 0, []),
    ],
)
def test_clusters_by_hand(
    texts: str,
    clusters: list[tuple[int, ...]],
    entropy: float,
    typical: int,
    doubts: list[str],
) -> None:
    embed = at_angles(a=0, b=25, c=55, x=90)
    advice = advise_on_similarity(list(texts), embed)
    assert advice.clusters == tuple(clusters)
    assert advice.entropy == pytest.approx(entropy, abs=5e-4)
    assert advice.typical == typical
    assert advice.doubts == tuple(map(Doubt, doubts))
    assert advice.vetoes == ()


def test_entropy_is_that_of_the_shares() -> None:
    advice = advise_on_similarity(list("aaax"), at_angles(a=0, x=90))
    want = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert advice.entropy == pytest.approx(want)


@pytest.mark.parametrize(
    ("a", "b", "kind", "only_a", "only_b"),
    [
        ("It is 120 m long.", "It is 210 m long.", "numbers", {"120"}, {"210"}),
        ("It costs 1,000.50", "It costs 1000.5", None, set(), set()),
        ("Room 007", "Room 7", None, set(), set()),
        ("It is two.", "It is 2.", None, set(), set()),
        ("It was -5 then.", "It was 5 then.", "numbers", {"-5"}, {"5"}),
        ("It was \u22125 then.", "It was -5 then.", None, set(), set()),
        ("It is -0", "It is 0", None, set(), set()),
        ("Pages 3-5", "Pages 3 to 5", None, set(), set()),
        ("Take v2", "Take v3", "numbers", {"2"}, {"3"}),
        ("It has \u0661\u0662", "It has 12", None, set(), set()),
        ("It has 9" + "0" * 9000, "It has 8", "numbers", {"9" + "0" * 9000}, {"8"}),
        ("It is 1.2.3", "It is 1.2", "numbers", {"3"}, set()),
        ("It is safe.", "It is not safe.", "negations", set(), {"not"}),
        ("It isn't safe.", "It is not safe.", None, set(), set()),
        ("It isn\u2019t safe.", "It cannot be safe.", None, set(), set()),
        ("With salt.", "Without salt.", "negations", set(), {"without"}),
        ("They never did.", "They did.", "negations", {"never"}, set()),
        ("In Paris.", "In Lyon.", "names", {"paris"}, {"lyon"}),
        ("Paris is it.", "It is Paris.", None, set(), set()),
        ("Paris's mayor", "The mayor of PARIS", None, set(), set()),
        ("The city is old.", "A city is old.", None, set(), set()),
        ("I'd say so, and I mean it.", "one would say so, and mean it.", None, (), ()),
        ("Don't. Yes.", "don't. yes.", None, set(), set()),
        # A word that the text has in lower case too is no name where it only begins.
        ("Water, or more water", "water, or more water", None, set(), set()),
        ("See: Water", "See: water", "names", {"water"}, set()),
        ("It is safe.", "It is unsafe.", "opposites", set(), {"unsafe"}),
        ("It is legal.", "It is illegal.", "opposites", set(), {"illegal"}),
        ("inside", "side", "opposites", {"inside"}, set()),
        ("safe, not unsafe", "unsafe, not safe", None, set(), set()),
        ("", "", None, set(), set()),
    ],
)
def test_vetoes(
    a: str, b: str, kind: str | None, only_a: set[str], only_b: set[str]
) -> None:
    found = contrasts(parse_traits(a), parse_traits(b))
    want = [(VetoKind(kind), frozenset(only_a), frozenset(only_b))] if kind else []
    assert found == want
    swapped = contrasts(parse_traits(b), parse_traits(a))
    assert swapped == [(kind, theirs, ours) for kind, ours, theirs in found]


def test_a_veto_keeps_similar_texts_apart_and_says_why() -> None:
    texts = ["It is 5 m.", "It is 4 m.", "It is not 5 m.", "It is 5 m."]
    advice = advise_on_similarity(texts, nearby)
    assert advice.clusters == ((0, 3), (1,), (2,))
    assert advice.doubts == (Doubt.NO_MAJORITY, Doubt.SCATTERED, Doubt.VETOED)
    assert advice.vetoes == (
        veto(0, 1, VetoKind.NUMBERS, ("5",), ("4",)),
        veto(0, 2, VetoKind.NEGATIONS, (), ("not",)),
        veto(1, 2, VetoKind.NEGATIONS, (), ("not",)),
        veto(1, 2, VetoKind.NUMBERS, ("4",), ("5",)),
    )


def veto(
    first: int, second: int, kind: VetoKind, ours: tuple[str, ...], theirs: Any
) -> Veto:
    return Veto(
        first=first, second=second, kind=kind, only_first=ours, only_second=theirs
    )


def test_what_a_veto_shows_is_short_and_printable() -> None:
    many = " ".join(f"{n}{'9' * 90}" for n in range(1, 30))
    advice = advise_on_similarity([many, "None of it"], nearby)
    (shown,) = (v for v in advice.vetoes if v.kind is VetoKind.NUMBERS)
    assert len(shown.only_first) == 8
    assert all(len(word) == 40 and word.isprintable() for word in shown.only_first)


@pytest.mark.parametrize(
    ("texts", "similar", "error", "match"),
    [
        (["a"], 0.5, ConfigurationError, "got 1 texts"),
        ([], 0.5, ConfigurationError, "got 0 texts"),
        (["a", "b"], 0.0, ConfigurationError, "threshold 0.0"),
        (["a", "b"], float("nan"), ConfigurationError, "threshold nan"),
        (["a"] * (MAX_TEXTS + 1), 0.5, MalformedInputError, "got 33 texts"),
        (
            ["a", "b" * (MAX_TEXT_CHARACTERS + 1)],
            0.5,
            MalformedInputError,
            "16385",
        ),
    ],
)
def test_refusals(
    texts: list[str], similar: float, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        advise_on_similarity(texts, nearby, similar=similar)


@pytest.mark.parametrize(
    ("vectors", "match"),
    [
        (np.ones((1, 3)), "want a finite vector of each of 2 texts"),
        (np.ones(2), "want a finite vector"),
        (np.full((2, 3), np.nan), "want a finite vector"),
        (np.array([[1.0, 0.0], [0.0, 0.0]]), "vector of length 0"),
    ],
)
def test_embeddings_that_are_none(vectors: Array, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        advise_on_similarity(["a", "b"], lambda texts: vectors)


def test_it_is_no_rule_and_nothing_that_decides_knows_it() -> None:
    assert not any("semantic" in target for target in RULES.values())
    for kind in ("semantic", "semantic_similarity"):
        with pytest.raises(UnknownKindError, match="unknown kind"):
            load_rule(kind)
    offered = [*vars(semantic_similarity).values(), SimilarityAdvice]
    assert not any(hasattr(thing, "distance") for thing in offered)
    knowing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "semantic" in path.read_text()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "semantic" in ast.unparse(node)
    }
    assert knowing == {"consensus/semantic_similarity.py"}


PARIS = [
    "Paris is the capital of France.",
    "The capital of France is Paris.",
    "It's Paris.",
    "France's capital city is Paris.",
    "Paris.",
]


def test_paraphrases_of_paris_are_split(minilm: Any) -> None:
    """Five right answers look scattered: the shorter ones do not name France."""
    advice = advise_on_similarity(PARIS, minilm.embed)
    assert advice.clusters == ((0, 1, 3), (2,), (4,))
    assert advice.doubts == (Doubt.SCATTERED,)


def test_another_city_is_noticed(minilm: Any) -> None:
    lyon = [*PARIS[:2], "France's capital is Lyon.", PARIS[3], PARIS[0]]
    advice = advise_on_similarity(lyon, minilm.embed)
    assert advice.clusters == ((0, 1, 3, 4), (2,))
    assert advice.doubts == ()


def test_made_up_answers_scatter(minilm: Any) -> None:
    texts = [
        "The treaty was signed in 1843 in Vienna.",
        "It was signed by Duke Alfred in Madrid.",
        "Nobody signed it; the treaty failed in 1901.",
        "The treaty dates from 1766 and covers fishing.",
        "A 1920 meeting in Geneva produced it.",
    ]
    advice = advise_on_similarity(texts, minilm.embed)
    assert advice.entropy == pytest.approx(1.0)
    assert advice.doubts == (Doubt.NO_MAJORITY, Doubt.SCATTERED)


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (
            ["The drug is safe in pregnancy.", "The drug is not safe in pregnancy."],
            VetoKind.NEGATIONS,
        ),
        (
            ["The bridge is 120 metres long.", "The bridge is 210 metres long."],
            VetoKind.NUMBERS,
        ),
    ],
)
def test_only_the_vetoes_see_negation_and_numbers(
    minilm: Any, texts: list[str], kind: VetoKind
) -> None:
    advice = advise_on_similarity(texts, minilm.embed)
    assert advice.clusters in (((0,), (1,)), ((1,), (0,)))
    # A veto is of a pair that the embedding alone would have put together.
    assert [veto.kind for veto in advice.vetoes] == [kind]


@pytest.mark.parametrize(
    "texts",
    [
        ["The valve is open.", "The valve is closed."],
        ["The bridge is 120 metres long.", "The bridge is 120 feet long."],
        ["Alice owes Bob 20 euros.", "Bob owes Alice 20 euros."],
        ["The capital of Australia is Sydney."] * 5,
    ],
    ids=["antonyms", "units", "roles", "everybody is wrong"],
)
def test_what_is_not_seen_at_all(minilm: Any, texts: list[str]) -> None:
    advice = advise_on_similarity(texts, minilm.embed)
    assert advice.clusters == (tuple(range(len(texts))),)
    assert advice.doubts == ()
