"""A platform as Intel would describe it: its certificate's extension, TCB, reports."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

_TAGS = {"integer": 0x02, "boolean": 0x01, "octets": 0x04, "enumerated": 0x0A}
_SEQUENCE = 0x30
_OID = bytes([0x2A, 0x86, 0x48, 0x86, 0xF8, 0x4D, 0x01, 0x0D, 0x01])
"""1.2.840.113741.1.13.1"""

_BODY_BYTES = {2: 584, 3: 648, 4: 885}
SEPT_VE_DISABLE = bytes([0, 0, 0, 0x10, 0, 0, 0, 0])


def measurement(name: str) -> bytes:
    """Return the 48 bytes that stand for a measured thing."""
    return hashlib.sha384(name.encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A platform and the enclave or TD on it; every measurement follows from a name.

    Attributes:
        fmspc: The model, 6 bytes.
        ppid: The machine, 16 bytes.
        instance: Its platform instance id, 16 bytes, or None as the processor
            authority has it.
        cpu_svn: 16 bytes, each as in the collateral's highest level.
        pce_svn: Likewise.
        tee_tcb_svn: Of the TDX module: version 1.3.
        flags: Dynamic platform, cached keys, SMT.
    """

    fmspc: bytes = bytes.fromhex("50806f000000")
    ppid: bytes = bytes(range(16))
    instance: bytes | None = bytes(range(16, 32))
    cpu_svn: bytes = bytes([5] * 16)
    pce_svn: int = 11
    tee_tcb_svn: bytes = bytes([3, 1, *[2] * 14])
    flags: tuple[bool, bool, bool] = (True, True, True)

    def to_extension(self) -> bytes:
        """Return the DER of Intel's extension of a platform certificate."""
        svn = _field([2, 17], "integer", bytes([self.pce_svn]))
        fields = [
            _field([1], "octets", self.ppid),
            _nested([2], svn + _field([2, 18], "octets", self.cpu_svn)),
            _field([3], "octets", bytes(2)),
            _field([4], "octets", self.fmspc),
            _field([5], "enumerated", bytes([1])),
        ]
        if self.instance is not None:
            flags = (
                _field([7, index], "boolean", b"\xff" if flag else b"\0")
                for index, flag in enumerate(self.flags, 1)
            )
            fields.append(_field([6], "octets", self.instance))
            fields.append(_nested([7], b"".join(flags)))
        return _der(_SEQUENCE, b"".join(fields))

    def to_tcb_info(self, tee: str) -> dict[str, Any]:
        """Return the TCB info of the model, without dates: one level, up to date."""
        components = [{"svn": svn} for svn in self.cpu_svn]
        level: dict[str, Any] = {
            "tcb": {"sgxtcbcomponents": components, "pcesvn": self.pce_svn},
            "tcbDate": "2024-03-13T00:00:00Z",
            "tcbStatus": "UpToDate",
        }
        info: dict[str, Any] = {
            "id": tee,
            "version": 3,
            "fmspc": self.fmspc.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbLevels": [level],
        }
        if tee == "SGX":
            return info
        level["tcb"]["tdxtcbcomponents"] = [{"svn": svn} for svn in self.tee_tcb_svn]
        module = {
            "mrsigner": "00" * 48,
            "attributes": "00" * 8,
            "attributesMask": "FF" * 8,
        }
        level_of_module = {
            "tcb": {"isvsvn": self.tee_tcb_svn[0]},
            "tcbDate": "2024-03-13T00:00:00Z",
            "tcbStatus": "UpToDate",
        }
        identity = {"id": "TDX_01", **module, "tcbLevels": [level_of_module]}
        return {**info, "tdxModule": module, "tdxModuleIdentities": [identity]}

    def to_td_report(self, report_data: bytes, body_type: int) -> bytearray:
        """Return the body of a TD's quote, not signed."""
        body = bytearray(_BODY_BYTES[body_type])
        body[0:16] = self.tee_tcb_svn
        body[16:64] = measurement("TDX module")
        body[120:128] = SEPT_VE_DISABLE
        body[128:136] = bytes.fromhex("e702060000000000")
        names = ("TD", "configuration", "owner", "owner's configuration")
        registers = tuple(f"RTMR{index}" for index in range(4))
        for index, name in enumerate(names + registers):
            body[136 + 48 * index : 184 + 48 * index] = measurement(name)
        body[520:584] = report_data
        if body_type > 2:
            body[584:600] = self.tee_tcb_svn
        return body

    def to_enclave_report(self, report_data: bytes) -> bytearray:
        """Return the body of an enclave's quote, not signed."""
        body = bytearray(384)
        body[0:16] = self.cpu_svn
        body[48:64] = bytes([0x05, *[0] * 7, 0xE7, *[0] * 7])
        body[64:96] = measurement("enclave")[:32]
        body[128:160] = measurement("signer")[:32]
        body[192:256] = hashlib.sha512(b"configuration").digest()
        body[256:258] = (7).to_bytes(2, "little")
        body[258:260] = (3).to_bytes(2, "little")
        body[320:384] = report_data
        return body


def _field(path: list[int], kind: str, value: bytes) -> bytes:
    return _nested_value(path, _der(_TAGS[kind], value))


def _nested(path: list[int], fields: bytes) -> bytes:
    return _nested_value(path, _der(_SEQUENCE, fields))


def _nested_value(path: list[int], value: bytes) -> bytes:
    return _der(_SEQUENCE, _der(0x06, _OID + bytes(path)) + value)


def _der(tag: int, value: bytes) -> bytes:
    length = len(value)
    if length < 0x80:
        return bytes([tag, length]) + value
    if length < 0x100:
        return bytes([tag, 0x81, length]) + value
    return bytes([tag, 0x82]) + length.to_bytes(2) + value
