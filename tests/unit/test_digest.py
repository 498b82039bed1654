"""Digests that say what they are taken over; salts and commitments."""

from __future__ import annotations

import hashlib
import hmac
import sys

import pytest

from bentoml_secure.digest import (
    FILE,
    JSON,
    Digest,
    Scheme,
    canonical_json,
    commit_body,
    derive_salt,
    digest_bytes,
    digest_file_bytes,
    digest_json,
    equal,
    is_finite_number,
    parse_digest,
    parse_hex,
    parse_json,
)
from bentoml_secure.errors import MalformedInputError, MissingDependencyError

ROOT = bytes(range(32))


def test_each_digest_names_its_rule() -> None:
    raw = hashlib.sha256(b"abc").hexdigest()
    assert digest_bytes(b"abc") == f"sha256:{raw}"
    assert digest_file_bytes(memoryview(b"abc")) == f"{FILE}:{raw}"
    canonical = hashlib.sha256(b'{"a":1,"b":[true,null]}').hexdigest()
    assert digest_json({"b": [True, None], "a": 1}) == f"{JSON}:{canonical}"


def test_canonical_json_is_written_by_one_rule_everywhere() -> None:
    document = {"é": {"b": 1.0, "a": "é"}, "a": [{"z": 1e21, "y": []}, {}]}
    assert canonical_json(document) == (
        '{"a":[{"y":[],"z":1e+21},{}],"é":{"a":"é","b":1}}'.encode()
    )


def test_nesting_without_end_has_no_canonical_form() -> None:
    deep: list[object] = [0.5]
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(MalformedInputError, match="canonical JSON"):
        canonical_json(deep)
    with pytest.raises(MalformedInputError, match="it is not valid JSON"):
        parse_json("[" * 100_000, what="it", max_bytes=1 << 20)


@pytest.mark.parametrize(
    "text",
    [
        None,
        1,
        "",
        "sha256",
        "sha256:",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 129,
        "sha256:" + "A" * 64,
        "SHA256:" + "0" * 64,
        "sha256:" + "0" * 64 + "\n",
        " sha256:" + "0" * 64,
        "-sha256:" + "0" * 64,
        "sha256-:" + "0" * 64,
        "a:b:" + "0" * 64,
    ],
)
def test_what_is_no_digest(text: object) -> None:
    with pytest.raises(MalformedInputError, match=r"it: got .* want <algorithm>:<hex>"):
        parse_digest(text, what="it")


def test_a_digest_of_another_rule_is_refused() -> None:
    digest = digest_bytes(b"")
    assert parse_digest(digest, what="it") == digest
    assert parse_digest(digest, what="it", algorithm="sha256") == digest
    with pytest.raises(
        MalformedInputError, match=r"it: got sha256:.*, want sha256-jcs"
    ):
        parse_digest(digest, what="it", algorithm=JSON)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "want lower-case hex"),
        (b"00", "want lower-case hex"),
        ("0G", "want lower-case hex"),
        ("AB", "want lower-case hex"),
        ("ab\n", "want lower-case hex"),
        ("\u0660\u0660", "want lower-case hex"),
        ("a", "got 1 hex digits, want 2"),
        ("", "got 0 hex digits, want 2"),
        ("abab", "got 4 hex digits, want 2"),
    ],
)
def test_what_is_no_hex(text: object, why: str) -> None:
    with pytest.raises(MalformedInputError, match=f"it: .*{why}"):
        parse_hex(text, what="it", length=1)


def test_hex_is_exact() -> None:
    assert parse_hex("00ff", what="it", length=2) == b"\x00\xff"


@pytest.mark.parametrize(
    ("value", "finite"),
    [
        (0, True),
        (-1.5, True),
        (10**308, True),
        (10**400, False),
        (float("inf"), False),
        (float("nan"), False),
        (True, False),
        ("1", False),
        (None, False),
    ],
)
def test_numbers(value: object, finite: bool) -> None:
    assert is_finite_number(value) is finite


def test_digests_are_compared_whole() -> None:
    assert equal(digest_bytes(b"a"), digest_bytes(b"a"))
    assert not equal(digest_bytes(b"a"), digest_bytes(b"b"))
    assert not equal("é", "e")


def salt(**changes: object) -> bytes:
    arguments = {
        "request_id": b"r" * 16,
        "infer_index": 1,
        "purpose": "tensor",
        "name": "x",
        **changes,
    }
    return derive_salt(ROOT, **arguments)  # type: ignore[arg-type]


def test_salts_are_hkdf_over_parts_with_their_lengths() -> None:
    """RFC 5869 written out, so that another implementation can be held against it."""
    parts = (b"bentoml-secure/salt/v1", b"1", b"tensor", b"x")
    info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    key = hmac.digest(b"r" * 16, ROOT, "sha256")
    assert salt() == hmac.digest(key, info + b"\x01", "sha256")


def test_every_part_changes_the_salt_and_none_runs_into_the_next() -> None:
    salts = {
        salt(),
        salt(request_id=b"s" * 16),
        salt(infer_index=2),
        salt(infer_index=11),
        salt(purpose="body"),
        salt(name="y"),
        salt(purpose="tensorx", name=""),
        salt(purpose="tenso", name="rx"),
        salt(name="é"),
    }
    assert len(salts) == 9
    assert {len(made) for made in salts} == {32}


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_root_salt_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(MalformedInputError, match=f"got {length} bytes, want 32"):
        derive_salt(bytes(length), request_id=b"", infer_index=0, purpose="", name="")


def test_a_body_is_committed_to_under_its_salt() -> None:
    wanted = hmac.digest(ROOT, b"body", "sha256").hex()
    assert commit_body(ROOT, b"body") == f"hmac-sha256:{wanted}"
    assert commit_body(ROOT, bytearray(b"body")) == commit_body(ROOT, b"body")
    assert commit_body(bytes(32), b"body") != commit_body(ROOT, b"body")


@pytest.mark.parametrize(
    ("length", "wanted"),
    [
        (0, "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26"),
        (1, "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b"),
    ],
)
def test_blake3_is_that_of_its_authors_vectors(length: int, wanted: str) -> None:
    # github.com/BLAKE3-team/BLAKE3, test_vectors.json, keyed_hash.
    key = b"whats the Elvish word for friend"
    body = bytes(index % 251 for index in range(length))
    assert commit_body(key, body, Scheme.BLAKE3) == f"blake3-keyed:{wanted}"


def test_a_scheme_is_read_off_a_commitment() -> None:
    for scheme in Scheme:
        body = commit_body(ROOT, b"body", scheme)
        assert Scheme.of(body) is scheme
        assert Scheme.of(Digest(f"{scheme.tensor}:{'0' * 64}")) is scheme


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(MissingDependencyError, match=r"bentoml-secure\[fast\]"):
        commit_body(ROOT, b"body", Scheme.BLAKE3)
