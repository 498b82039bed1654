"""The attestation report of AMD SEV-SNP: 1184 bytes, read, nothing verified.

    0x000  version, guest_svn, policy, family_id, image_id, vmpl, algorithm
    0x038  current TCB, platform_info, key_info
    0x050  report_data, measurement, host_data, digests of keys, report ids
    0x180  reported TCB, CPUID (from version 3), chip_id
    0x1E0  committed TCB, firmware versions, launch TCB, mitigations (from version 4)
    0x2A0  signature over all before it

Integers are little-endian. A TCB is eight bytes, one security patch level each; which
byte is which changed with Turin, whose first is that of the FMC.

Source: AMD 56860 (SEV-SNP firmware ABI) revision 1.58, ATTESTATION_REPORT, TCB_VERSION,
GUEST_POLICY; AMD 57230 (VCEK and KDS) revision 1.00.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bentoml_secure.errors import MalformedInputError

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
CHIP_ID_BYTES = 64
TURIN_CHIP_ID_BYTES = 8
VERSIONS = range(2, 6)
ECDSA_P384_SHA384 = 1

POLICY_BITS: Mapping[str, int] = {
    "smt": 16,
    "migrate_ma": 18,
    "debug": 19,
    "single_socket": 20,
    "cxl": 21,
    "mem_aes_256_xts": 22,
    "rapl_disabled": 23,
    "ciphertext_hiding": 24,
    "page_swap_disabled": 25,
}
"""What a guest's policy allows (smt, migrate_ma, debug, cxl) or demands (the rest)."""

PLATFORM_BITS: Mapping[str, int] = {
    "smt": 0,
    "tsme": 1,
    "ecc": 2,
    "rapl_disabled": 3,
    "ciphertext_hiding": 4,
    "alias_check_complete": 5,
    "tio": 7,
}
"""What is switched on in the platform."""

_POLICY_ONE = 17
"""Reserved, must be one."""

FIELDS = (
    ("version", "I"),
    ("guest_svn", "I"),
    ("policy", "Q"),
    ("family_id", "16s"),
    ("image_id", "16s"),
    ("vmpl", "I"),
    ("signature_algorithm", "I"),
    ("current_tcb", "8s"),
    ("platform_info", "Q"),
    ("key_info", "I"),
    ("reserved_4c", "4s"),
    ("report_data", "64s"),
    ("measurement", "48s"),
    ("host_data", "32s"),
    ("id_key_digest", "48s"),
    ("author_key_digest", "48s"),
    ("report_id", "32s"),
    ("report_id_ma", "32s"),
    ("reported_tcb", "8s"),
    ("cpuid", "3s"),
    ("reserved_18b", "21s"),
    ("chip_id", "64s"),
    ("committed_tcb", "8s"),
    ("current_version", "3s"),
    ("reserved_1eb", "1s"),
    ("committed_version", "3s"),
    ("reserved_1ef", "1s"),
    ("launch_tcb", "8s"),
    ("launch_mitigations", "Q"),
    ("current_mitigations", "Q"),
    ("reserved_208", "152s"),
    ("signature", "512s"),
)
"""Of the bytes, in order, with the form that ``struct`` reads each in."""

LAYOUT = struct.Struct("<" + "".join(form for _, form in FIELDS))
_SHOWN_AS_HEX = (
    "measurement",
    "host_data",
    "id_key_digest",
    "author_key_digest",
    "family_id",
    "image_id",
    "report_id",
    "report_id_ma",
    "chip_id",
)
_HAS_CPUID = 3
_HAS_MITIGATIONS = 4
_TURIN_FAMILY = 0x1A
_MODELS: Mapping[int, Mapping[int, str]] = {
    0x19: {0x0: "Milan", 0x1: "Genoa", 0xA: "Genoa"},
    0x1A: {0x0: "Turin", 0x1: "Turin"},
}
"""Product by CPU family and high digit of the model; 19h A0h is Bergamo and Siena,
which AMD endorses as Genoa."""


class Product(StrEnum):
    """A line of processors with a root key of its own, as AMD spells it."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


class SigningKey(StrEnum):
    """Which key a report says it is signed with."""

    VCEK = "vcek"
    VLEK = "vlek"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """Security patch levels of a platform's parts; each 0 to 255.

    Attributes:
        bootloader: The secure processor's bootloader.
        tee: The secure processor's operating system.
        snp: The SNP firmware.
        microcode: The cores' microcode.
        fmc: The first mutable code; from Turin on, else None.
    """

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    @classmethod
    def from_bytes(cls, raw: bytes, *, turin: bool) -> Tcb:
        """Read the eight bytes of a TCB_VERSION."""
        if turin:
            fmc, bootloader, tee, snp, *_, microcode = raw
            return cls(
                fmc=fmc, bootloader=bootloader, tee=tee, snp=snp, microcode=microcode
            )
        bootloader, tee, *_, snp, microcode = raw
        return cls(bootloader=bootloader, tee=tee, snp=snp, microcode=microcode)

    def to_json(self) -> dict[str, int]:
        """Return the levels by name, without those that the product has not."""
        levels = {
            "fmc": self.fmc,
            "bootloader": self.bootloader,
            "tee": self.tee,
            "snp": self.snp,
            "microcode": self.microcode,
        }
        return {name: level for name, level in levels.items() if level is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {level}" for name, level in self.to_json().items())


@dataclass(frozen=True, slots=True)
class Cpuid:
    """Family, model and stepping of the processor, each combined with its extension."""

    family: int
    model: int
    stepping: int

    @property
    def product(self) -> Product | None:
        """The product line, or None for one that is not known here."""
        name = _MODELS.get(self.family, {}).get(self.model >> 4)
        return Product(name) if name else None

    def to_json(self) -> dict[str, int]:
        """Return the numbers by name."""
        return {"family": self.family, "model": self.model, "stepping": self.stepping}

    def __str__(self) -> str:
        return (
            f"family {self.family:02X}h, model {self.model:02X}h,"
            f" stepping {self.stepping}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An attestation report's fields, by the names of AMD's table.

    Attributes:
        current_tcb: Eight bytes, as are the other three; ``Tcb.from_bytes`` reads them.
        cpuid: None before version 3.
        current_version: Of the firmware: major, minor, build.
        mitigations: Vectors at launch and now; None before version 4.
        reserved: The bytes that must be zero, one after another.
        signed: What the signature covers.
        signature: R and S of 72 bytes each, little-endian; the rest must be zero.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes
    platform_info: int
    key_info: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: Cpuid | None
    chip_id: bytes
    committed_tcb: bytes
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    launch_tcb: bytes
    mitigations: tuple[int, int] | None
    reserved: bytes
    signed: bytes
    signature: bytes

    @property
    def signing_key(self) -> SigningKey | None:
        """Which key signed, by the report; None for a reserved number."""
        keys = {0: SigningKey.VCEK, 1: SigningKey.VLEK, 7: SigningKey.NONE}
        return keys.get(self.key_info >> 2 & 7)

    @property
    def chip_id_masked(self) -> bool:
        """Whether the host hides which chip this is."""
        return not any(self.chip_id)

    @property
    def looks_like_turin(self) -> bool:
        """Whether the bytes have Turin's layout; before version 3 by the short chip id.

        For showing a report. Verifying one goes by the root's product instead.
        """
        if self.cpuid is not None:
            return self.cpuid.family >= _TURIN_FAMILY
        return not self.chip_id_masked and not any(self.chip_id[TURIN_CHIP_ID_BYTES:])

    def to_json(self, *, turin: bool) -> dict[str, Any]:
        """Return the fields that a policy or a person reads, but ``report_data``."""
        hexed = {name: getattr(self, name).hex() for name in _SHOWN_AS_HEX}
        launch_now = zip(("launch", "current"), self.mitigations or (), strict=False)
        return {
            "version": self.version,
            "guest_svn": self.guest_svn,
            "vmpl": self.vmpl,
            "policy": {
                "raw": f"{self.policy:#x}",
                "abi": f"{self.policy >> 8 & 0xFF}.{self.policy & 0xFF}",
                **_bits(self.policy, POLICY_BITS),
            },
            "platform_info": {
                "raw": f"{self.platform_info:#x}",
                **_bits(self.platform_info, PLATFORM_BITS),
            },
            "author_key_present": bool(self.key_info & 1),
            "mask_chip_key": bool(self.key_info & 2),
            **hexed,
            "cpuid": self.cpuid.to_json() if self.cpuid else None,
            "tcb": {
                name: tcb.to_json() for name, tcb in self.tcbs(turin=turin).items()
            },
            "firmware": {
                "current": ".".join(map(str, self.current_version)),
                "committed": ".".join(map(str, self.committed_version)),
            },
            "mitigations": {name: f"{vector:#x}" for name, vector in launch_now},
        }

    def tcbs(self, *, turin: bool) -> dict[str, Tcb]:
        """Return the four TCBs by name."""
        raw = {
            "current": self.current_tcb,
            "committed": self.committed_tcb,
            "launch": self.launch_tcb,
            "reported": self.reported_tcb,
        }
        return {name: Tcb.from_bytes(tcb, turin=turin) for name, tcb in raw.items()}


def _bits(value: int, names: Mapping[str, int]) -> dict[str, bool]:
    return {name: bool(value >> bit & 1) for name, bit in names.items()}


def unknown_policy_bits(policy: int) -> int:
    """Return the bits of a guest policy that mean nothing known here.

    Bit 17 must be one, and counts where it is not. A permission that nobody here
    understands is not given.
    """
    known = 0xFFFF | sum(1 << bit for bit in POLICY_BITS.values())
    return (policy ^ 1 << _POLICY_ONE) & ~known


def parse_report(data: bytes) -> Report:
    """Read a report; zero bytes after it are allowed.

    Raises:
        MalformedInputError: Too short, other bytes after it, another version.
    """
    if len(data) < REPORT_BYTES or any(data[REPORT_BYTES:]):
        raise MalformedInputError(
            f"SEV-SNP report: got {len(data)} bytes, want {REPORT_BYTES},"
            " and nothing but zeros after them"
        )
    values = LAYOUT.unpack_from(data)
    fields: dict[str, Any] = {
        name: value for (name, _), value in zip(FIELDS, values, strict=True)
    }
    version = fields["version"]
    if version not in VERSIONS:
        raise MalformedInputError(
            f"SEV-SNP report version: got {version},"
            f" want {VERSIONS.start} to {VERSIONS[-1]}"
        )
    cpuid = fields.pop("cpuid")
    reserved = b"" if version >= _HAS_CPUID else cpuid
    reserved += b"".join(
        fields.pop(name) for name, _ in FIELDS if name.startswith("reserved_")
    )
    mitigations = fields.pop("launch_mitigations"), fields.pop("current_mitigations")
    # Firmware versions are stored the other way round: build, minor, major.
    for name in ("current_version", "committed_version"):
        fields[name] = tuple(fields[name][::-1])
    return Report(
        **fields,
        cpuid=Cpuid(*cpuid) if version >= _HAS_CPUID else None,
        mitigations=mitigations if version >= _HAS_MITIGATIONS else None,
        reserved=reserved,
        signed=data[:SIGNED_BYTES],
    )
