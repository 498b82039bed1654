"""Manifests, strings and bundled keys: whatever the bytes, refused or as they say."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.digest import canonical_json, digest_file_bytes, parse_json
from bentoml_secure.errors import MalformedInputError, SecureError
from bentoml_secure.proofs.folder import parse_verification_keys
from bentoml_secure.proofs.manifest import (
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    Manifest,
    sign_manifest,
    verify_manifest,
)
from bentoml_secure.proofs.srs import VERIFIER_BYTES, file_bytes, verifier_part
from bentoml_secure.proofs.unsafe_srs import write_unsafe_srs
from bentoml_secure.signing import Envelope, sign
from tests.manifest_case import ACCURACY, OWNER, manifest, setup

SETTINGS, KEY = b"settings", b"vk"
LOGROWS = 2

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(max_size=6), children, max_size=3)
    ),
    max_leaves=6,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where anything stands in a document."""
    found = [path]
    if isinstance(node, dict):
        entries = list(node.items())
    elif isinstance(node, list):
        entries = list(enumerate(node))
    else:
        return found
    for key, child in entries:
        found += places(child, (*path, key))
    return found


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy with another value in one place."""
    if not path:
        return value
    copied = json.loads(json.dumps(document))
    node = copied
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return copied


@functools.cache
def document() -> dict[str, Any]:
    return manifest().to_json()


@functools.cache
def srs_file() -> bytes:
    stream = io.BytesIO()
    write_unsafe_srs(stream, LOGROWS, 0xC0FFEE)
    return stream.getvalue()


@functools.cache
def bundled() -> dict[str, Any]:
    envelope = sign_manifest(manifest(), OWNER)
    entry = {
        "settings": base64.b64encode(SETTINGS).decode(),
        "key": base64.b64encode(KEY).decode(),
    }
    return {"manifest": envelope.to_json(), "segments": [entry, entry]}


@given(st.data(), JSON)
def test_a_manifest_reads_as_what_it_says_or_not_at_all(
    data: st.DataObject, value: Any
) -> None:
    path = data.draw(st.sampled_from(places(document())))
    given = put(document(), path, value)
    try:
        read = Manifest.from_json(given)
    except MalformedInputError:
        return
    assert canonical_json(read.to_json()) == canonical_json(given)


@given(
    bound=st.floats(min_value=1e-9, max_value=1e9),
    share=st.floats(min_value=0, max_value=1),
    samples=st.integers(1, 2**53 - 1),
    rows=st.integers(1, 2**53 - 1),
    version=st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){1,2}", fullmatch=True),
)
def test_signing_and_verifying_are_inverse(
    bound: float, share: float, samples: int, rows: int, version: str
) -> None:
    largest = bound * share
    made = manifest(
        accuracy=replace(
            ACCURACY,
            bound=bound,
            largest=largest,
            samples=samples,
            by_output={"t2": largest},
        ),
        segments=(setup(0, rows=rows), setup(1)),
        backend_version=version,
    )
    read = verify_manifest(sign_manifest(made, OWNER))
    assert read == made
    assert read.digest == made.digest


@given(st.binary(max_size=200))
def test_signed_bytes_that_are_no_manifest_are_refused(payload: bytes) -> None:
    envelope = Envelope(MANIFEST_TYPE, payload, OWNER.public.key_id, bytes(64))
    with pytest.raises(SecureError, match="manifest"):
        verify_manifest(envelope)


@given(JSON)
def test_signed_documents_that_are_no_manifest_are_refused(value: Any) -> None:
    try:
        envelope = sign(OWNER, MANIFEST_TYPE, value)
    except MalformedInputError:
        return
    with pytest.raises(MalformedInputError, match="manifest"):
        verify_manifest(envelope)


@given(st.integers(0), st.integers(1, 255))
def test_no_byte_of_a_signed_manifest_can_change(place: int, flip: int) -> None:
    envelope = sign_manifest(manifest(), OWNER)
    payload = bytearray(envelope.payload)
    payload[place % len(payload)] ^= flip
    with pytest.raises(SecureError, match=r"."):
        verify_manifest(replace(envelope, payload=bytes(payload)))


def test_a_long_manifest_is_refused_before_it_is_read() -> None:
    payload = b" " * (MAX_MANIFEST_BYTES + 1)
    envelope = Envelope(MANIFEST_TYPE, payload, OWNER.public.key_id, bytes(64))
    with pytest.raises(MalformedInputError, match="want at most"):
        verify_manifest(envelope)


CHANGES: list[Callable[[bytes, int], bytes]] = [
    lambda data, place: data[:place],
    lambda data, place: data + bytes(1 + place % 300),
    lambda data, place: data[:place] + data[place + 1 :],
    lambda data, place: (place % 256).to_bytes(4, "little") + data[4:],
]


@given(st.sampled_from(CHANGES), st.integers(0, file_bytes(LOGROWS) - 1))
def test_a_verifiers_part_is_of_a_whole_file(
    change: Callable[[bytes, int], bytes], place: int
) -> None:
    data = change(srs_file(), place)
    if data == srs_file():
        assert len(verifier_part(data)) == VERIFIER_BYTES
        return
    with pytest.raises(MalformedInputError, match="srs: "):
        verifier_part(data)


@given(st.binary(max_size=600))
def test_bytes_are_no_string(data: bytes) -> None:
    try:
        part = verifier_part(data)
    except MalformedInputError:
        return
    assert len(data) == file_bytes(data[0])
    assert part == data[4:68] + data[-256:]


@given(st.data(), JSON)
def test_bundled_keys_read_as_what_they_say_or_not_at_all(
    data: st.DataObject, value: Any
) -> None:
    path = data.draw(st.sampled_from(places(bundled())))
    given = put(bundled(), path, value)
    try:
        keys = parse_verification_keys(given)
    except SecureError:
        return
    assert keys.to_json() == given
    pairs = zip(keys.keys, keys.manifest.segments, strict=True)
    for key, pinned in pairs:
        assert digest_file_bytes(key.settings) == pinned.settings
        assert digest_file_bytes(key.key) == pinned.key


def test_bundled_keys_survive_the_journey() -> None:
    sent = canonical_json(parse_verification_keys(bundled()).to_json())
    read = parse_verification_keys(parse_json(sent, what="keys", max_bytes=len(sent)))
    assert read.to_json() == bundled()
