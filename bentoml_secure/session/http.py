"""HTTP messages as they stand inside sealed bodies: headers, then the body.

    request   u32 big-endian length, JSON {"headers": {name: value}}, body
    answer    u32 big-endian length, JSON {"headers": {name: value}, "status": code},
              body

Header names are lower case; each stands once. Those outside a sealed body are the
network's, and say nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bentoml_secure.digest import canonical_json, parse_json, require_fields
from bentoml_secure.errors import MalformedInputError

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
_LENGTH = struct.Struct(">I")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,128}")
_VALUE = re.compile(r"(?:[!-~](?:[ \t!-~]*[!-~])?)?")

# Of one connection, or of the body as it travels: none of the message inside.
_NOT_INSIDE = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A message that was, or is to be, sealed.

    Attributes:
        headers: By lower-case name.
        body: Exact bytes.
        status: Of an answer; None in a request.
    """

    headers: Mapping[str, str]
    body: bytes
    status: int | None = None

    def encode(self) -> tuple[bytes, bytes]:
        """Return the head with its length, and the body.

        Raises:
            MalformedInputError: A header that is none, or of the connection.
        """
        head: dict[str, Any] = {"headers": _headers(self.headers)}
        if self.status is not None:
            head["status"] = self.status
        text = canonical_json(head)
        return _LENGTH.pack(len(text)) + text, self.body

    @classmethod
    def decode(cls, message: bytes, *, is_answer: bool) -> Inner:
        """Parse what ``encode`` wrote.

        Raises:
            MalformedInputError: A length, field or header of another form.
        """
        if len(message) < _LENGTH.size:
            raise MalformedInputError("sealed HTTP message: it ended early")
        length = int(_LENGTH.unpack_from(message)[0])
        if length > min(MAX_HEAD_BYTES, len(message) - _LENGTH.size):
            raise MalformedInputError(
                f"sealed HTTP message: announces a head of {length} bytes"
            )
        end = _LENGTH.size + length
        wanted = {"headers", "status"} if is_answer else {"headers"}
        what = "sealed HTTP message"
        head = require_fields(
            parse_json(
                message[_LENGTH.size : end], what=what, max_bytes=MAX_HEAD_BYTES
            ),
            frozenset(wanted),
            what=what,
        )
        status = head.get("status")
        if is_answer and (type(status) is not int or not 200 <= status <= 599):
            raise MalformedInputError(f"{what} status: got {status!r:.40}")
        return cls(headers=_headers(head["headers"]), body=message[end:], status=status)


def _headers(headers: object) -> dict[str, str]:
    if not isinstance(headers, Mapping) or len(headers) > MAX_HEADERS:
        raise MalformedInputError(
            f"sealed HTTP message headers: want an object of at most {MAX_HEADERS}"
        )
    for name, value in headers.items():
        if not (
            isinstance(name, str)
            and isinstance(value, str)
            and _NAME.fullmatch(name)
            and _VALUE.fullmatch(value)
            and name not in _NOT_INSIDE
        ):
            raise MalformedInputError(
                f"sealed HTTP message: header {name!r:.60} is none that may stand here"
            )
    return dict(headers)


def inner_headers(pairs: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers of an HTTP message that belong inside.

    Raises:
        MalformedInputError: One stands twice that cannot be joined; a body that is
            encoded.
    """
    inner: dict[str, str] = {}
    for raw, value in pairs:
        name = raw.decode("latin-1").lower()
        if name == "content-encoding" and value.strip().lower() != b"identity":
            raise MalformedInputError(
                f"header {name}: got {value!r:.60}, want the body as it is"
            )
        if name in _NOT_INSIDE:
            continue
        text = value.decode("latin-1").strip()
        # RFC 9110 section 5.3: one that may stand twice means the same joined.
        if name in inner and (name.startswith("bsec-") or name == "set-cookie"):
            raise MalformedInputError(f"header {name:.60}: stands more than once")
        inner[name] = f"{inner[name]}, {text}" if name in inner else text
    return inner
