"""A caller that leaves half-way is answered all the same.

Outside our doors BentoML runs a timer that ends with the first message sent. A door
that just returned would leave request and timer behind for the service's timeout, and
a shutdown waiting for them.
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from bentoml_secure.serving.asgi import App, Message, Receive, Scope, Send
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.entry_door import EntryDoor
from bentoml_secure.serving.exchange import REQUEST_TYPE
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.serving.runner_app import RunnerDoor


async def behind(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("nothing is handed on")


class Identified:
    """As much of an entry or a runner as is looked at before the body has come."""

    keys = None
    max_finish_bytes = 1000

    @property
    def identity(self) -> Identified:
        return self

    @property
    def responder(self) -> Identified:
        return self

    def require_plain(self) -> None:
        pass

    def admit(self, exchange: object) -> None:
        raise AssertionError("no exchange has come")


DOORS: dict[str, App] = {
    "runner": RunnerDoor(behind, lambda: cast(RunnerCore, Identified())),
    "entry": EntryDoor(
        behind,
        entry=lambda: cast(Entry, Identified()),
        apis=["/ask"],
        max_body_bytes=1000,
        salt_token=lambda: None,
    ),
}


@pytest.mark.parametrize(
    ("door", "path"),
    [
        ("runner", "/bsec/v1/infer"),
        ("runner", "/bsec/v1/attest"),
        ("runner", "/bsec/v1/session/hello"),
        ("runner", "/bsec/v1/session/finish"),
        ("entry", "/bsec/v1/session/hello"),
        ("entry", "/bsec/v1/session/finish"),
        ("entry", "/bsec/v1/attest"),
    ],
)
async def test_something_is_sent_to_who_left(door: str, path: str) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", REQUEST_TYPE.encode()), (b"content-length", b"10")]
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": headers,
    }
    await DOORS[door](scope, receive, send)
    assert [message["type"] for message in sent] == [
        "http.response.start",
        "http.response.body",
    ]
    assert sent[0]["status"] == 400
    assert b'"disconnected"' in sent[1]["body"]
