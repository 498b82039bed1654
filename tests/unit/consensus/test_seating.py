"""Who sits on a committee, of those that were drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.consensus.seating import Bench, Seating, take_seats
from bentoml_secure.consensus.tally import Absence, Member


def seats(order: str, size: int, out: str = "", spares: int = 0) -> tuple[str, str]:
    """Return seats and skips; upper and lower case of a letter are one voice."""
    taken = take_seats(order, size, voice=str.lower, out=out, spares=spares)
    return "".join(taken.seats), "".join(taken.skips)


@pytest.mark.parametrize(
    ("order", "size", "out", "spares", "seated", "skipped"),
    [
        ("abcde", 3, "", 0, "abc", ""),
        ("abcde", 3, "", 2, "abc", ""),
        # Out, without a spare: it keeps its seat.
        ("abcde", 3, "b", 0, "abc", ""),
        ("abcde", 3, "b", 1, "acd", "b"),
        ("abcde", 3, "bd", 1, "acd", "b"),
        ("abcde", 3, "bd", 2, "ace", "bd"),
        # Nobody reached it: no excuse is needed.
        ("abcde", 3, "e", 1, "abc", ""),
        # Too few are left: who was skipped first is back.
        ("abcd", 3, "ab", 2, "acd", "b"),
        ("abc", 3, "abc", 2, "abc", ""),
        ("ab", 3, "", 1, "ab", ""),
        # One of each voice, then the others.
        ("aAbc", 3, "", 0, "abc", ""),
        ("aAbB", 3, "", 0, "aAb", ""),
        ("aAbc", 3, "b", 0, "abc", ""),
        ("aAbc", 3, "b", 1, "aAc", "b"),
        ("aAbcd", 3, "b", 1, "acd", "b"),
    ],
)
def test_seats(
    order: str, size: int, out: str, spares: int, seated: str, skipped: str
) -> None:
    assert seats(order, size, out, spares) == (seated, skipped)


def test_nobody_is_asked_for_a_voice_who_does_not_come_up() -> None:
    asked = []

    def voice(name: str) -> str:
        asked.append(name)
        return name

    take_seats("abcde", 2, voice=voice, out=(), spares=1)
    assert asked == ["a", "b"]


@given(
    st.permutations("abcdefgh"),
    st.integers(1, 8),
    st.sets(st.sampled_from("abcdefgh")),
    st.integers(0, 8),
    st.lists(st.sampled_from("xyz"), min_size=8, max_size=8),
)
def test_what_stands_in_a_receipt_gives_the_same_seats(
    order: list[str], size: int, out: set[str], spares: int, spoken: list[str]
) -> None:
    """A verifier knows who was skipped, and what voice each one's evidence gives it."""
    of = dict(zip(sorted(order), spoken, strict=True))

    taken = take_seats(order, size, voice=of.__getitem__, out=out, spares=spares)
    assert len(taken.seats) == min(size, len(order))
    assert len(taken.skips) <= spares
    assert set(taken.skips) <= out
    assert not set(taken.skips) & set(taken.seats)
    again = take_seats(
        order, size, voice=of.__getitem__, out=taken.skips, spares=spares
    )
    assert again == taken


def test_a_bench_says_who_was_skipped_and_why() -> None:
    bench = Bench(
        order=("a", "b", "c", "d"),
        members={name: Member(replica=name) for name in "abcd"},
        out={"a": "not attested"},
        spares=2,
    )
    assert bench.seat(2, {}) == Seating(seats=("b", "c"), skips=("a",))
    gone = {"b": "connection\nrefused"}
    seating = bench.seat(2, gone)
    assert seating == Seating(seats=("c", "d"), skips=("a", "b"))
    assert bench.skips(seating, gone) == (
        Absence(replica="a", reason="not attested"),
        Absence(replica="b", reason="connection?refused"),
    )


def test_who_failed_and_keeps_its_seat_keeps_its_voice() -> None:
    """Its evidence stands in the receipt, and there it speaks with that."""
    voices = {"a": "P", "b": "P", "c": "c", "d": "d"}
    bench = Bench(
        order=("a", "b", "c", "d"),
        members={n: Member(replica=n, voice=v) for n, v in voices.items()},
        out={},
    )
    assert bench.seat(3, {}) == Seating(seats=("a", "c", "d"), skips=())
    assert bench.seat(3, {"a": "failed", "d": "failed"}) == bench.seat(3, {})
