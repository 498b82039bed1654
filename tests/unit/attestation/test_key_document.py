from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.attestation import key_document
from bentoml_secure.attestation.key_document import (
    KeyDocument,
    Role,
    package_digest,
    report_data,
)
from bentoml_secure.errors import MalformedInputError

MakeDocument = Callable[..., KeyDocument]


def test_the_digest_is_over_the_canonical_document(document: KeyDocument) -> None:
    # Keys are ASCII and values plain, so sorted compact JSON is the canonical form.
    canonical = json.dumps(
        document.to_json(), sort_keys=True, separators=(",", ":")
    ).encode()
    assert document.digest == f"sha256-jcs-v1:{hashlib.sha256(canonical).hexdigest()}"


def test_report_data_is_the_published_formula(document: KeyDocument) -> None:
    nonce, gpu = bytes(range(32)), b"a GPU's evidence"
    start = (
        b"bentoml-secure/report-data/v1"
        + nonce
        + bytes.fromhex(document.digest.partition(":")[2])
    )
    assert report_data(nonce, document) == hashlib.sha512(start + bytes(32)).digest()
    assert (
        report_data(nonce, document, gpu)
        == hashlib.sha512(start + hashlib.sha256(gpu).digest()).digest()
    )


def test_report_data_of_a_fixed_document_does_not_drift(document: KeyDocument) -> None:
    assert (
        hashlib.sha256(report_data(bytes(32), document)).hexdigest()
        == "7dadbe8cccbaa6e4468d0f56e2d58ad54a74d0006d4c6fa7eefbaf85381c443e"
    )


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_nonce_has_32_bytes(document: KeyDocument, length: int) -> None:
    with pytest.raises(MalformedInputError, match=f"got {length} bytes, want 32"):
        report_data(bytes(length), document)


def test_every_field_changes_the_report_data(make_document: MakeDocument) -> None:
    other: dict[str, Any] = {
        "role": "prover",
        "service": "other",
        "segment": "sha256-jcs-v1:" + "0" * 64,
        "plan": "sha256-jcs-v1:" + "0" * 64,
        "package": "sha256-jcs-v1:" + "0" * 64,
        "config_digest": "sha256-jcs-v1:" + "0" * 64,
        "hpke": {"X25519": "00" * 32},
        "ed25519": "00" * 32,
        "platform": "tdx",
        "boot_id": "00" * 16,
        "not_after": "2026-03-02T12:00:01Z",
    }
    assert other.keys() | {"version"} == make_document().to_json().keys()
    documents = [make_document()] + [
        make_document(**{name: value}) for name, value in other.items()
    ]
    assert len({report_data(bytes(32), each) for each in documents}) == len(documents)


@pytest.mark.parametrize("role", list(Role))
def test_a_document_of_every_role_survives_the_trip(
    make_document: MakeDocument, role: Role
) -> None:
    fields: dict[str, Any] = {"role": role.value}
    if role not in (Role.RUNNER, Role.PROVER):
        fields["segment"] = None
    if role is Role.CLIENT:
        fields |= {"plan": None, "config_digest": None, "platform": None}
    if role is Role.BROKER:
        fields["plan"] = None
    document = make_document(**fields, hpke={"B": "00", "A": "ff" * 1216})
    assert [suite for suite, _ in document.hpke] == ["A", "B"]
    assert KeyDocument.from_json(json.loads(json.dumps(document.to_json()))) == document


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("version", 2, "version: got 2, want 1"),
        ("version", True, "version: got True"),
        ("version", 1.0, "version: got 1.0"),
        ("role", "admin", "role: got 'admin', want one of runner, entry"),
        ("role", ["runner"], "role: got"),
        ("service", "", "service: got ''"),
        ("service", "x" * 129, "service: got"),
        ("service", "a\nb", "service: got"),
        ("service", "\ud800", "service: got"),
        ("service", 1, "service: got 1"),
        ("segment", None, "segment, role runner: got none, want one"),
        ("segment", "sha256:" + "0" * 64, "segment: got sha256:0+, want sha256-jcs-v1"),
        ("plan", None, "plan, role runner: got none, want one"),
        ("plan", 3, "plan: got 3"),
        ("package", None, "package: got None"),
        ("config_digest", None, "config_digest, role runner: got none"),
        ("hpke", [], "hpke: want an object"),
        ("hpke", {"a b": "00"}, "hpke: bad suite 'a b'"),
        ("hpke", {"X25519": ""}, "hpke X25519: want 1 to 2048 bytes"),
        ("hpke", {"X25519": "00" * 2049}, "hpke X25519: want 1 to 2048 bytes"),
        ("hpke", {"X25519": "0"}, "hpke X25519"),
        ("hpke", {"X25519": "ZZ"}, "hpke X25519"),
        ("hpke", {"X25519": None}, "hpke X25519"),
        ("hpke", {f"S{i}": "00" for i in range(9)}, "hpke: got 9 keys, want at most 8"),
        ("ed25519", "11" * 31, "ed25519: got 62 hex digits, want 64"),
        ("ed25519", "AA" * 32, "ed25519: got"),
        ("platform", None, "platform, role runner: got none"),
        ("platform", "SGX!", "platform: got 'SGX!'"),
        ("boot_id", "22" * 15, "boot_id: got 30 hex digits, want 32"),
        ("not_after", "tomorrow", "not_after: got 'tomorrow'"),
    ],
)
def test_a_field_out_of_its_form_is_refused(
    document: KeyDocument, field: str, value: object, match: str
) -> None:
    with pytest.raises(MalformedInputError, match=f"key document {match}"):
        KeyDocument.from_json({**document.to_json(), field: value})


def test_an_unknown_or_missing_field_is_refused(document: KeyDocument) -> None:
    fields = document.to_json()
    with pytest.raises(MalformedInputError, match="unknown field 'urls'"):
        KeyDocument.from_json({**fields, "urls": []})
    del fields["boot_id"]
    with pytest.raises(MalformedInputError, match="field 'boot_id' is missing"):
        KeyDocument.from_json(fields)


def test_an_entry_has_no_segment(document: KeyDocument) -> None:
    with pytest.raises(MalformedInputError, match="role entry: got one, want none"):
        replace(document, role=Role.ENTRY)


@pytest.mark.parametrize(
    "not_after",
    [
        datetime(2026, 3, 2),
        datetime(2026, 3, 2, microsecond=1, tzinfo=UTC),
    ],
)
def test_a_time_that_would_change_on_the_way_is_refused(
    document: KeyDocument, not_after: datetime
) -> None:
    with pytest.raises(MalformedInputError, match="want whole seconds with a time"):
        replace(document, not_after=not_after)


def test_the_package_digest_covers_every_source_file(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    for name in ("__init__.py", "room/a.py", "py.typed", "notes.txt"):
        (tmp_path / name).write_text(name)
    first = key_document._digest_of_code(tmp_path)
    (tmp_path / "notes.txt").write_text("changed")
    (tmp_path / "room" / "__pycache__").mkdir()
    (tmp_path / "room" / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    assert key_document._digest_of_code(tmp_path) == first
    (tmp_path / "room" / "a.py").write_text("changed")
    second = key_document._digest_of_code(tmp_path)
    (tmp_path / "room" / "a.py").rename(tmp_path / "room" / "b.py")
    third = key_document._digest_of_code(tmp_path)
    assert len({first, second, third}) == 3


def test_the_package_digest_is_taken_once_per_process() -> None:
    assert package_digest() is package_digest()
