"""What an embedding does not see: numbers, negation, names.

Two texts that differ in any of these do not say the same, however similar they are to a
model of meaning: "is not safe" lies next to "is safe", "210 m" next to "120 m". Each is
taken from a text as a set, and the sets have to match.

    numbers     digits anywhere, and English words from "two" on ("one" is a pronoun
                more often); units are not looked at
    negations   "not", "never", "without" and their like; "isn't" is "not"
    names       words with a capital letter, but for those that only begin a sentence
    opposites   a word in one text that the other has with a prefix: "safe", "unsafe"

For English, and coarse: a veto too many splits a paraphrase; antonyms ("open",
"closed"), units and who did what to whom pass. Linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

_APOSTROPHES = str.maketrans("\u2019\u02bc", "''")
_NUMBER = re.compile(r"(?:(?<!\w)[-\u2212])?\d+(?:,\d{3}(?!\d))*(?:\.\d+)?")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_ENDS_SENTENCE = frozenset(".!?:;\n")

_PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non", "mis")
_SHORTEST_STEM = 3


def _words(text: str) -> list[str]:
    return text.split()


_NEGATIONS = frozenset(
    _words(
        "not no never none nobody nothing nowhere neither nor without non cannot "
        "hardly barely scarcely"
    )
)
_TEENS = _words(
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
_NUMBER_WORDS = {
    "zero": "0",
    **{word: str(number) for number, word in enumerate(_TEENS, start=2)},
    **{word: str(10 * number) for number, word in enumerate(_TENS, start=2)},
    "dozen": "12",
    "hundred": "100",
    "thousand": "1000",
    "million": "1000000",
    "billion": "1000000000",
}
_BEGIN_SENTENCES = _NEGATIONS | frozenset(
    _words(
        "a an the this that these those it its he she they we you i my your his her "
        "our their there here in on at by for from with of to into over under about as "
        "and or but if when while where who what which why how because since although "
        "though however so then thus therefore also both all some any each every most "
        "many few one yes is are was were be been has have had do does did can could "
        "will would should may might must let please sure certainly indeed after "
        "before during between according answer"
    )
)


class VetoKind(StrEnum):
    """In what two texts differ."""

    NUMBERS = "numbers"
    NEGATIONS = "negations"
    NAMES = "names"
    OPPOSITES = "opposites"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What has to match of a text.

    Attributes:
        numbers: In digits, without separators or zeros at either end.
        negations: In lower case.
        names: Case folded, without a possessive.
        words: All words, case folded.
    """

    numbers: frozenset[str]
    negations: frozenset[str]
    names: frozenset[str]
    words: frozenset[str]


Contrast = tuple[VetoKind, frozenset[str], frozenset[str]]
"""The kind, what only the first text has, what only the second."""


def parse_traits(text: str) -> Traits:
    """Return what has to match of a text."""
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)
    words = [(match[0], match.start()) for match in _WORD.finditer(text)]
    folded = frozenset(word.casefold() for word, _ in words)
    numbers = {_canonical(match[0]) for match in _NUMBER.finditer(text)}
    spelled = {_NUMBER_WORDS[word] for word in folded & _NUMBER_WORDS.keys()}
    return Traits(
        numbers=frozenset(numbers | spelled),
        negations=frozenset(
            "not" if word == "cannot" or word.endswith("n't") else word
            for word in folded
            if word in _NEGATIONS or word.endswith("n't")
        ),
        names=_names(text, words),
        words=folded,
    )


def contrasts(a: Traits, b: Traits) -> list[Contrast]:
    """Return every reason why two texts cannot say the same."""
    pairs = (
        (VetoKind.NUMBERS, a.numbers, b.numbers),
        (VetoKind.NEGATIONS, a.negations, b.negations),
        (VetoKind.NAMES, a.names, b.names),
        (VetoKind.OPPOSITES, _opposed(a, b), _opposed(b, a)),
    )
    return [(kind, x - y, y - x) for kind, x, y in pairs if x != y]


def _canonical(number: str) -> str:
    # Not int(): digits of any script, and no limit to meet.
    digits = "".join(
        str(unicodedata.digit(char)) if char.isdigit() else char for char in number
    )
    whole, _, fraction = digits.lstrip("-\u2212").replace(",", "").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return f"-{size}" if digits[0] in "-\u2212" and size != "0" else size


def _names(text: str, words: list[tuple[str, int]]) -> frozenset[str]:
    in_lower_case = {word for word, _ in words if word.islower()}
    names, end = set(), 0
    for word, start in words:
        begins = end == 0 or not _ENDS_SENTENCE.isdisjoint(text[end:start])
        end = start + len(word)
        name = word.removesuffix("'s").casefold()
        if word.islower() or name.endswith("n't") or name.partition("'")[0] == "i":
            continue
        ordinary = name.partition("'")[0] in _BEGIN_SENTENCES or name in in_lower_case
        if not (begins and ordinary):
            names.add(name)
    return frozenset(names)


def _opposed(a: Traits, b: Traits) -> frozenset[str]:
    """Return words of the first that are a word of the second under a prefix."""
    return frozenset(
        word
        for word in a.words - b.words
        for prefix in _PREFIXES
        if word.startswith(prefix)
        and len(stem := word.removeprefix(prefix)) >= _SHORTEST_STEM
        and stem in b.words - a.words
    )
