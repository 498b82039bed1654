"""CBOR from outside: a small, strict reader.

General decoders build what tags ask for (dates, regular expressions, numbers of any
size) and trust lengths. Tokens of attestation need none of it. What is read here is
what their makers write: integers, byte and text strings, arrays and maps, true, false
and null, each length in its shortest form. Arrays and maps may end with a break, since
some makers write structures so. Everything else is refused.

Source: RFC 8949.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from bentoml_secure.errors import MalformedInputError

MAX_DEPTH = 12
MAX_ITEMS = 4096

_BREAK = 0xFF
_INDEFINITE = 31
_SIMPLE = {0xF4: False, 0xF5: True, 0xF6: None}


@dataclass(frozen=True, slots=True)
class Tagged:
    """A value under a tag that the caller allowed."""

    tag: int
    value: Any


def parse_cbor(
    data: bytes,
    *,
    what: str,
    tags: frozenset[int] = frozenset(),
    padded: bool = False,
) -> Any:
    """Return the one item that ``data`` holds.

    Args:
        data: From outside, already bounded.
        what: The thing's name, for the error.
        tags: Those accepted, as ``Tagged``.
        padded: Whether zero bytes may follow.

    Raises:
        MalformedInputError: Cut short, too deep, too many items, a map's key twice or
            neither integer nor text, another tag, a float, another simple value, a
            length not in its shortest form, bytes after the item.
    """
    reader = _Reader(data, what, tags)
    item = reader.item(MAX_DEPTH)
    rest = data[reader.at :]
    if rest.strip(b"\0") or (rest and not padded):
        raise MalformedInputError(f"{what}: {len(rest)} bytes after the CBOR item")
    return item


class _Reader:
    def __init__(self, data: bytes, what: str, tags: frozenset[int]) -> None:
        self._data = data
        self._what = what
        self._tags = tags
        self._items = 0
        self.at = 0

    def item(self, depth: int) -> Any:
        self._items += 1
        if self._items > MAX_ITEMS:
            self._refuse(f"more than {MAX_ITEMS} items")
        if depth == 0:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels")
        initial = self._take(1)[0]
        if initial in _SIMPLE:
            return _SIMPLE[initial]
        major, length = initial >> 5, self._argument(initial)
        match major:
            case 0 if length is not None:
                return length
            case 1 if length is not None:
                return -1 - length
            case 2 if length is not None:
                return self._take(length)
            case 3 if length is not None:
                return self._text(length)
            case 4:
                return [self.item(depth - 1) for _ in self._each(length)]
            case 5:
                return self._map(length, depth)
            case 6 if length in self._tags:
                return Tagged(length, self.item(depth - 1))
        self._refuse(f"unexpected byte 0x{initial:02x}")

    def _argument(self, initial: int) -> int | None:
        low = initial & 0x1F
        if low < 24:
            return low
        if low == _INDEFINITE:
            return None
        if low > 27:
            self._refuse(f"unexpected byte 0x{initial:02x}")
        size = 1 << (low - 24)
        value = int.from_bytes(self._take(size), "big")
        if value < (24 if size == 1 else 1 << (size * 4)):
            self._refuse(f"length or number {value} is not in its shortest form")
        return value

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self.at:
            self._refuse(f"cut short: {count} bytes wanted")
        taken = self._data[self.at : self.at + count]
        self.at += count
        return taken

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise MalformedInputError(
                f"{self._what} is not such CBOR: {error}"
            ) from error

    def _each(self, length: int | None) -> Iterator[None]:
        """Yield once for each item that follows, however their count is said."""
        if length is not None:
            # Each takes a byte at least; MAX_ITEMS ends what claims more.
            for _ in range(length):
                yield
            return
        while self._data[self.at : self.at + 1] != bytes([_BREAK]):
            yield
        self.at += 1

    def _map(self, length: int | None, depth: int) -> dict[int | str, Any]:
        entries: dict[int | str, Any] = {}
        for _ in self._each(length):
            key = self.item(depth - 1)
            if type(key) is not int and type(key) is not str:
                self._refuse("a map's key is neither integer nor text")
            if key in entries:
                self._refuse(f"the key {key!r:.40} stands twice in one map")
            entries[key] = self.item(depth - 1)
        return entries

    def _refuse(self, why: str) -> NoReturn:
        raise MalformedInputError(f"{self._what} is not such CBOR: {why}")
