"""The Nitro security module: a fake driver behind the one system call."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import pytest

from bentoml_secure.attestation.attesters import open_attester
from bentoml_secure.attestation.attesters.nitro import NitroAttester
from bentoml_secure.attestation.tees.nitro import Nitro
from bentoml_secure.errors import MalformedInputError, UnavailableError
from bentoml_secure.testing.nitro_pki import NitroPki
from tests.evidence_vectors import vector

REPORT_DATA = bytes(range(64))
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class FakeDriver:
    """Reads the request from memory and writes the response there, as the kernel."""

    def __init__(self, answer: Callable[[Any], bytes]) -> None:
        self._answer = answer
        self.calls: list[tuple[int, Any]] = []

    def __call__(self, device: int, request: int, message: bytearray) -> int:
        assert device > 2
        asked, length, room, capacity = struct.unpack("=QQQQ", message)
        assert length <= 0x1000
        assert capacity == 0x3000
        question = cbor2.loads(ctypes.string_at(asked, length))
        self.calls.append((request, question))
        response = self._answer(question)
        ctypes.memmove(room, response, min(len(response), capacity))
        message[:] = struct.pack("=QQQQ", asked, length, room, len(response))
        return 0


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., tuple[NitroAttester, FakeDriver]]:
    def make(answer: Callable[[Any], bytes]) -> tuple[NitroAttester, FakeDriver]:
        (tmp_path / "nsm").touch()
        driver = FakeDriver(answer)
        return NitroAttester(tmp_path / "nsm", ioctl=driver), driver

    return make


Open = Callable[[Callable[[Any], bytes]], tuple[NitroAttester, FakeDriver]]


def answering(document: bytes) -> Callable[[Any], bytes]:
    return lambda _: cbor2.dumps({"Attestation": {"document": document}})


def test_a_document_over_the_report_data_verifies(opened: Open) -> None:
    pki = NitroPki(now=NOW)

    def answer(question: Any) -> bytes:
        document = pki.attest(question["Attestation"]["user_data"]).blob
        return answering(document)(question)

    attester, driver = opened(answer)
    evidence = attester.attest(REPORT_DATA)
    assert attester.kind == evidence.kind == "nitro"
    assert not attester.endorsements
    assert Nitro(root=pki.root).verify(evidence, (), now=NOW).report_data == REPORT_DATA
    fields = {"user_data": REPORT_DATA, "nonce": None, "public_key": None}
    # _IOWR(0x0A, 0, 32 bytes)
    number = 3 << 30 | 32 << 16 | 0x0A << 8
    assert driver.calls == [(number, {"Attestation": fields})]


def test_an_answer_of_amazons_shape(opened: Open) -> None:
    document = vector("nitro/ok.cose")
    attester, _ = opened(answering(document))
    assert attester.attest(REPORT_DATA).blob == document


@pytest.mark.parametrize("length", [0, 32, 63, 65, 512])
def test_it_attests_64_bytes(opened: Open, length: int) -> None:
    attester, _ = opened(answering(b"document"))
    with pytest.raises(MalformedInputError, match=f"got {length} bytes, want 64"):
        attester.attest(bytes(length))


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (cbor2.dumps({"Error": "InvalidOperation"}), "refuses: InvalidOperation"),
        (cbor2.dumps({"Attestation": {}}), "answers without a document"),
        (cbor2.dumps({"Attestation": {"document": "text"}}), "without a document"),
        (cbor2.dumps("LockPCR"), "answers without a document"),
        (cbor2.dumps([]), "answers without a document"),
        (b"", "answer of the security module"),
        (b"\xa1", "answer of the security module"),
        (b"\xff" * 0x3001, "answer of the security module"),
    ],
)
def test_answers_that_are_none(opened: Open, answer: bytes, match: str) -> None:
    attester, _ = opened(lambda _: answer)
    with pytest.raises(UnavailableError, match=match):
        attester.attest(REPORT_DATA)


def test_a_driver_that_fails(opened: Open) -> None:
    def refuse(_: Any) -> bytes:
        raise OSError(errno.EMSGSIZE, "Message too long")

    attester, _ = opened(refuse)
    with pytest.raises(UnavailableError, match="Message too long"):
        attester.attest(REPORT_DATA)


def test_no_device(tmp_path: Path) -> None:
    environ = {"BENTOML_SECURE_NSM": str(tmp_path / "nsm")}
    with pytest.raises(UnavailableError, match="this is no Nitro enclave"):
        open_attester("nitro", environ, clock=lambda: NOW)
    (tmp_path / "nsm").mkdir()
    with pytest.raises(UnavailableError, match="Is a directory"):
        open_attester("nitro", environ, clock=lambda: NOW)
    (tmp_path / "nsm").rmdir()
    (tmp_path / "nsm").touch()
    assert open_attester("nitro", environ, clock=lambda: NOW).kind == "nitro"
