"""Commitments to tensors: the salted hash of that tensor's tensors-v1 bytes alone."""

from __future__ import annotations

from collections.abc import Mapping

from bentoml_secure.digest import Digest, Hasher, Scheme, salted_hasher
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.tensors.codec import (
    Layout,
    as_bytes,
    canonical,
    encode_header,
    layout_of,
)
from bentoml_secure.tensors.spec import DTYPES, Array, dtype_name


class TensorCommitments:
    """Commits to each tensor of a tensors-v1 byte string while its data pass.

    Feed it the data bytes (what follows the header) in order, in pieces of any size.

    Attributes:
        scheme: How they are committed to.

    Raises:
        MissingDependencyError: The scheme's package is not installed.
    """

    def __init__(
        self,
        layout: Layout,
        salts: Mapping[str, bytes],
        scheme: Scheme = Scheme.HMAC_SHA256,
    ) -> None:
        self.scheme = scheme
        names = {entry.name for entry in layout.entries}
        if names != salts.keys():
            raise MalformedInputError(
                f"salts: got {sorted(salts)!r:.200}, want {sorted(names)!r:.200}"
            )
        self._entries = layout.entries
        self._hashers: list[Hasher] = []
        for entry in layout.entries:
            hasher = salted_hasher(scheme, salts[entry.name])
            single = (
                entry.name,
                DTYPES[dtype_name(entry.dtype)],
                entry.shape,
                entry.end - entry.begin,
            )
            hasher.update(encode_header((single,)))
            self._hashers.append(hasher)
        self._position = 0
        self._index = 0

    def update(self, data: memoryview) -> None:
        """Take in the next data bytes.

        Raises:
            MalformedInputError: More bytes than the layout holds.
        """
        while len(data):
            while (
                self._index < len(self._entries)
                and self._entries[self._index].end == self._position
            ):
                self._index += 1
            if self._index == len(self._entries):
                raise MalformedInputError("tensors-v1: bytes after the last tensor")
            take = min(len(data), self._entries[self._index].end - self._position)
            self._hashers[self._index].update(data[:take])
            self._position += take
            data = data[take:]

    def result(self) -> dict[str, Digest]:
        """Return the commitment of each tensor by name, once all bytes passed."""
        if self._entries and self._position != self._entries[-1].end:
            raise MalformedInputError("tensors-v1: ends inside its data")
        return {
            entry.name: Digest(f"{self.scheme.tensor}:{hasher.hexdigest()}")
            for entry, hasher in zip(self._entries, self._hashers, strict=True)
        }


def commit(
    tensors: Mapping[str, Array],
    salts: Mapping[str, bytes],
    scheme: Scheme = Scheme.HMAC_SHA256,
) -> dict[str, Digest]:
    """Return the commitment of each named array under its salt.

    Args:
        tensors: Arrays by name.
        salts: 32 secret bytes for each of those names.
        scheme: How they are committed to.

    Raises:
        MissingDependencyError: The scheme's package is not installed.
    """
    arrays = {name: canonical(array) for name, array in tensors.items()}
    layout = layout_of(arrays)
    commitments = TensorCommitments(layout, salts, scheme)
    for entry in layout.entries:
        commitments.update(as_bytes(arrays[entry.name]))
    return commitments.result()
