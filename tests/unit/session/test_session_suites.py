"""HPKE suites: lengths, choice, what does not open."""

from __future__ import annotations

import pytest

from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.session.suites import (
    CLASSIC,
    HYBRID,
    PREFERENCE,
    HpkeKeys,
    choose,
    ciphertext_bytes,
    seal,
)

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


def test_an_ml_kem_key_out_of_range_is_no_key(keys: HpkeKeys) -> None:
    # FIPS 203 section 7.2: coefficients are below 3329.
    key = b"\xff" * 1184 + public(keys, HYBRID)[-32:]
    with pytest.raises(MalformedInputError, match="public key MLKEM768"):
        seal(HYBRID, key, SECRET, info=b"")
