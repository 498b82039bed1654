"""Looking for plaintext weights in files: any 64 bytes of them, wherever they lie."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

WINDOW_BYTES = 64
_GRAM_BYTES = 8
_LEAST_DISTINCT = 16
"""Of a window's bytes: fewer are padding, which is everywhere."""


def weights_of(folder: Path) -> list[bytes]:
    """Return the initializers of every ONNX file below a folder, as raw bytes."""
    raw = [
        numpy_helper.to_array(tensor).tobytes()
        for path in sorted(folder.rglob("*.onnx"))
        for tensor in onnx.load(path).graph.initializer
    ]
    return [data for data in raw if len(data) >= WINDOW_BYTES]


def _spelled(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    # Base64 spells bytes by where they stand modulo 3.
    for skipped in range(3):
        yield base64.b64encode(secret[skipped:])


class Scanner:
    """Finds pieces of secrets, as they are or as hex or base64.

    Whatever 64 bytes of a secret stand in a file, seven aligned groups of 8 of them
    stand there whole: those are looked for, and matches are grown from there.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._places: dict[int, list[tuple[bytes, int]]] = {}
        for secret in secrets:
            for spelled in _spelled(secret):
                for at in range(0, len(spelled) - _GRAM_BYTES + 1, _GRAM_BYTES):
                    gram = int.from_bytes(spelled[at : at + _GRAM_BYTES], "little")
                    self._places.setdefault(gram, []).append((spelled, at))
        self._grams = np.array(sorted(self._places), np.uint64)

    def finds(self, data: bytes) -> bool:
        """Tell whether a window of a secret stands anywhere in ``data``."""
        for shift in range(_GRAM_BYTES):
            count = (len(data) - shift) // _GRAM_BYTES
            if count <= 0:
                return False
            words = np.frombuffer(data, "<u8", count, shift)
            for index in np.flatnonzero(np.isin(words, self._grams)):
                at = shift + int(index) * _GRAM_BYTES
                if any(
                    _is_window(data, at, secret, place)
                    for secret, place in self._places[int(words[index])]
                ):
                    return True
        return False

    def files(self, folder: Path) -> list[str]:
        """Return the files below a folder that hold a window of a secret."""
        return [
            path.relative_to(folder).as_posix()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and self.finds(path.read_bytes())
        ]


def _is_window(data: bytes, at: int, secret: bytes, place: int) -> bool:
    begin = 0
    while (
        begin < min(at, place, WINDOW_BYTES)
        and data[at - begin - 1] == secret[place - begin - 1]
    ):
        begin += 1
    end = 0
    most = min(len(data) - at, len(secret) - place, WINDOW_BYTES)
    while end < most and data[at + end] == secret[place + end]:
        end += 1
    found = data[at - begin : at + end]
    return len(found) >= WINDOW_BYTES and len(set(found)) >= _LEAST_DISTINCT
