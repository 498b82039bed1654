"""Texts become word pieces within bounds, or the caller is told why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    VerificationError,
)
from examples.encoder.prepare import TOKENIZER
from services.wordpieces import (
    MAX_CHARACTERS,
    MAX_TEXTS,
    MAX_TOKENS,
    WordPieces,
)

FIRST, LAST = 101, 102


@pytest.fixture(scope="module")
def pieces(models: Path) -> WordPieces:
    return WordPieces(models / TOKENIZER)


def test_texts_are_filled_up_to_the_longest(pieces: WordPieces) -> None:
    feed = pieces.feed(["Bees!", "", "The bees are back."], truncate=False)
    ids, mask = feed["input_ids"], feed["attention_mask"]
    assert ids.shape == mask.shape == feed["token_type_ids"].shape == (3, 7)
    assert {array.dtype.name for array in feed.values()} == {"int64"}
    assert mask.sum(1).tolist() == [4, 2, 7]
    assert ids[1].tolist() == [FIRST, LAST, 0, 0, 0, 0, 0]
    assert not ids[mask == 0].any()
    assert not feed["token_type_ids"].any()


def test_what_the_model_does_not_read_is_refused(pieces: WordPieces) -> None:
    most = " ".join(["bee"] * (MAX_TOKENS - 2))
    assert pieces.feed([most], truncate=False)["input_ids"].shape == (1, MAX_TOKENS)
    with pytest.raises(MalformedInputError, match="texts 1: got 257 tokens") as caught:
        pieces.feed(["bee", f"{most} bee"], truncate=False)
    assert "truncate=true" in str(caught.value)


def test_a_cut_text_keeps_its_end_mark(pieces: WordPieces) -> None:
    feed = pieces.feed([" ".join(["bee"] * 900)], truncate=True)
    ids = feed["input_ids"][0]
    assert (len(ids), ids[0], ids[-1]) == (MAX_TOKENS, FIRST, LAST)
    assert feed["attention_mask"].all()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "texts: got 0, want 1 to 32"),
        (["a"] * (MAX_TEXTS + 1), "texts: got 33, want 1 to 32"),
        (["a", "b" * (MAX_CHARACTERS + 1)], "texts 1: got 4097 characters"),
        (["a", "b", "c\ud800"], "texts 2: not Unicode"),
    ],
)
def test_bounds(pieces: WordPieces, texts: list[str], said: str) -> None:
    with pytest.raises(MalformedInputError, match=said):
        pieces.feed(texts, truncate=True)


@pytest.mark.parametrize(
    "text", ["\x00", "[MASK] [CLS]", "一二三", "🐝" * 50, "\u202e"]
)
def test_any_text_has_its_marks(pieces: WordPieces, text: str) -> None:
    ids = pieces.feed([text], truncate=True)["input_ids"][0]
    assert (ids[0], ids[-1]) == (FIRST, LAST)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ConfigurationError, match=r"examples\.encoder\.prepare"):
        WordPieces(path)
    path.write_text("{}")
    with pytest.raises(VerificationError, match=r"tokenizer\.json: got sha256-file"):
        WordPieces(path)
