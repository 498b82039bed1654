"""What strangers send to the entry and to runners: pickles, paths, lengths, drips."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bentoml_secure.serving.exchange import REQUEST_TYPE
from bentoml_secure.session.bodies import SEALED_TYPE, sealed_cap
from bentoml_secure.testing.rogue.streams import pickle_payload
from tests.attacks import raw
from tests.attacks.targets import CAP_BYTES, REPLICAS, SERVICE, Target, error_of
from tests.harness import sample

PICKLE = "application/vnd.bentoml+pickle"

TYPE, JSON = ("Content-Type", PICKLE), ("content-type", "application/json")
PICKLE_HEADERS = {
    "plain": [TYPE],
    "odd case": [("cOnTeNt-TyPe", "Application/VND.BentoML+PICKLE")],
    "parameter": [("Content-Type", f"{PICKLE}; charset=utf-8")],
    "json then pickle": [JSON, TYPE],
    "pickle then json": [TYPE, JSON],
    "joined": [("Content-Type", f"application/json, {PICKLE}")],
    "buffers": [TYPE, ("Buffer-Lengths", "1,2,3")],
}
API_LIKE = [
    "//diagnose",
    "/diagnose/",
    "/diagnose/../diagnose",
    "/Diagnose",
    "/silent/",
]


@pytest.fixture
def marker(target: Target) -> Iterator[Path]:
    folder = target.project.folder / "unpickled"
    yield folder
    assert not folder.exists()


@pytest.fixture(autouse=True)
def _memory_and_service_hold(target: Target) -> Iterator[None]:
    with target.watched():
        yield
        assert target.is_whole()
    target.ask()


@pytest.mark.parametrize("headers", PICKLE_HEADERS.values(), ids=PICKLE_HEADERS)
@pytest.mark.parametrize("path", ["/diagnose", "/silent", "/bsec/v1/attest", "/livez"])
def test_the_entry_reads_no_pickle(
    target: Target, marker: Path, path: str, headers: raw.Headers
) -> None:
    said = raw.post(target.url, path, pickle_payload(marker), headers)
    assert (said.status, said.code) == (400, "malformed-input")
    assert "pickle is never read" in said.message or "stands 2 times" in said.message


@pytest.mark.parametrize("replica", REPLICAS)
@pytest.mark.parametrize("headers", PICKLE_HEADERS.values(), ids=PICKLE_HEADERS)
def test_no_runner_reads_a_pickle(
    target: Target, marker: Path, replica: str, headers: raw.Headers
) -> None:
    url = target.served.replica_urls()[replica]
    for path, status in (("/bsec/v1/infer", 400), ("/diagnose", 404), ("/", 404)):
        said = raw.post(url, path, pickle_payload(marker), headers)
        assert said.status == status
        assert said.code in ("malformed-input", "not-found")


def test_a_pickle_called_an_exchange_is_no_exchange(
    target: Target, marker: Path
) -> None:
    url = target.served.replica_urls()[REPLICAS[0]]
    for name, code in ((REQUEST_TYPE, "configuration"), (SEALED_TYPE, "malformed-")):
        typed = [("Content-Type", name)]
        said = raw.post(url, "/bsec/v1/infer", pickle_payload(marker), typed)
        assert said.status in (400, 401)
        assert said.code.startswith((code, "unknown-session"))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "//bsec/v1/infer"),
        ("POST", "/bsec/v1/../v1/infer"),
        ("POST", "/bsec/v1/infer/"),
        ("POST", "/BSEC/v1/infer"),
        ("POST", "/bsec/v1/receipts/00"),
        ("GET", "/bsec/v1/infer"),
        ("PUT", "/bsec/v1/infer"),
        ("GET", "/schema.json"),
        ("GET", "/docs.json"),
        ("GET", "/"),
        ("GET", "/static_content/index.css"),
        ("POST", "/livez"),
        ("POST", "/readyz"),
        ("POST", "/metrics"),
        ("POST", "/is_ready"),
        ("OPTIONS", "*"),
    ],
)
def test_a_runner_knows_no_other_path(
    target: Target, marker: Path, method: str, path: str
) -> None:
    url = target.served.replica_urls()[REPLICAS[3]]
    payload = pickle_payload(marker)
    said = raw.post(url, path, payload, [("Content-Type", PICKLE)], method=method)
    assert (said.status, said.code) == (404, "not-found")


@pytest.mark.parametrize("name", [SERVICE, REPLICAS[0]])
def test_no_websocket_is_opened(target: Target, name: str) -> None:
    url = target.served.replica_urls()[name]
    headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
    ]
    said = raw.exchange(url, [raw.head("GET", "/bsec/v1/infer", headers)])
    assert said.status in (403, 404)


@pytest.mark.parametrize("path", API_LIKE)
def test_no_spelling_of_an_api_goes_unrecorded(target: Target, path: str) -> None:
    body = json.dumps({"features": sample(1).tolist()}).encode()
    said = raw.post(target.url, path, body, [("Content-Type", "application/json")])
    assert said.status in (307, 404)


def test_a_percent_encoded_api_is_recorded_all_the_same(target: Target) -> None:
    response = target.post("%73ilent")
    assert response.status_code == 500
    assert error_of(response)["code"] == "handler"


def test_a_handler_without_infer_answers_nothing(target: Target) -> None:
    response = target.post("silent")
    assert response.status_code == 500
    error = error_of(response)
    assert error["code"] == "handler"
    assert "answered without an infer" in error["message"]
    assert "malignant" not in response.text


def test_a_handler_cannot_speak_in_the_entrys_name(target: Target) -> None:
    response = target.post("boast")
    assert response.status_code == 200
    assert response.headers.get_list("bsec-receipt-id") != ["0" * 32]
    assert len(response.headers.get_list("bsec-receipt-id")) == 1
    assert "bsec-approved-by" not in response.headers


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([("Bsec-Scenario", "lax")], "want one of general, unanimous"),
        ([("Bsec-Scenario", "")], "want one of"),
        ([("Bsec-Nonce", "00")], "got 2 hex digits, want 64"),
        ([("Bsec-Nonce", "G" * 64)], "want lower-case hex"),
        ([("Bsec-Nonce", "A" * 64)], "want lower-case hex"),
        ([("Bsec-Root-Salt", "0" * 63)], "got 63 hex digits, want 64"),
        ([("Bsec-Evidence-Nonce", "0" * 66)], "got 66 hex digits, want 64"),
        ([("Bsec-Nonce", "\xff" * 64)], "not ASCII"),
        ([("Bsec-Nonce", "0" * 64)] * 2, "bsec-nonce: stands 2 times"),
        ([("Bsec-Scenario", "general")] * 2, "bsec-scenario: stands 2 times"),
        (
            [("bsec-root-salt", "0" * 64), ("BSEC-ROOT-SALT", "1" * 64)],
            "bsec-root-salt: stands 2 times",
        ),
    ],
)
def test_headers_of_bad_form_are_refused(
    target: Target, headers: raw.Headers, reason: str
) -> None:
    body = json.dumps({"features": sample(1).tolist()}).encode()
    typed = [("Content-Type", "application/json"), *headers]
    said = raw.post(target.url, "/diagnose", body, typed)
    assert said.status == 400
    assert reason in said.message


@pytest.mark.parametrize("name", [SERVICE, REPLICAS[0]])
def test_a_body_over_the_cap_is_refused_unread(target: Target, name: str) -> None:
    path, typed = door_of(name)
    url = target.served.replica_urls()[name]
    cap = CAP_BYTES if name == SERVICE else sealed_cap(CAP_BYTES)
    said = raw.post(url, path, b"", [("Content-Type", typed)], length=cap + 1)
    assert (said.status, said.code) == (413, "too-large")
    assert f"want at most {cap} bytes" in said.message


def test_a_sealed_body_over_the_cap_is_refused_unread(target: Target) -> None:
    cap, typed = sealed_cap(CAP_BYTES), [("Content-Type", SEALED_TYPE)]
    said = raw.post(target.url, "/diagnose", b"", typed, length=cap + 1)
    assert (said.status, said.code) == (413, "too-large")


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "9" * 30])
@pytest.mark.parametrize("name", [SERVICE, REPLICAS[0]])
def test_a_length_that_is_none_is_refused(
    target: Target, name: str, length: str
) -> None:
    path, typed = door_of(name)
    headers = [("Content-Type", typed), ("Content-Length", length)]
    url = target.served.replica_urls()[name]
    said = raw.exchange(url, [raw.head("POST", path, headers)])
    assert said.status in (400, 413)


def test_an_endless_body_to_the_entry_ends_at_the_cap(target: Target) -> None:
    headers = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
    head = raw.head("POST", "/diagnose", headers)
    pieces = [head, *raw.chunks(b"[" * (1 << 20), 64)]
    said = raw.exchange(target.url, pieces)
    assert (said.status, said.code) == (413, "too-large")


def test_an_endless_body_to_a_runner_is_refused_unread(target: Target) -> None:
    headers = [("Content-Type", SEALED_TYPE), ("Transfer-Encoding", "chunked")]
    head = raw.head("POST", "/bsec/v1/infer", headers)
    url = target.served.replica_urls()[REPLICAS[0]]
    said = raw.exchange(url, [head, *raw.chunks(bytes(1 << 20), 64)])
    assert (said.status, said.code) == (400, "malformed-input")
    assert "content-length: want one" in said.message


@pytest.mark.parametrize("name", [SERVICE, REPLICAS[0]])
def test_slow_callers_hold_up_nobody(target: Target, name: str) -> None:
    callers = [begin(target, name) for _ in range(50)]
    try:
        ends = time.monotonic() + 1.5
        while time.monotonic() < ends:
            for caller in callers:
                caller.sendall(b"0")
            started = time.monotonic()
            target.ask()
            assert time.monotonic() - started < 2
    finally:
        for caller in callers:
            caller.close()


@pytest.mark.parametrize("name", [SERVICE, REPLICAS[0]])
def test_callers_that_leave_half_way_leave_nothing(target: Target, name: str) -> None:
    for _ in range(20):
        with begin(target, name) as caller:
            caller.sendall(bytes(1 << 16))
            caller.shutdown(socket.SHUT_RDWR)
    assert "Traceback" not in target.served.log()


def begin(target: Target, name: str) -> socket.socket:
    """Send the head of a request, and as much body as is not refused yet."""
    path, typed = door_of(name)
    headers = [("Content-Type", typed), ("Content-Length", str(CAP_BYTES))]
    caller = raw.connect(target.served.replica_urls()[name])
    caller.sendall(raw.head("POST", path, headers) + b"\0\2\0\0")
    return caller


def door_of(name: str) -> tuple[str, str]:
    """Return path and content type of a service's main door."""
    if name == SERVICE:
        return "/diagnose", "application/json"
    return "/bsec/v1/infer", SEALED_TYPE
