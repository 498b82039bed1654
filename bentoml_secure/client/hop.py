"""The first hop: a request sealed to the entry, and its answer opened.

What stands between the two, a proxy or an ingress that ends TLS, sees the path, the
lengths and ciphertext.
"""

from __future__ import annotations

from collections.abc import Mapping

from bentoml_secure.client.exchange import (
    MAX_REFUSAL_BYTES,
    Exchange,
    Reply,
)
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.session.bodies import SEALED_TYPE, SealedCall, Whole, sealed_cap
from bentoml_secure.session.http import MAX_HEAD_BYTES, Inner
from bentoml_secure.session.keys import Session
from bentoml_secure.session.responders import UNKNOWN_SESSION, UnknownSessionError


class SealedHop:
    """One sealed request, and the only answer that it takes.

    Args:
        session: With the entry.
        path: Of the API.
        max_body_bytes: Cap on the answer's body.
    """

    def __init__(self, session: Session, path: str, *, max_body_bytes: int) -> None:
        self._call = SealedCall.begin(session, f"POST {path}")
        self._path = path
        self._max_body_bytes = max_body_bytes
        self._max_bytes = sealed_cap(max_body_bytes + MAX_HEAD_BYTES)

    def request(self, headers: Mapping[str, str], body: bytes) -> Exchange:
        """Return the request, sealed.

        Args:
            headers: That only the entry shall see.
            body: Likewise.
        """
        head, rest = Inner(headers=headers, body=body).encode()
        message = head + rest
        sealed = self._call.seal((message,), (len(message),))
        return Exchange(
            method="POST",
            path=self._path,
            headers={"content-type": SEALED_TYPE},
            body=b"".join(sealed.pieces),
            max_bytes=self._max_bytes,
        )

    def open(self, reply: Reply) -> Reply:
        """Return the answer that was inside; a refusal may stand in the clear.

        Raises:
            UnknownSessionError: The entry does not hold the session (any more).
            MalformedInputError: An answer that is not sealed, or not well-formed.
            VerificationError: It does not open.
        """
        if reply.header("content-type") != SEALED_TYPE:
            if 200 <= reply.status < 300:
                raise MalformedInputError(
                    f"{self._path}: the answer is not sealed",
                    remedy="Nothing in it was read; see who stands before the entry.",
                )
            if reply.status == 401 and _code(reply.body) == UNKNOWN_SESSION:
                raise UnknownSessionError(
                    f"{self._path}: the entry has no such session"
                )
            return reply
        whole: list[Whole] = []

        def begin(length: int) -> Whole:
            whole.append(Whole(length))
            return whole[0]

        opener = self._call.open(reply.status, len(reply.body), begin)
        opener.feed(reply.body)
        opener.finish()
        inner = Inner.decode(whole[0].result(), is_answer=True)
        if inner.status != reply.status:
            raise MalformedInputError(
                f"{self._path} status: got {reply.status}, want {inner.status}"
            )
        if len(inner.body) > self._max_body_bytes:
            raise MalformedInputError(
                f"reply: got more than {self._max_body_bytes} bytes, want at most that"
            )
        return Reply(
            status=reply.status, headers=tuple(inner.headers.items()), body=inner.body
        )


def _code(body: bytes) -> object:
    try:
        document = parse_json(body, what="refusal", max_bytes=MAX_REFUSAL_BYTES)
    except MalformedInputError:
        # A proxy's page: no code, and no reason to try again.
        return None
    error = document.get("error") if isinstance(document, dict) else None
    return error.get("code") if isinstance(error, dict) else None
