"""Real sentences to ask with: a fixed list, from which every number makes a text."""

from __future__ import annotations

from pathlib import Path

SENTENCES = tuple((Path(__file__).parent / "sentences.txt").read_text().splitlines())


def text(number: int) -> str:
    """Return the text of a number: one sentence for each of its digits.

    To the base of as many sentences as there are, least digit first: texts of
    different numbers differ, those of neighbours from their first word on.

    Args:
        number: From 0.
    """
    rest, digit = divmod(number, len(SENTENCES))
    words = [SENTENCES[digit]]
    while rest:
        rest, digit = divmod(rest, len(SENTENCES))
        words.append(SENTENCES[digit])
    return " ".join(words)
