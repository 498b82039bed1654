"""Buffers for one chunk each, kept from one message to the next.

Memory of this size, once freed, goes back to the kernel, which clears it page by page
when it is asked for again: that costs several times what AES-256-GCM does.
"""

from __future__ import annotations


class Buffers:
    """Lends buffers of one size, and keeps a few of those that come back.

    What holds plaintext and what holds sealed bytes should be lent by two of these: a
    mistake with one can then show nobody more than sealed bytes.

    Args:
        size: Of a buffer, bytes.
        kept: How many are kept at most while nobody uses them.
    """

    def __init__(self, size: int, kept: int) -> None:
        self._size = size
        self._kept = kept
        self._free: list[memoryview] = []

    def take(self, length: int) -> memoryview:
        """Return a buffer of at least so many bytes; what is in it means nothing.

        A short length gets no more than it asks for: a few bytes announced must not
        hold a whole buffer.
        """
        if length <= self._size // 4 or length > self._size:
            return memoryview(bytearray(length))
        try:
            return self._free.pop()
        except IndexError:
            return memoryview(bytearray(self._size))

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back, once: nobody may use it or a view of it any more."""
        if len(buffer) == self._size and len(self._free) < self._kept:
            self._free.append(buffer)
