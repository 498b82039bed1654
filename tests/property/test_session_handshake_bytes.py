"""A bit of any message of a handshake changed: there is no session."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import MalformedInputError, SecureError
from bentoml_secure.session.handshake import Initiator, Offered, accept, make_offer
from bentoml_secure.session.identity import Keys
from bentoml_secure.session.messages import MAX_MESSAGE_BYTES, Finish, Hello
from tests.unit.session.session_parts import MAX_AGE, Ground, Message

NONCE = b"n" * 32


@dataclass(frozen=True, slots=True)
class Recorded:
    """One handshake, each end as it was before each message arrived."""

    ground: Ground
    keys: Keys
    record: EvidenceRecord
    offered: Offered
    finished: Initiator
    messages: dict[str, bytes]

    def initiator(self) -> Initiator:
        return self.ground.initiator(self.keys, random_bytes=lambda n: NONCE[:n])

    def accept(self, message: Any) -> Message:
        """Answer (c) as a responder does that has this one handshake open."""
        finish = Finish.from_json(message)
        if finish.nonce != self.offered.offer.nonce:
            raise MalformedInputError("no handshake is open")
        return accept(
            self.offered,
            finish,
            self.ground.judge_entry,
            max_age_seconds=MAX_AGE,
            now=self.ground.clock(),
        )[1]


@functools.cache
def recorded() -> Recorded:
    ground = Ground()
    runner, entry = ground.identity(), ground.entry()
    initiator = ground.initiator(entry.keys, random_bytes=lambda n: NONCE[:n])
    hello = Hello.from_json(initiator.hello())
    record = runner.attest(hello.nonce, runner.keys)
    offered = make_offer(hello, runner.keys, record, b"r" * 32, ground.clock())
    b = offered.offer.to_json()
    initiator.read_offer(b, ground.judge_runner)
    own = entry.attest(offered.offer.nonce, entry.keys)
    c = initiator.finish(own)
    made = Recorded(ground, entry.keys, own, offered, copy.copy(initiator), {})
    made.messages.update(
        {
            name: json.dumps(message, separators=(",", ":")).encode()
            for name, message in {
                "a": hello.to_json(),
                "b": b,
                "c": c,
                "d": made.accept(c),
            }.items()
        }
    )
    return made


def go_on(name: str, message: Any) -> object:
    """Go on from one message as it arrived, to the end of the handshake."""
    made = recorded()
    if name == "a":
        # Evidence over the nonce that arrived, for a caller that drew another.
        identity = made.ground.identity()
        hello = Hello.from_json(message)
        record = identity.attest(hello.nonce, identity.keys)
        offered = make_offer(
            hello, identity.keys, record, b"r" * 32, made.ground.clock()
        )
        return made.initiator().read_offer(
            offered.offer.to_json(), made.ground.judge_runner
        )
    if name == "b":
        initiator = made.initiator()
        initiator.read_offer(message, made.ground.judge_runner)
        return made.accept(initiator.finish(made.record))
    if name == "c":
        return made.accept(message)
    return copy.copy(made.finished).conclude(message)


@pytest.mark.parametrize("name", ["b", "c", "d"])
def test_what_was_recorded_makes_a_session(name: str) -> None:
    go_on(name, json.loads(recorded().messages[name]))


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
@settings(max_examples=150)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(name: str, where: float, bit: int) -> None:
    sent = recorded().messages[name]
    hurt = bytearray(sent)
    hurt[int(where * len(sent))] ^= 1 << bit
    with pytest.raises(SecureError, match=r"\w"):
        go_on(
            name,
            parse_json(bytes(hurt), what="message", max_bytes=MAX_MESSAGE_BYTES),
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
@settings(max_examples=60)
@given(data=st.data(), value=JSON)
def test_another_value_in_any_field_is_refused(
    name: str, data: st.DataObject, value: Any
) -> None:
    message = json.loads(recorded().messages[name])
    node, steps = message, 0
    while True:
        field = data.draw(st.sampled_from(sorted(node)))
        steps += 1
        inner = node[field]
        if not isinstance(inner, dict) or not inner or data.draw(st.booleans()):
            break
        node = inner
    assume(json.dumps(inner) != json.dumps(value))
    node[field] = value
    with pytest.raises(SecureError, match=r"\w"):
        go_on(name, message)


@given(JSON)
def test_what_is_no_message_is_malformed(value: Any) -> None:
    for name in ("a", "b", "c", "d"):
        with pytest.raises(MalformedInputError, match="session"):
            go_on(name, value)
