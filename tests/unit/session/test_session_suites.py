"""HPKE suites: lengths, choice, what does not open."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.session.handshake import _CALLER, _info, accept, make_offer
from bentoml_secure.session.messages import Finish, Hello, transcript
from bentoml_secure.session.suites import (
    CLASSIC,
    HYBRID,
    PREFERENCE,
    HpkeKeys,
    choose,
    ciphertext_bytes,
    seal,
)
from tests.unit.session.session_parts import MAX_AGE, Ground

SECRET = b"s" * 32


@pytest.fixture(scope="module")
def keys() -> HpkeKeys:
    return HpkeKeys.generate()


def public(keys: HpkeKeys, suite: str) -> bytes:
    return bytes.fromhex(dict(keys.public)[suite])


@pytest.mark.parametrize("suite", PREFERENCE)
def test_what_was_sealed_opens(keys: HpkeKeys, suite: str) -> None:
    sealed = seal(suite, public(keys, suite), SECRET, info=b"i")
    assert len(sealed) == ciphertext_bytes(suite, len(SECRET))
    assert keys.open(suite, sealed, info=b"i") == SECRET
    assert seal(suite, public(keys, suite), SECRET, info=b"i") != sealed


@pytest.mark.parametrize("suite", PREFERENCE)
def test_other_keys_info_and_bytes_do_not_open(keys: HpkeKeys, suite: str) -> None:
    sealed = seal(suite, public(keys, suite), SECRET, info=b"i")
    for opener, altered, info in (
        (HpkeKeys.generate(), sealed, b"i"),
        (keys, sealed, b"j"),
        (keys, sealed, b""),
        (keys, sealed[:-1], b"i"),
        (keys, sealed + b"\0", b"i"),
        (keys, b"", b"i"),
    ):
        with pytest.raises(VerificationError, match="does not open"):
            opener.open(suite, altered, info=info)


@pytest.mark.parametrize("suite", PREFERENCE)
def test_no_altered_byte_opens(keys: HpkeKeys, suite: str) -> None:
    sealed = seal(suite, public(keys, suite), SECRET, info=b"i")
    for at in range(0, len(sealed), 31):
        altered = bytearray(sealed)
        altered[at] ^= 1
        with pytest.raises(VerificationError, match="does not open"):
            keys.open(suite, bytes(altered), info=b"i")


def test_suites_share_no_key(keys: HpkeKeys) -> None:
    assert public(keys, HYBRID)[-32:] != public(keys, CLASSIC)
    assert keys.public == tuple(sorted(keys.public))


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [((CLASSIC, HYBRID), HYBRID), ((CLASSIC,), CLASSIC), (("X", CLASSIC), CLASSIC)],
)
def test_the_best_is_chosen(offered: tuple[str, ...], chosen: str) -> None:
    assert choose(offered) == chosen


@pytest.mark.parametrize("offered", [(), ("X",), (HYBRID.lower(),)])
def test_none_that_is_known(offered: tuple[str, ...]) -> None:
    with pytest.raises(MalformedInputError, match="session suites: got"):
        choose(offered)


@pytest.mark.parametrize("suite", PREFERENCE)
@pytest.mark.parametrize("length", [0, 31, 33, 1184, 1215, 1217])
def test_a_public_key_has_one_length(suite: str, length: int) -> None:
    with pytest.raises(MalformedInputError, match="public key"):
        seal(suite, bytes(length), SECRET, info=b"")


@pytest.mark.parametrize("suite", PREFERENCE)
def test_nothing_stands_between_the_parts_of_a_key(keys: HpkeKeys, suite: str) -> None:
    key = public(keys, suite)
    with pytest.raises(MalformedInputError, match=rf"got {len(key) + 1} bytes, want"):
        seal(suite, key[:-32] + b"\0" + key[-32:], SECRET, info=b"")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_master_secret_has_one_length(length: int) -> None:
    # Messages cannot say it: their parser wants one length of what is sealed.
    ground = Ground()
    identity, caller = ground.entry(), ground.client_keys()
    hello = Hello(nonce=b"c" * 32)
    record = identity.attest(hello.nonce, identity.keys)
    offered = make_offer(hello, identity.keys, record, b"r" * 32, ground.clock())
    info = _info(hello, offered.offer, caller.document, b"r" * 32, HYBRID)
    key = bytes.fromhex(dict(identity.keys.document.hpke)[HYBRID])
    finish = Finish(
        nonce=b"r" * 32,
        key_document=caller.document,
        record=None,
        suite=HYBRID,
        sealed=seal(HYBRID, key, bytes(length), info=info),
    )
    said = transcript(hello.to_json(), offered.offer.to_json(), finish.unsigned())
    signed = replace(finish, signature=caller.signing.sign(_CALLER + said))
    with pytest.raises(MalformedInputError, match="master secret has 32 bytes"):
        accept(
            offered,
            signed,
            ground.judge_anybody,
            max_age_seconds=MAX_AGE,
            now=ground.clock(),
        )


def test_an_ml_kem_key_out_of_range_is_no_key(keys: HpkeKeys) -> None:
    # FIPS 203 section 7.2: coefficients are below 3329.
    key = b"\xff" * 1184 + public(keys, HYBRID)[-32:]
    with pytest.raises(MalformedInputError, match="public key MLKEM768"):
        seal(HYBRID, key, SECRET, info=b"")
