"""The client of Trustee brokers, against a server built from the protocol."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from joserfc.jwk import ECKey

from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    MissingDependencyError,
    PolicyRejected,
    UnavailableError,
)
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.keys.trustee import (
    Resource,
    TrusteeClient,
    decrypt_resource,
    quote_evidence,
    tee_pubkey,
)
from tests.unit.keys.trustee_server import (
    RESOURCE,
    Kbs,
    encrypt_to,
    handler_of,
    serving,
    unpadded,
)

KEY = SegmentKey(bytes(range(32)))
PLACE = Resource(repository="default", type="key", tag="segment-0")


@dataclass(frozen=True)
class Quoting:
    """An attester whose quote is the report data and nothing else."""

    kind: str = "tdx"
    endorsements: tuple[bytes, ...] = ()

    def attest(self, report_data: bytes) -> Evidence:
        assert len(report_data) == 64
        return Evidence(kind=self.kind, blob=report_data)


@pytest.fixture
def kbs() -> Kbs:
    return Kbs(resources={RESOURCE: KEY.reveal()})


@pytest.fixture
def url(kbs: Kbs) -> Iterator[str]:
    with serving(handler_of(kbs)) as address:
        yield address


@pytest.fixture
def client(url: str) -> TrusteeClient:
    return TrusteeClient(url, *quote_evidence(Quoting()))


def test_a_key_is_fetched(client: TrusteeClient, kbs: Kbs) -> None:
    assert client.fetch_key(PLACE) == KEY
    assert [(method, path) for method, path, _ in kbs.seen] == [
        ("POST", "/kbs/v0/auth"),
        ("POST", "/kbs/v0/attest"),
        ("GET", f"/kbs/v0/resource/{RESOURCE}"),
    ]


def test_each_fetch_attests_anew_with_another_key(
    client: TrusteeClient, kbs: Kbs
) -> None:
    assert client.fetch(PLACE) == client.fetch(PLACE) == KEY.reveal()
    keys = [canonical_json(session.tee_pubkey) for session in kbs.sessions.values()]
    assert len(set(keys)) == 2


def test_an_address_may_end_in_a_slash(url: str) -> None:
    client = TrusteeClient(f"{url}/", *quote_evidence(Quoting()))
    assert client.fetch_key(PLACE) == KEY


def test_evidence_over_something_else_is_refused(url: str) -> None:
    client = TrusteeClient(url, "tdx", lambda _: {"quote": "AAAA"})
    with pytest.raises(PolicyRejected, match="report data does not match") as caught:
        client.fetch(PLACE)
    assert [finding.field for finding in caught.value.findings] == ["trustee"]


def test_another_protocol_version(url: str) -> None:
    client = TrusteeClient(url, *quote_evidence(Quoting()), protocol_version="0.1.0")
    with pytest.raises(PolicyRejected, match="Version Mismatch"):
        client.fetch(PLACE)


def test_a_resource_that_is_denied_or_missing(client: TrusteeClient, kbs: Kbs) -> None:
    kbs.denied.add(RESOURCE)
    with pytest.raises(PolicyRejected, match="Access denied by policy"):
        client.fetch(PLACE)
    other = Resource(repository="default", type="key", tag="segment-9")
    with pytest.raises(ConfigurationError, match="segment-9 not found"):
        client.fetch(other)


def test_a_resource_that_is_no_key(client: TrusteeClient, kbs: Kbs) -> None:
    for secret in (b"", b"short", bytes(33)):
        kbs.resources[RESOURCE] = secret
        assert client.fetch(PLACE) == secret
        with pytest.raises(MalformedInputError, match="want 32"):
            client.fetch_key(PLACE)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_broker_in_trouble(client: TrusteeClient, kbs: Kbs, status: int) -> None:
    kbs.edit = lambda path, _, body: (status, body)
    with pytest.raises(UnavailableError, match=f"status {status}"):
        client.fetch(PLACE)


@pytest.mark.parametrize("status", [201, 302, 400, 405])
def test_a_status_of_no_meaning_here(
    client: TrusteeClient, kbs: Kbs, status: int
) -> None:
    kbs.edit = lambda path, _, body: (status, body)
    with pytest.raises(MalformedInputError, match=f"status {status}"):
        client.fetch(PLACE)
    assert len(kbs.seen) == 1


def test_no_broker() -> None:
    with serving(handler_of(Kbs())) as address:
        pass
    client = TrusteeClient(address, *quote_evidence(Quoting()))
    with pytest.raises(UnavailableError, match="Connection refused"):
        client.fetch(PLACE)


@pytest.mark.parametrize(
    ("path", "document", "said"),
    [
        ("auth", b"{", "not valid JSON"),
        ("auth", [], "want an object"),
        ("auth", {}, "nonce: got None"),
        ("auth", {"nonce": "short"}, "nonce: got 'short'"),
        ("auth", {"nonce": 'a"b' * 20}, "want base64"),
        ("auth", {"nonce": "A" * 300}, "want base64"),
        ("attest", {}, "no token"),
        ("attest", {"token": 7}, "no token"),
        ("attest", b"\xff", "not valid JSON"),
        (f"resource/{RESOURCE}", {}, "want protected"),
        (f"resource/{RESOURCE}", b"[" * 100, "not valid JSON"),
    ],
)
def test_answers_out_of_their_form(
    client: TrusteeClient, kbs: Kbs, path: str, document: object, said: str
) -> None:
    kbs.edit = lambda at, status, body: (
        status,
        document if at == f"/kbs/v0/{path}" else body,
    )
    with pytest.raises(MalformedInputError, match=said):
        client.fetch(PLACE)


def test_a_challenge_without_a_cookie(client: TrusteeClient, kbs: Kbs) -> None:
    def no_session(request: Any) -> tuple[int, Any, None]:
        return 200, {"nonce": "A" * 44, "extra-params": ""}, None

    kbs.auth = no_session  # type: ignore[method-assign]
    with pytest.raises(MalformedInputError, match="sets no session cookie"):
        client.fetch(PLACE)
    # Another cookie is not the session's, nor one that would split a header.
    for value in ("other=1", "kbs-session-id=", "kbs-session-id=a b"):
        kbs.headers = {"/kbs/v0/auth": {"Set-Cookie": value}}
        with pytest.raises(MalformedInputError, match="sets no session cookie"):
            client.fetch(PLACE)


def test_a_broker_that_knows_another_key(client: TrusteeClient, kbs: Kbs) -> None:
    mine = tee_pubkey(ECKey.generate_key("P-256"))
    kbs.edit = lambda path, status, body: (
        status,
        encrypt_to(mine, KEY.reveal()) if "resource" in path else body,
    )
    with pytest.raises(CheckFailedError) as caught:
        client.fetch(PLACE)
    assert [finding.field for finding in caught.value.findings] == ["resource"]


# The JWE by itself.

MINE = ECKey.generate_key("P-256", private=True)


def resource(**fields: object) -> dict[str, Any]:
    return {**encrypt_to(tee_pubkey(MINE), b"secret"), **fields}


def test_a_resource_decrypts() -> None:
    assert decrypt_resource(json.dumps(resource()).encode(), MINE) == b"secret"


@pytest.mark.parametrize(
    "part", ["encrypted_key", "iv", "ciphertext", "tag", "protected"]
)
def test_every_part_is_authenticated(part: str) -> None:
    document = resource()
    data = bytearray(document[part].encode())
    # In the middle, so that no unused bits are hit; the header stays JSON.
    at = len(data) // 2
    data[at] = ord("A") if data[at] != ord("A") else ord("B")
    document[part] = data.decode()
    with pytest.raises((CheckFailedError, MalformedInputError)) as caught:
        decrypt_resource(json.dumps(document).encode(), MINE)
    if part != "protected":
        assert isinstance(caught.value, CheckFailedError)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"zip": "DEF"}, "unknown field 'zip'"),
        ({"crit": ["b64"]}, "unknown field 'crit'"),
        ({"alg": "RSA1_5"}, "alg: got 'RSA1_5'"),
        ({"alg": "dir"}, "alg: got 'dir'"),
        ({"enc": "A128CBC-HS256"}, "enc: got"),
        ({"enc": None}, "enc: got None"),
    ],
)
def test_other_algorithms_are_refused_before_any_is_tried(
    fields: dict[str, object], said: str
) -> None:
    document = encrypt_to(tee_pubkey(MINE), b"secret", **fields)
    with pytest.raises(MalformedInputError, match=said):
        decrypt_resource(json.dumps(document).encode(), MINE)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"aad": "AAAA"}, "want protected"),
        ({"header": {}}, "want protected"),
        ({"iv": None}, "iv: want base64url"),
        ({"iv": "A+/="}, "iv: want base64url"),
        ({"protected": "A"}, "protected: "),
        ({"protected": unpadded(b"[]")}, "want an object"),
        ({"protected": unpadded(b'{"alg":1,"alg":2}')}, "a key stands twice"),
    ],
)
def test_what_is_no_flattened_jwe(fields: dict[str, object], said: str) -> None:
    with pytest.raises(MalformedInputError, match=said):
        decrypt_resource(json.dumps(resource(**fields)).encode(), MINE)


@pytest.mark.parametrize(
    "epk",
    [
        None,
        7,
        {},
        {"kty": "EC", "crv": "P-256", "x": "", "y": ""},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-999", "x": "AA", "y": "AA"},
        {"kty": "oct", "k": "AAAA"},
        {"kty": "EC", "crv": "P-256", "x": 3, "y": []},
    ],
)
def test_ephemeral_keys_that_are_none(epk: object) -> None:
    document = encrypt_to(tee_pubkey(MINE), b"secret", epk=epk)
    with pytest.raises(CheckFailedError, match="resource"):
        decrypt_resource(json.dumps(document).encode(), MINE)


@pytest.mark.parametrize("part", ["encrypted_key", "iv", "ciphertext", "tag"])
def test_parts_that_are_empty_or_odd(part: str) -> None:
    for value in ("", "A", "AA", "A" * 5000):
        with pytest.raises(CheckFailedError, match="resource"):
            decrypt_resource(json.dumps(resource(**{part: value})).encode(), MINE)


# Settings.


@pytest.mark.parametrize("tee", ["sample", "sampledevice", "simulated", "", "TDX"])
def test_platforms_that_show_nothing(tee: str) -> None:
    with pytest.raises(ConfigurationError, match="Trustee platform"):
        TrusteeClient("https://kbs.example", tee, lambda _: {})


def test_kinds_whose_evidence_is_not_a_quote() -> None:
    with pytest.raises(ConfigurationError, match="got simulated evidence"):
        quote_evidence(Quoting(kind="simulated"))
    name, make = quote_evidence(Quoting(kind="sgx"))
    assert name == "sgx"
    assert make(bytes(64)) == {"quote": base64.b64encode(bytes(64)).decode()}


@pytest.mark.parametrize("part", ["", "..", "a/b", "a?b", "-a", "a" * 129, "\xe9"])
def test_resources_out_of_their_form(part: str) -> None:
    for place in (("a", "b", part), ("a", part, "c"), (part, "b", "c")):
        repository, kind, tag = place
        with pytest.raises(ConfigurationError, match="Trustee resource"):
            Resource(repository=repository, type=kind, tag=tag)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joserfc.jwe", None)
    with pytest.raises(MissingDependencyError, match=r"bentoml-secure\[tokens\]"):
        TrusteeClient("https://kbs.example", "tdx", lambda _: {})
