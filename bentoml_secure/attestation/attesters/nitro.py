"""Evidence of an AWS Nitro enclave, from its security module.

BENTOML_SECURE_NSM   path of the device; default: /dev/nsm

Source: include/uapi/linux/nsm.h; Nitro Enclaves attestation process, AWS.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import cbor2

from bentoml_secure.attestation.evidence import Endorsements, Evidence
from bentoml_secure.attestation.roles import REPORT_DATA_BYTES
from bentoml_secure.attestation.tees.cbor import parse_cbor
from bentoml_secure.attestation.tees.nitro import KIND
from bentoml_secure.errors import MalformedInputError, UnavailableError

NSM = "BENTOML_SECURE_NSM"
DEFAULT_PATH = Path("/dev/nsm")

IOCTL_RAW = 0xC0200A00
"""_IOWR(0x0A, 0, struct nsm_raw), which has 32 bytes."""

MAX_REQUEST_BYTES = 0x1000
MAX_RESPONSE_BYTES = 0x3000

_RAW = struct.Struct("=QQQQ")
"""Address and length of the request, then of room for the response."""

Ioctl = Callable[[int, int, bytearray], int]


class NitroAttester:
    """Asks the security module for attestation documents.

    Args:
        path: The device.
        ioctl: The system call, for tests.

    Raises:
        UnavailableError: There is no such device, or it may not be opened.
    """

    def __init__(
        self, path: Path = DEFAULT_PATH, *, ioctl: Ioctl = fcntl.ioctl
    ) -> None:
        self._path = path
        self._ioctl = ioctl
        os.close(self._open())

    @property
    def kind(self) -> str:
        """``nitro``."""
        return KIND

    @property
    def endorsements(self) -> Endorsements:
        """None: the chain is in the document."""
        return ()

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, clock: Callable[[], datetime]
    ) -> NitroAttester:
        """Open the device that the environment names.

        Args:
            environ: See the module.
            clock: Not read: the module dates its documents.

        Raises:
            UnavailableError: There is no such device, or it may not be opened.
        """
        del clock
        return cls(Path(environ.get(NSM) or DEFAULT_PATH))

    def attest(self, report_data: bytes) -> Evidence:
        """Return a document with ``report_data`` as its user data.

        Raises:
            MalformedInputError: ``report_data`` has another length than 64 bytes.
            UnavailableError: The module does not answer, or not with a document.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise MalformedInputError(
                f"report data: got {len(report_data)} bytes, want {REPORT_DATA_BYTES}"
            )
        fields = {"user_data": report_data, "nonce": None, "public_key": None}
        answer = self._ask(cbor2.dumps({"Attestation": fields}))
        match answer:
            case {"Attestation": {"document": bytes(document)}}:
                return Evidence(kind=KIND, blob=document)
            case {"Error": str(error)}:
                raise UnavailableError(f"{self._path} refuses: {error}.")
        raise UnavailableError(f"{self._path} answers without a document.")

    def _ask(self, request: bytes) -> object:
        # The driver reads and writes these while the call lasts.
        question = ctypes.create_string_buffer(request, len(request))
        room = ctypes.create_string_buffer(MAX_RESPONSE_BYTES)
        message = bytearray(
            _RAW.pack(
                ctypes.addressof(question),
                len(request),
                ctypes.addressof(room),
                MAX_RESPONSE_BYTES,
            )
        )
        device = self._open()
        try:
            self._ioctl(device, IOCTL_RAW, message)
        except OSError as error:
            raise UnavailableError(f"{self._path}: {error.strerror}.") from error
        finally:
            os.close(device)
        length = min(_RAW.unpack(message)[3], MAX_RESPONSE_BYTES)
        try:
            return parse_cbor(room.raw[:length], what="answer of the security module")
        except MalformedInputError as error:
            raise UnavailableError(f"{self._path}: {error}.") from error

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise UnavailableError(
                f"{self._path} does not exist: this is no Nitro enclave, or its kernel"
                " has no nsm driver.",
                remedy="Run inside an enclave, with Linux 6.8 or Amazon's driver.",
            ) from error
        except OSError as error:
            raise UnavailableError(
                f"{self._path}: {error.strerror}.",
                remedy="The device wants CAP_SYS_ADMIN or the group that owns it.",
            ) from error
