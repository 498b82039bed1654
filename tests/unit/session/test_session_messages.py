"""The four messages: each field altered, missing, of another type; extra fields."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bentoml_secure.errors import MalformedInputError, SecureError
from bentoml_secure.session.messages import (
    MASTER_BYTES,
    Confirm,
    Finish,
    Hello,
    Offer,
    transcript,
)
from bentoml_secure.session.suites import CLASSIC, HYBRID, ciphertext_bytes
from tests.unit.session.session_parts import Ground, Message, replaced, unaltered

PARSERS: dict[str, Callable[[object], Any]] = {
    "a": Hello.from_json,
    "b": Offer.from_json,
    "c": Finish.from_json,
    "d": Confirm.from_json,
}


def a_handshake(ground: Ground) -> dict[str, Message]:
    """Return the messages of one."""
    seen: dict[str, Message] = {}

    def note(name: str) -> Callable[[Message], Message]:
        return lambda message: seen.setdefault(name, message)

    ground.shake(
        ground.entry(),
        ground.responder(ground.identity(), draw=lambda _: {"payload": "e30="}),
        a=note("a"),
        b=note("b"),
        c=note("c"),
        d=note("d"),
    )
    return seen


def paths(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every field, at every depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield (*path, name)
            yield from paths(value, (*path, name))


def is_free(path: tuple[str, ...]) -> bool:
    """Tell whether a field is one of a map whose names are the sender's choice."""
    # A draw is the entry's own; any key may stand under a suite's name.
    return path[:1] == ("draw",) != path or path[:2] == ("key_document", "hpke") != path


def at(message: Message, path: tuple[str, ...]) -> Any:
    node: Any = message
    for name in path:
        node = node[name]
    return node


@pytest.mark.parametrize("name", PARSERS)
def test_messages_read_back(ground: Ground, name: str) -> None:
    message = a_handshake(ground)[name]
    assert PARSERS[name](message).to_json() == message


@pytest.mark.parametrize("name", PARSERS)
def test_no_field_may_be_missing_or_added(ground: Ground, name: str) -> None:
    message = a_handshake(ground)[name]
    for path in paths(message):
        if is_free(path):
            continue
        less = replaced(message, path, None)
        del at(less, path[:-1])[path[-1]]
        with pytest.raises(MalformedInputError, match=r"missing|want|got"):
            PARSERS[name](less)
        more = replaced(message, (*path[:-1], "another"), "")
        with pytest.raises(MalformedInputError, match=r"unknown field|bad suite|want"):
            PARSERS[name](more)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    "value", [None, True, 1.0, 2, -1, "", "zz", "AA" * 32, [], {}, [[]]], ids=repr
)
def test_no_field_is_of_another_type_or_form(
    ground: Ground, name: str, value: object
) -> None:
    message = a_handshake(ground)[name]
    may_be: dict[tuple[str, ...], tuple[object, ...]] = {
        # Absent, as for a client; and objects that may be empty.
        ("attestation",): (None,) if name == "c" else (),
        ("draw",): (None, {}),
        ("key_document", "hpke"): ({},),
        ("key_document", "service"): ("zz", "AA" * 32),
        ("key_document", "platform"): ("zz",),
        ("attestation", "endorsements"): ([],),
        ("attestation", "evidence", "kind"): ("zz",),
    }
    for path in paths(message):
        altered = replaced(message, path, value)
        # Base64 of other bytes is a matter for who judges them.
        is_blob = path[-1] == "blob" and isinstance(value, str) and value
        fine = repr(value) in map(repr, may_be.get(path, ()))
        if altered == message or is_blob or is_free(path) or fine:
            continue
        with pytest.raises(MalformedInputError, match=r"\w"):
            PARSERS[name](altered)


@pytest.mark.parametrize("name", PARSERS)
def test_every_field_of_another_handshake_is_refused(ground: Ground, name: str) -> None:
    # Of the right form, genuine, and not of this handshake.
    other = Ground(ground.clock)
    foreign = a_handshake(other)
    changed = [
        path
        for path in paths(foreign[name])
        if not isinstance(at(foreign[name], path), dict)
        and at(foreign[name], path) != at(a_handshake(ground)[name], path)
    ]
    assert changed
    for path in changed:

        def swap(
            message: Message, path: tuple[str, ...] = path, name: str = name
        ) -> Message:
            return replaced(message, path, at(foreign[name], path))

        with pytest.raises(SecureError, match=r"\w"):
            ground.shake(
                ground.entry(),
                ground.responder(ground.identity(), draw=lambda _: {"payload": "e30="}),
                a=swap if name == "a" else unaltered,
                b=swap if name == "b" else unaltered,
                c=swap if name == "c" else unaltered,
                d=swap if name == "d" else unaltered,
            )


@pytest.mark.parametrize("version", [0, 2, True, 1.0, "1", None])
@pytest.mark.parametrize("name", PARSERS)
def test_one_version_is_known(ground: Ground, name: str, version: object) -> None:
    message = {**a_handshake(ground)[name], "version": version}
    with pytest.raises(MalformedInputError, match="version: got"):
        PARSERS[name](message)


@pytest.mark.parametrize("suite", [HYBRID, CLASSIC])
@pytest.mark.parametrize("more", [-1, 1])
def test_a_sealed_secret_has_one_length(ground: Ground, suite: str, more: int) -> None:
    message = a_handshake(ground)["c"]
    length = ciphertext_bytes(suite, MASTER_BYTES)
    assert length == {HYBRID: 1120 + 48, CLASSIC: 32 + 48}[suite]
    for bytes_, wanted in ((length, None), (length + more, "sealed")):
        sealed = base64.b64encode(bytes(bytes_)).decode()
        made = {**message, "suite": suite, "sealed": sealed}
        if wanted is None:
            assert Finish.from_json(made).sealed == bytes(length)
            continue
        with pytest.raises(MalformedInputError, match=wanted):
            Finish.from_json(made)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("document", [None, [], "", 1, {}])
def test_only_objects_are_messages(name: str, document: object) -> None:
    with pytest.raises(MalformedInputError, match="session"):
        PARSERS[name](document)


def test_a_transcript_is_of_whole_messages_in_their_order() -> None:
    one, other = {"x": 1}, {"x": 2}
    hashes = {
        transcript(*messages)
        for messages in ((), (one,), (other,), (one, other), (other, one), (one, one))
    }
    assert len(hashes) == 6
    assert {len(value) for value in hashes} == {32}
    # Spelled otherwise, the same message.
    assert transcript({"b": 1, "a": 2}) == transcript({"a": 2, "b": 1})


def test_a_draw_that_has_no_canonical_form_is_refused(ground: Ground) -> None:
    def infinite(message: Message) -> Message:
        return {**message, "draw": {"x": float("inf")}}

    with pytest.raises(MalformedInputError, match="canonical"):
        ground.shake(ground.entry(), ground.responder(ground.identity()), d=infinite)
