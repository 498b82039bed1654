"""Refusals, lost connections, wrong arguments; and replies of any bytes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.client import SecureClient
from bentoml_secure.client.exchange import Reply, require_success
from bentoml_secure.errors import (
    ConfigurationError,
    QuorumNotReached,
    SecureError,
    UnavailableError,
)
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Draft
from tests.unit.client.conftest import (
    FEATURES,
    HELLO,
    RECEIPTS,
    URL,
    Call,
    Clock,
    FakeService,
    script,
)


def refusal(status: int, **error: Any) -> tuple[int, list[tuple[str, str]], bytes]:
    return status, [], json.dumps({"error": error}).encode()


def test_no_quorum_is_raised_with_its_tally(call: Call, service: FakeService) -> None:
    tally = {"groups": [["a"], ["b"]], "accepted": False}
    service.replies["/diagnose"] = refusal(
        503, code="quorum-not-reached", message="no quorum", tally=tally
    )
    with pytest.raises(QuorumNotReached, match="no quorum") as caught:
        call(service)
    assert caught.value.tally == tally


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (
            refusal(400, code="configuration", message="scenario: got 'x'"),
            ConfigurationError,
            r"/diagnose: status 400, configuration: scenario: got 'x'",
        ),
        ((422, [], b'{"error": "bad field"}'), ConfigurationError, "bad field"),
        ((413, [], b"<html>"), ConfigurationError, r"status 413, error: <html>"),
        (
            refusal(429, code="rate-limited", message="m"),
            UnavailableError,
            "rate-limited: m Try again in a second",
        ),
        (refusal(503, code="unavailable", message="m"), UnavailableError, "503"),
        (refusal(503, code="quorum-not-reached"), UnavailableError, "503"),
        (refusal(500, code="internal", message="m"), UnavailableError, "internal"),
        ((502, [], b""), UnavailableError, "status 502"),
    ],
)
def test_refusals_are_raised_as_what_they_mean(
    call: Call, service: FakeService, reply: Any, kind: type[SecureError], said: str
) -> None:
    service.replies["/diagnose"] = reply
    with pytest.raises(kind, match=said):
        call(service)


def test_an_unknown_receipt_is_a_refusal(
    call: Call, service: FakeService, draft: Draft
) -> None:
    path = f"{RECEIPTS}{draft.receipt.receipt_id}"
    service.replies[path] = refusal(404, code="not-found", message="no such receipt")
    with pytest.raises(ConfigurationError, match="no such receipt"):
        call(service)


@pytest.mark.parametrize("path", [HELLO, "/diagnose"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (httpx.ConnectError("refused"), "refused"),
        (httpx.ReadTimeout("slow"), "no reply in time"),
        (httpx.RemoteProtocolError(""), "RemoteProtocolError"),
    ],
)
def test_lost_connections_may_be_tried_again(
    call: Call, service: FakeService, path: str, error: Exception, said: str
) -> None:
    service.replies[path] = error
    with pytest.raises(UnavailableError, match=said) as caught:
        call(service)
    # It is told how far the call came.
    assert caught.value.__notes__[-1].endswith(": FAILED")
    assert len(caught.value.__notes__) == (1 if path == HELLO else 4)


@given(st.integers(300, 599), st.binary(max_size=200))
def test_refusals_of_any_bytes_are_raised_as_printable_errors(
    status: int, body: bytes
) -> None:
    with pytest.raises(SecureError, match=f"status {status}") as caught:
        require_success(Reply(status=status, headers=(), body=body), "/api")
    assert str(caught.value).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "code", "message", "tally", "kind", "key_document"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(path=st.sampled_from([HELLO, "/diagnose", RECEIPTS]), reply=JSON, data=st.data())
def test_replies_of_any_json_raise_only_secure_errors(
    draft: Draft, path: str, reply: object, data: st.DataObject
) -> None:
    service = FakeService.of(draft)
    status = data.draw(st.sampled_from([200, 204, 400, 503]))
    at = path + draft.receipt.receipt_id if path == RECEIPTS else path
    service.replies[at] = (status, [], json.dumps(reply).encode())
    with (
        pytest.raises(SecureError, match=r"\S"),
        SecureClient(
            URL,
            draft.deployment.trust,
            transport=service,
            clock=Clock(draft.deployment.now),
            random_bytes=script(draft),
        ) as client,
    ):
        client.call("diagnose", FEATURES)


class TestArguments:
    @pytest.mark.parametrize(
        ("url", "settings", "said"),
        [
            ("ftp://entry.test", {}, "want http"),
            ("entry.test", {}, "want http"),
            ("http://a:b:c", {}, "url"),
            (URL, {"headers": {"Bsec-Nonce": "00"}}, "protocol's own"),
            (URL, {"headers": {"Accept-Encoding": "gzip"}}, "protocol's own"),
            (URL, {"scenario": "a\r\nb: c"}, "printable ASCII"),
            (URL, {"scenario": ""}, "printable ASCII"),
        ],
    )
    def test_of_a_client(
        self, deployment: Deployment, url: str, settings: Any, said: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=said):
            SecureClient(url, deployment.trust, **settings)

    @pytest.mark.parametrize(
        "api", ["", "/", "a b", "a?b", "a#b", "//host/a", "a%2f", "é", "a\n"]
    )
    def test_a_path_that_is_none(
        self, service: FakeService, deployment: Deployment, api: str
    ) -> None:
        with (
            SecureClient(URL, deployment.trust, transport=service) as client,
            pytest.raises(ConfigurationError, match="want the path of an API"),
        ):
            client.call(api, {})
        assert service.seen == []

    @pytest.mark.parametrize("payload", [float("nan"), {1, 2}, object()])
    def test_a_payload_that_is_no_json(
        self, service: FakeService, deployment: Deployment, payload: object
    ) -> None:
        with (
            SecureClient(URL, deployment.trust, transport=service) as client,
            pytest.raises(ConfigurationError, match="payload is not JSON"),
        ):
            client.call("diagnose", payload)
        assert service.seen == []

    def test_a_prefix_of_the_url_is_kept(
        self, service: FakeService, deployment: Deployment
    ) -> None:
        service.replies[f"/prefix{HELLO}"] = refusal(400, code="seen", message="here")
        with (
            SecureClient(f"{URL}/prefix/", deployment.trust, transport=service) as c,
            pytest.raises(ConfigurationError, match="seen: here"),
        ):
            c.call("diagnose", {})
