"""What stands around a sealed request: the network's, and not what handlers read."""

from __future__ import annotations

from typing import Any

import pytest

from bentoml_secure.errors import MalformedInputError
from bentoml_secure.serving.sealed_request import SealedRequest
from bentoml_secure.session.bodies import SealedCall
from bentoml_secure.session.http import Inner
from bentoml_secure.session.responders import Responder
from tests.unit.session.session_parts import Ground

PATH = "/predict"


def sealed(ground: Ground) -> tuple[Responder, bytes]:
    responder = ground.responder(ground.entry(), ground.judge_anybody)
    session, _ = ground.shake_as_client(responder)
    message = b"".join(Inner(headers={"accept": "a/b"}, body=b"question").encode())
    made = SealedCall.begin(session, f"POST {PATH}").seal([message], [len(message)])
    return responder, b"".join(made.pieces)


def scope(**more: Any) -> dict[str, Any]:
    return {"path": PATH, "headers": [], "query_string": b"", **more}


def test_headers_inside_count_and_no_others() -> None:
    responder, body = sealed(Ground())
    outside = [(b"accept", b"text/plain"), (b"host", b"h"), (b"cookie", b"c")]
    around = scope(headers=outside)
    opened = SealedRequest(responder, around, body, max_bytes=99).open()
    assert opened.body == b"question"
    assert opened.scope["headers"] == [
        (b"host", b"h"),
        (b"accept", b"a/b"),
        (b"content-length", b"8"),
    ]


def test_a_query_outside_the_seal_is_refused() -> None:
    responder, body = sealed(Ground())
    request = SealedRequest(
        responder, scope(query_string=b"limit=0"), body, max_bytes=99
    )
    with pytest.raises(MalformedInputError, match="a query outside the seal"):
        request.open()
    # Nothing was opened, and no id is used up.
    assert request.answering is None
    assert SealedRequest(responder, scope(), body, max_bytes=99).open().body
