"""Attacks on handshakes: each raises where it is stopped, returns where it works."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bentoml_secure.attestation.evidence import EvidenceRecord
from bentoml_secure.errors import VerificationError
from bentoml_secure.session import handshake
from bentoml_secure.session.handshake import Initiator, make_offer
from bentoml_secure.session.keys import Secrets
from bentoml_secure.session.messages import Finish, Hello, Offer, transcript
from bentoml_secure.session.responders import Responder
from bentoml_secure.session.suites import CLASSIC, HYBRID, seal
from bentoml_secure.signing import SigningKey
from tests.unit.session.session_parts import (
    OTHER_SEGMENT,
    Alter,
    Ground,
    Message,
    flipped,
    replaced,
    travelled,
    with_hpke,
)

Attack = Callable[[Ground], object]
SMALL_ORDER = (
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
)
"""X25519 points (RFC 7748 section 7) whose shared secret is zero whatever the key."""


def _finished(ground: Ground, responder: Responder) -> tuple[Initiator, Message]:
    entry = ground.entry()
    keys = entry.keys
    initiator = ground.initiator(keys)
    offer = initiator.read_offer(
        travelled(responder.offer(initiator.hello())), ground.judge_runner
    )
    return initiator, travelled(initiator.finish(entry.attest(offer.nonce, keys)))


def _noted(seen: list[Message]) -> Alter:
    def note(message: Message) -> Message:
        seen.append(message)
        return message

    return note


def _signed_again(
    finish: Finish,
    a: Message,
    b: Message,
    signing: SigningKey,
    *,
    label: bytes | None = None,
) -> Message:
    said = transcript(a, b, finish.unsigned())
    signature = signing.sign((label or handshake._CALLER) + said)
    return replace(finish, signature=signature).to_json()


# What is shown.


def stolen_quote(ground: Ground) -> object:
    """Another host shows what the runner showed somebody else a moment ago."""
    responder = ground.responder(ground.identity())
    stolen = travelled(responder.offer(ground.initiator(ground.client_keys()).hello()))
    return ground.shake(ground.entry(), responder, b=lambda _: stolen)


def quote_over_an_old_nonce(ground: Ground) -> object:
    """Evidence of an earlier handshake under a fresh nonce of the responder."""
    responder = ground.responder(ground.identity())
    old = responder.offer(ground.initiator(ground.client_keys()).hello())

    def swap(b: Message) -> Message:
        return {**b, "attestation": old["attestation"]}

    return ground.shake(ground.entry(), responder, b=swap)


def swapped_document_field(name: str, value: Any) -> Attack:
    """Somebody between puts another value into the responder's key document."""

    def attack(ground: Ground) -> object:
        responder = ground.responder(ground.identity())
        return ground.shake(
            ground.entry(),
            responder,
            b=lambda b: replaced(b, ("key_document", name), value),
        )

    return attack


def own_evidence_for_anothers_document(ground: Ground) -> object:
    """A host with genuine evidence shows the runner's document beside its own."""
    mallory, runner = ground.identity(host="host-m"), ground.identity()

    def swap(b: Message) -> Message:
        record = mallory.attest(b"\x01" * 32, mallory.keys)
        return {**b, "attestation": record.to_json()}

    return ground.shake(ground.entry(), ground.responder(runner), b=swap)


def relay_by_a_genuine_host(ground: Ground) -> object:
    """A genuine machine of another segment ends both sides."""
    mallory = ground.identity(host="host-m", service="Runner1", segment=OTHER_SEGMENT)
    return ground.shake(ground.entry(), ground.responder(mallory))


def relay_of_genuine_evidence(ground: Ground) -> object:
    """Somebody forwards the genuine offer, and ends the session himself."""
    responder = ground.responder(ground.entry(), ground.judge_anybody)
    victim = ground.initiator(ground.client_keys())
    offer = travelled(responder.offer(victim.hello()))
    victim.read_offer(offer, ground.judge_entry)
    victim.finish(None)
    # The relay never learns the victim's secret: it makes its own with the responder.
    keys = ground.client_keys()
    relay = ground.initiator(keys, random_bytes=lambda n: victim._hello.nonce[:n])
    relay.read_offer(offer, ground.judge_entry)
    return victim.conclude(travelled(responder.accept(relay.finish(None))))


def misbinding(ground: Ground) -> object:
    """Somebody passes a victim's sealed secret off as his own."""
    responder = ground.responder(ground.entry(), ground.judge_anybody)
    victim = ground.initiator(ground.client_keys())
    a = victim.hello()
    b = travelled(responder.offer(a))
    victim.read_offer(b, ground.judge_entry)
    finish = Finish.from_json(travelled(victim.finish(None)))
    mallory = ground.client_keys()
    stolen = replace(finish, key_document=mallory.document)
    return responder.accept(_signed_again(stolen, a, b, mallory.signing))


# What is sent again.


def replayed_offer(ground: Ground) -> object:
    """(b) of an earlier handshake of the same two."""
    responder, entry = ground.responder(ground.identity()), ground.entry()
    seen: list[Message] = []
    ground.shake(entry, responder, b=_noted(seen))
    return ground.shake(entry, responder, b=lambda _: seen[0])


def replayed_finish(ground: Ground) -> object:
    """(c) once more, to have a second session under the same keys."""
    responder = ground.responder(ground.identity())
    _, c = _finished(ground, responder)
    responder.accept(c)
    return responder.accept(c)


def replayed_confirm(ground: Ground) -> object:
    """(d) of an earlier handshake of the same two."""
    responder, entry = ground.responder(ground.identity()), ground.entry()
    seen: list[Message] = []
    ground.shake(entry, responder, d=_noted(seen))
    return ground.shake(entry, responder, d=lambda _: seen[0])


def finish_after_a_failed_one(ground: Ground) -> object:
    """A second try under one nonce."""
    responder = ground.responder(ground.identity())
    _, c = _finished(ground, responder)
    bad = {**c, "signature": flipped(c["signature"])}
    try:
        responder.accept(bad)
    except VerificationError:
        return responder.accept(c)
    return None


def late_finish(ground: Ground) -> object:
    """(c) after its minute."""
    responder = ground.responder(ground.identity())
    _, c = _finished(ground, responder)
    ground.clock.advance(60.001)
    return responder.accept(c)


def finish_of_another_responder(ground: Ground) -> object:
    """(c) at a replica that it was not made for."""
    _, c = _finished(ground, ground.responder(ground.identity()))
    return ground.responder(ground.identity(host="host-b")).accept(c)


def reflected_hello(ground: Ground) -> object:
    """The entry's own hello goes to its own door: it shall talk to itself."""
    entry = ground.entry()
    return ground.shake(entry, ground.responder(entry, ground.judge_entry))


def reflected_finish(ground: Ground) -> object:
    """The caller's (c) comes back as (d)."""
    initiator, c = _finished(ground, ground.responder(ground.identity()))
    return initiator.conclude(c)


def reflected_signature(ground: Ground) -> object:
    """A responder signs (d) as if it were a caller: one signature, two meanings."""
    responder = ground.responder(ground.identity())
    keys = responder.identity.keys
    initiator, c = _finished(ground, responder)
    d = responder.accept(c)
    said = transcript(*initiator._messages, {"version": 1, "draw": d["draw"]})
    signature = keys.signing.sign(handshake._CALLER + said)
    return initiator.conclude({**d, "signature": signature.hex()})


# Suites.


def stripped_suite(ground: Ground) -> object:
    """Somebody between takes the hybrid out of the document."""

    def strip(b: Message) -> Message:
        hpke = dict(b["key_document"]["hpke"])
        del hpke[HYBRID]
        return replaced(b, ("key_document", "hpke"), hpke)

    return ground.shake(ground.entry(), ground.responder(ground.identity()), b=strip)


def lower_suite_chosen(ground: Ground) -> object:
    """A caller seals under less than the best that was offered."""
    responder = ground.responder(ground.entry(), ground.judge_anybody)
    keys = ground.client_keys()
    a = ground.initiator(keys).hello()
    b = travelled(responder.offer(a))
    return responder.accept(_handmade(a, b, keys, suite=CLASSIC))


def _handmade(
    a: Message,
    b: Message,
    keys: Any,
    *,
    suite: str,
    sealed: bytes | None = None,
    record: EvidenceRecord | None = None,
) -> Message:
    """Return a (c) by a caller that follows no rule but the signature's."""
    hello, offer = Hello.from_json(a), Offer.from_json(b)
    info = handshake._info(hello, offer, keys.document, offer.nonce, suite)
    public = bytes.fromhex(dict(offer.key_document.hpke)[suite])
    finish = Finish(
        nonce=offer.nonce,
        key_document=keys.document,
        record=record,
        suite=suite,
        sealed=seal(suite, public, bytes(32), info=info) if sealed is None else sealed,
    )
    return _signed_again(finish, a, b, keys.signing)


def unknown_suites_only(ground: Ground) -> object:
    """A responder offers nothing that is known."""
    runner = ground.identity(suites=("FUTURE/KDF/AEAD",))
    return ground.shake(ground.entry(), ground.responder(runner))


def small_order_key(point: str) -> Attack:
    """A responder announces a key under which every secret is known."""

    def attack(ground: Ground) -> object:
        runner = ground.identity()
        keys = with_hpke(runner.keys, ((CLASSIC, point),))
        initiator = ground.initiator(ground.client_keys())
        hello = Hello.from_json(initiator.hello())
        record = runner.attest(hello.nonce, keys)
        offered = make_offer(hello, keys, record, bytes(32), ground.clock())
        initiator.read_offer(travelled(offered.offer.to_json()), ground.judge_runner)
        return initiator.finish(None)

    return attack


def small_order_ciphertext(suite: str, point: str) -> Attack:
    """A caller encapsulates to a point under which the secret is known."""

    def attack(ground: Ground) -> object:
        entry = ground.entry(suites=(suite,))
        responder = ground.responder(entry, ground.judge_anybody)
        keys = ground.client_keys()
        a = ground.initiator(keys).hello()
        b = travelled(responder.offer(a))
        made = Finish.from_json(_handmade(a, b, keys, suite=suite)).sealed
        at = 1120 - 32 if suite == HYBRID else 0
        sealed = made[:at] + bytes.fromhex(point) + made[at + 32 :]
        return responder.accept(_handmade(a, b, keys, suite=suite, sealed=sealed))

    return attack


def ciphertext_of_another_handshake(ground: Ground) -> object:
    """A caller's own (c), with what it sealed in an earlier one."""
    responder = ground.responder(ground.entry(), ground.judge_anybody)
    keys = ground.client_keys()
    a1, a2 = (ground.initiator(keys).hello() for _ in range(2))
    b1, b2 = (travelled(responder.offer(a)) for a in (a1, a2))
    old = Finish.from_json(_handmade(a1, b1, keys, suite=HYBRID)).sealed
    return responder.accept(_handmade(a2, b2, keys, suite=HYBRID, sealed=old))


# Who asks.


def client_at_a_runner(ground: Ground) -> object:
    """Anybody asks a runner, which serves entries."""
    responder = ground.responder(ground.identity())
    keys = ground.client_keys()
    a = ground.initiator(keys).hello()
    return responder.accept(
        _handmade(a, travelled(responder.offer(a)), keys, suite=HYBRID)
    )


def entry_without_evidence(ground: Ground) -> object:
    """An entry's document with nothing behind it, under a judge that lets it pass."""
    responder = ground.responder(ground.identity(), lambda _: None)
    keys = ground.entry().keys
    a = ground.initiator(keys).hello()
    return responder.accept(
        _handmade(a, travelled(responder.offer(a)), keys, suite=HYBRID)
    )


def responder_without_evidence(ground: Ground) -> object:
    """A judge that lets everybody pass, as an entry's does for clients."""
    return ground.shake(
        ground.entry(), ground.responder(ground.identity()), lambda _: None
    )


def callers_stolen_quote(ground: Ground) -> object:
    """Somebody shows an entry's evidence over an earlier nonce, and its document."""
    responder, entry = ground.responder(ground.identity()), ground.entry()
    seen: list[Message] = []
    ground.shake(entry, responder, c=_noted(seen))
    return ground.shake(
        entry, responder, c=lambda c: {**c, "attestation": seen[0]["attestation"]}
    )


def callers_stolen_quote_under_own_key(ground: Ground) -> object:
    """The same by somebody who signs with a key of his own."""
    responder = ground.responder(ground.identity())
    _, c = _finished(ground, responder)
    entry, mallory = ground.entry().keys, SigningKey.generate()
    document = replace(entry.document, ed25519=mallory.public.raw.hex())
    keys = replace(entry, signing=mallory, document=document, digest=document.digest)
    record = EvidenceRecord.from_json(c["attestation"])
    a = ground.initiator(keys).hello()
    b = travelled(responder.offer(a))
    return responder.accept(_handmade(a, b, keys, suite=HYBRID, record=record))


# Signatures and the MAC.


def finish_signed_by_another_key(ground: Ground) -> object:
    """(c) under another key than the document's."""
    responder = ground.responder(ground.entry(), ground.judge_anybody)
    keys = ground.client_keys()
    a = ground.initiator(keys).hello()
    b = travelled(responder.offer(a))
    finish = Finish.from_json(_handmade(a, b, keys, suite=HYBRID))
    return responder.accept(_signed_again(finish, a, b, SigningKey.generate()))


def finish_signed_as_a_responder(ground: Ground) -> object:
    """(c) signed under the responder's label."""
    responder = ground.responder(ground.entry(), ground.judge_anybody)
    keys = ground.client_keys()
    a = ground.initiator(keys).hello()
    b = travelled(responder.offer(a))
    finish = Finish.from_json(_handmade(a, b, keys, suite=HYBRID))
    return responder.accept(
        _signed_again(finish, a, b, keys.signing, label=handshake._RESPONDER)
    )


def confirm_signed_by_another_key(ground: Ground) -> object:
    """(d) with the right MAC, by who has the secret but not the attested key."""
    responder = ground.responder(ground.identity())
    initiator, c = _finished(ground, responder)
    d = responder.accept(c)
    said = transcript(*initiator._messages, {"version": 1, "draw": d["draw"]})
    signature = SigningKey.generate().sign(handshake._RESPONDER + said)
    return initiator.conclude({**d, "signature": signature.hex()})


def confirm_without_the_secret(ground: Ground) -> object:
    """(d) rightly signed by who never opened the sealed secret."""
    responder = ground.responder(ground.identity())
    initiator, c = _finished(ground, responder)
    d = responder.accept(c)
    said = transcript(*initiator._messages)
    other = Secrets.derive(b"\x01" * 32, said)
    said = transcript(*initiator._messages, {"version": 1, "draw": d["draw"]})
    return initiator.conclude({**d, "mac": other.confirmation(said).hex()})


def mac_of_another_handshake(ground: Ground) -> object:
    """(d) with the MAC of an earlier handshake."""
    responder, entry = ground.responder(ground.identity()), ground.entry()
    seen: list[Message] = []
    ground.shake(entry, responder, d=_noted(seen))
    return ground.shake(entry, responder, d=lambda d: {**d, "mac": seen[0]["mac"]})


# Bytes that no signature of the sender covers, but the transcript does.


def endorsements_added(ground: Ground) -> object:
    """Somebody between adds an endorsement, which evidence does not cover."""
    extra = [base64.b64encode(b"mine").decode()]
    return ground.shake(
        ground.entry(),
        ground.responder(ground.identity()),
        b=lambda b: replaced(b, ("attestation", "endorsements"), extra),
    )


def draw_swapped(ground: Ground) -> object:
    """Somebody between puts in a commitment of his own."""
    responder = ground.responder(
        ground.entry(), ground.judge_anybody, draw=lambda _: {"r": "entry's"}
    )
    return ground.shake_as_client(responder, d=lambda d: {**d, "draw": {"r": "mine"}})


def keys_that_have_ended(ground: Ground) -> object:
    """A responder goes on with keys whose document has ended."""
    # Keys of a fixed choice of suites are never renewed.
    runner = ground.identity(suites=(HYBRID, CLASSIC))
    ground.clock.now = runner.keys.document.not_after
    return ground.shake(ground.entry(), ground.responder(runner))
