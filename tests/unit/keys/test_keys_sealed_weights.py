"""The form of a sealed file: what opens, and what does not."""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from bentoml_secure.digest import Digest, canonical_json, digest_file_bytes, digest_json
from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
)
from bentoml_secure.keys import sealed_weights
from bentoml_secure.keys.sealed_weights import (
    MAGIC,
    MAX_HEADER_BYTES,
    MIN_CHUNK_BYTES,
    SealedHeader,
    open_sealed,
    read_header,
    seal,
)
from bentoml_secure.keys.segment_key import SegmentKey

KEY = SegmentKey(bytes(range(32)))
SEGMENT = digest_json("segment 0")
PATH = "segment-0.onnx"
CHUNK = MIN_CHUNK_BYTES
PLAIN = os.urandom(3 * CHUNK + 17)


def sealed(plain: bytes = PLAIN, *, key: SegmentKey = KEY, path: str = PATH) -> bytes:
    target = io.BytesIO()
    digest = seal(
        io.BytesIO(plain),
        target,
        key,
        segment=SEGMENT,
        path=path,
        plain_bytes=len(plain),
        chunk_bytes=CHUNK,
    )
    assert digest == digest_file_bytes(plain)
    return target.getvalue()


def opened(
    data: bytes,
    *,
    key: SegmentKey = KEY,
    segment: Digest = SEGMENT,
    path: str = PATH,
    max_bytes: int = 1 << 20,
) -> bytes:
    return open_sealed(
        io.BytesIO(data),
        len(data),
        key,
        segment=segment,
        path=path,
        max_bytes=max_bytes,
    )


def refused(data: bytes, **arguments: object) -> str:
    with pytest.raises(CheckFailedError) as caught:
        opened(data, **arguments)  # type: ignore[arg-type]
    (finding,) = caught.value.findings
    return finding.field


def header_of(data: bytes) -> tuple[SealedHeader, int]:
    source = io.BytesIO(data)
    header = read_header(source)
    return header, source.tell()


def with_header(data: bytes, edit: Callable[[dict[str, object]], object]) -> bytes:
    """Return a sealed file with another header, its chunks as they were."""
    _, start = header_of(data)
    document = json.loads(data[10:start])
    edit(document)
    text = canonical_json(document)
    return MAGIC + len(text).to_bytes(2, "big") + text + data[start:]


def sealed_as(header: SealedHeader, plain: bytes, key: SegmentKey = KEY) -> bytes:
    """Seal one chunk under any header at all."""
    before = header.to_bytes()
    cipher = sealed_weights._cipher(key, header)
    return before + cipher.encrypt(sealed_weights._nonce(header, 0), plain, before)


@pytest.mark.parametrize(
    "length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 17]
)
def test_what_was_sealed_opens(length: int) -> None:
    plain = PLAIN[:length]
    data = sealed(plain)
    assert opened(data) == plain
    assert header_of(data)[0].sealed_bytes == len(data)


def test_the_default_chunk_is_a_mebibyte() -> None:
    target, plain = io.BytesIO(), bytes((1 << 20) + 1)
    seal(
        io.BytesIO(plain),
        target,
        KEY,
        segment=SEGMENT,
        path=PATH,
        plain_bytes=len(plain),
    )
    assert header_of(target.getvalue())[0].chunks == 2


def test_a_sealed_file_shows_nothing_of_the_plaintext_and_is_new_each_time() -> None:
    plain = bytes(2 * CHUNK)
    first, second = sealed(plain), sealed(plain)
    assert bytes(64) not in first
    start = header_of(first)[1]
    assert first[start : start + 64] != second[start : start + 64]
    assert first[start : start + CHUNK] != first[start + CHUNK + 16 :][:CHUNK]


def test_another_key() -> None:
    assert refused(sealed(), key=SegmentKey(bytes(32))) == "key_id"


def test_another_key_that_the_header_calls_right() -> None:
    other = SegmentKey(bytes(32))

    def claim(header: dict[str, object]) -> None:
        header["key_id"] = other.key_id

    assert refused(with_header(sealed(), claim), key=other) == "chunk"


def test_a_header_that_names_another_key_than_the_one_it_was_sealed_under() -> None:
    # Without this check a file could open under two keys: GCM does not commit.
    header = replace(header_of(sealed(b"x"))[0], key_id=SegmentKey(bytes(32)).key_id)
    assert refused(sealed_as(header, b"x")) == "key_id"


def test_another_segment() -> None:
    assert refused(sealed(), segment=digest_json("segment 1")) == "segment"


def test_another_file_of_the_segment() -> None:
    assert refused(sealed(), path="weights.bin") == "path"
    assert refused(sealed(path="weights.bin")) == "path"


def test_segment_and_path_decide_the_key_too() -> None:
    def elsewhere(header: dict[str, object]) -> None:
        header["path"] = "weights.bin"

    data = with_header(sealed(), elsewhere)
    assert refused(data, path="weights.bin") == "chunk"


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_cut_at_the_edge_of_a_chunk(kept: int) -> None:
    data = sealed()
    start = header_of(data)[1]
    cut = data[: start + kept * (CHUNK + 16)]
    assert refused(cut) == "length"

    def shorter(header: dict[str, object]) -> None:
        header["plain_bytes"] = kept * CHUNK

    # With a header that fits the length, the chunks do not open.
    fitting = with_header(cut, shorter)
    assert refused(fitting) == ("length" if kept == 0 else "chunk")


def test_the_last_chunk_is_marked_as_such() -> None:
    header, start = header_of(sealed(PLAIN[: 2 * CHUNK]))
    before = header.to_bytes()
    cipher = sealed_weights._cipher(KEY, header)
    chunks = [
        cipher.encrypt(number.to_bytes(11, "big") + b"\0", PLAIN[:CHUNK], before)
        for number in range(2)
    ]
    assert start == len(before)
    assert refused(before + b"".join(chunks)) == "chunk"


def test_appended_bytes() -> None:
    assert refused(sealed() + b"\0") == "length"
    assert refused(sealed() + bytes(CHUNK + 16)) == "length"


def test_swapped_chunks() -> None:
    data = sealed(PLAIN[: 2 * CHUNK])
    start = header_of(data)[1]
    first, second = data[start : start + CHUNK + 16], data[start + CHUNK + 16 :]
    assert refused(data[:start] + second + first) == "chunk"


def test_a_chunk_of_another_file_of_the_same_segment() -> None:
    mine, other = sealed(PLAIN[:CHUNK]), sealed(PLAIN[:CHUNK])
    start = header_of(mine)[1]
    assert refused(mine[:start] + other[start:]) == "chunk"


@pytest.mark.parametrize("at", [0, CHUNK, CHUNK + 15, CHUNK + 16, 2 * CHUNK])
def test_one_flipped_bit(at: int) -> None:
    whole = sealed()
    data = bytearray(whole)
    data[header_of(whole)[1] + at] ^= 1
    assert refused(bytes(data)) == "chunk"


def test_a_file_that_became_shorter_while_it_was_read() -> None:
    data = sealed()
    with pytest.raises(CheckFailedError, match="chunk"):
        open_sealed(io.BytesIO(data[:-20]), len(data), KEY, segment=SEGMENT, path=PATH)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("salt", "00" * 32),
        ("chunk_bytes", 2 * CHUNK),
        ("plain_bytes", len(PLAIN) - 1),
    ],
)
def test_an_edited_header(field: str, value: object) -> None:
    def edit(header: dict[str, object]) -> None:
        header[field] = value

    assert refused(with_header(sealed(), edit)) in ("chunk", "length")


def test_too_large_is_refused_before_anything_opens() -> None:
    with pytest.raises(MalformedInputError, match=r"got 12305 bytes, want at most 9"):
        opened(sealed(), max_bytes=9)


def test_a_length_that_lies_allocates_nothing() -> None:
    def enormous(header: dict[str, object]) -> None:
        header["plain_bytes"] = 60 << 30

    assert refused(with_header(sealed(), enormous), max_bytes=64 << 30) == "length"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "begins with b''"),
        (b"BSECSEAL", "begins with"),
        (b"PK\x03\x04" + bytes(40), "begins with"),
        (MAGIC + b"\0\0", "got 0 bytes"),
        (MAGIC + b"\xff\xff", f"want 1 to {MAX_HEADER_BYTES}"),
        (MAGIC + b"\0\x09{}", "ends after 2 of 9"),
        (MAGIC + b"\0\x02{}", "is missing"),
        (MAGIC + b"\0\x02[]", "want an object"),
        (MAGIC + b"\0\x02\xff\xff", "not valid JSON"),
    ],
)
def test_what_is_no_sealed_file(data: bytes, said: str) -> None:
    with pytest.raises(MalformedInputError, match=said):
        opened(data)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("version", 2, "version: got 2, want 1"),
        ("version", True, "version: got True"),
        ("algorithm", "AES-128-GCM", "algorithm: got 'AES-128-GCM'"),
        ("chunk_bytes", 0, "chunk_bytes"),
        ("chunk_bytes", CHUNK + 1, "power of two"),
        ("chunk_bytes", 32 << 20, "chunk_bytes"),
        ("chunk_bytes", CHUNK + 0.5, "chunk_bytes"),
        ("plain_bytes", -1, "plain_bytes"),
        ("plain_bytes", True, "plain_bytes"),
        ("plain_bytes", (64 << 30) + 1, "plain_bytes"),
        ("salt", "00" * 31, "salt"),
        ("salt", None, "salt"),
        ("key_id", "A" * 64, "key_id"),
        ("segment", "sha256:" + "0" * 64, "segment"),
        ("path", "../weights", "path"),
        ("path", 7, "path"),
        ("more", 1, "unknown field 'more'"),
    ],
)
def test_a_header_out_of_its_form(field: str, value: object, said: str) -> None:
    def edit(header: dict[str, object]) -> None:
        header[field] = value

    with pytest.raises(MalformedInputError, match=said):
        opened(with_header(sealed(), edit))


def test_a_header_that_is_not_canonical() -> None:
    data = sealed()
    start = header_of(data)[1]
    text = data[10:start].replace(b'":', b'": ', 1)
    spaced = MAGIC + len(text).to_bytes(2, "big") + text + data[start:]
    with pytest.raises(MalformedInputError, match="not canonical"):
        opened(spaced)


@pytest.mark.parametrize("claimed", [len(PLAIN) - 1, len(PLAIN) + 1])
def test_a_plaintext_that_changes_while_it_is_sealed(claimed: int) -> None:
    with pytest.raises(ConfigurationError, match="changed while it was sealed"):
        seal(
            io.BytesIO(PLAIN),
            io.BytesIO(),
            KEY,
            segment=SEGMENT,
            path=PATH,
            plain_bytes=claimed,
            chunk_bytes=CHUNK,
        )


def test_a_key_does_not_get_out_by_accident() -> None:
    secret = bytes(range(32)).hex()
    assert secret not in f"{KEY!r} {KEY} {[KEY]}"
    assert KEY.key_id in repr(KEY)
    for make in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            make(KEY)


def test_keys_are_equal_by_their_bytes() -> None:
    assert SegmentKey(bytes(range(32))) == KEY
    assert hash(SegmentKey(bytes(range(32)))) == hash(KEY)
    assert SegmentKey.generate() != SegmentKey.generate()
    assert KEY.reveal() != KEY


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length(length: int) -> None:
    with pytest.raises(MalformedInputError, match=f"got {length} bytes, want 32"):
        SegmentKey(bytes(length))


def test_the_form_is_the_documented_one() -> None:
    """Opened here with nothing of the package but the key's bytes."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    data = sealed()
    length = int.from_bytes(data[8:10], "big")
    before, rest = data[: 10 + length], data[10 + length :]
    header = json.loads(before[10:])
    info = b""
    for part in ("bentoml-secure/sealed/v1", header["segment"], header["path"]):
        info += len(part).to_bytes(4, "big") + part.encode()
    key = HKDF(SHA256(), 32, bytes.fromhex(header["salt"]), info).derive(KEY.reveal())
    size = header["chunk_bytes"] + 16
    chunks = [rest[at : at + size] for at in range(0, len(rest), size)]
    plain = b"".join(
        AESGCM(key).decrypt(
            number.to_bytes(11, "big") + bytes([number == len(chunks) - 1]),
            chunk,
            before,
        )
        for number, chunk in enumerate(chunks)
    )
    assert plain == PLAIN
    named = HKDF(SHA256(), 32, b"", b"bentoml-secure/key-id/v1").derive(KEY.reveal())
    assert header["key_id"] == named.hex()
