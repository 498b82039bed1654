"""Structures of a TPM 2.0 as it marshals them, read strictly.

Every integer is big-endian. A ``TPM2B`` is a two-byte length and that many bytes.
Lengths are checked before anything is sliced, and nothing may follow the end.

Source: TCG TPM 2.0 Library, Part 2: Structures, revision 1.59.
"""

from __future__ import annotations

from bentoml_secure.errors import MalformedInputError

ALG_NULL = 0x0010
ALG_RSA = 0x0001
ALG_ECC = 0x0023
ALG_SHA256 = 0x000B
ALG_AES = 0x0006
ALG_CFB = 0x0043
ALG_RSASSA = 0x0014
ALG_RSAPSS = 0x0016
ALG_ECDSA = 0x0018


class Reader:
    """Reads a structure from front to back.

    Args:
        data: From outside.
        what: The structure's name, for errors.
    """

    def __init__(self, data: bytes, *, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def read(self, length: int) -> bytes:
        """Return the next ``length`` bytes.

        Raises:
            MalformedInputError: Fewer are left.
        """
        left = len(self._data) - self._at
        if length > left:
            raise MalformedInputError(
                f"{self._what}: {left} bytes are left at byte {self._at}, want {length}"
            )
        self._at += length
        return self._data[self._at - length : self._at]

    def integer(self, length: int) -> int:
        """Return the next ``length`` bytes as an unsigned integer.

        Raises:
            MalformedInputError: Fewer are left.
        """
        return int.from_bytes(self.read(length), "big")

    def sized(self) -> bytes:
        """Return the contents of the next ``TPM2B``.

        Raises:
            MalformedInputError: It is longer than what is left.
        """
        return self.read(self.integer(2))

    def finish(self) -> None:
        """Refuse anything after the end.

        Raises:
            MalformedInputError: Bytes are left.
        """
        if left := len(self._data) - self._at:
            raise MalformedInputError(f"{self._what}: {left} bytes after its end")
