"""Launch digests of SEV-SNP, against published ones and against another program's."""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Mapping, Sequence

import pytest

from bentoml_secure.attestation.measurement.firmware_table import MAX_FIRMWARE_BYTES
from bentoml_secure.attestation.measurement.ovmf import (
    Firmware,
    SectionType,
    parse_firmware,
)
from bentoml_secure.attestation.measurement.snp_launch import (
    DirectBoot,
    firmware_digest,
    launch_digest,
)
from bentoml_secure.attestation.measurement.vmsa import CPU_SIGNATURES, make_vmsa
from bentoml_secure.errors import MalformedInputError

FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
RESET = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
HASHES = "7255371f-3a3b-4b04-927b-1da6efa8d454"
METADATA = "dc886566-984a-4798-a75e-5585a7bf67cc"

AMD_SEV = (
    (0x800000, 0x9000, 1),
    (0x80A000, 0x3000, 1),
    (0x80D000, 0x1000, 2),
    (0x80E000, 0x1000, 3),
    (0x80F000, 0x1000, 4),
    (0x810000, 0x1000, 0x10),
    (0x811000, 0xF000, 1),
)
"""What edk2's AmdSev build of OVMF asks for; its reset address and hashes are below."""

ENTRIES = {
    RESET: struct.pack("<I", 0x80B004),
    HASHES: struct.pack("<II", 0x810C00, 0x400),
}
NOTHING = hashlib.sha256(b"").digest()


def firmware(
    sections: Sequence[tuple[int, int, int]] = AMD_SEV,
    *,
    entries: Mapping[str, bytes] = ENTRIES,
    pages: int = 2,
    head: bytes | None = None,
    footer: str = FOOTER,
    table_size: int | None = None,
    from_end: int | None = None,
) -> bytes:
    """An OVMF image of nothing but its tables."""
    count = len(sections)
    metadata = head or struct.pack("<4sIII", b"ASEV", 16 + 12 * count, 1, count)
    metadata += b"".join(struct.pack("<III", *section) for section in sections)
    offset = 1024 if from_end is None else from_end
    table = b""
    for name, value in {**entries, METADATA: struct.pack("<I", offset)}.items():
        size = len(value) + 18
        table += value + struct.pack("<H", size) + uuid.UUID(name).bytes_le
    size = len(table) + 18 if table_size is None else table_size
    table += struct.pack("<H", size) + uuid.UUID(footer).bytes_le
    image = bytearray(i % 251 for i in range(4096 * pages))
    image[-32 - len(table) : -32] = table
    image[-1024 : -1024 + len(metadata)] = metadata
    return bytes(image)


def digest(
    image: bytes,
    *,
    processors: int = 1,
    cpu: str = "EPYC-v4",
    features: int = 1,
    boot: DirectBoot | None = None,
    start: str | None = None,
) -> str:
    return launch_digest(
        parse_firmware(image),
        processors=processors,
        cpu_signature=CPU_SIGNATURES[cpu],
        features=features,
        boot=boot,
        start=None if start is None else bytes.fromhex(start),
    ).hex()


# Of the image ovmf_AmdSev_suffix.bin of virtee/sev-snp-measure. That file is not here;
# what follows its own pages depends on its tables alone, which are AMD_SEV's.
PUBLISHED_FIRMWARE = (
    "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c4"
    "67a50da6d466b74"
)
EMPTY = DirectBoot(kernel=NOTHING)
LINE = DirectBoot(kernel=NOTHING, command_line="console=ttyS0 loglevel=7")


@pytest.mark.parametrize(
    ("processors", "features", "boot", "wanted"),
    [
        (
            1,
            0x21,
            EMPTY,
            "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4"
            "e1d7fa41179ef98a7ef198",
        ),
        (
            1,
            0x1,
            EMPTY,
            "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4"
            "a07a9079397fa3852819b5",
        ),
        (
            1,
            0x21,
            LINE,
            "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7"
            "e1e17895dfe778d0228977",
        ),
        (
            1,
            0x1,
            LINE,
            "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a9"
            "2046c042e706363b4b08fa",
        ),
        (
            4,
            0x1,
            EMPTY,
            "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6"
            "c4933de877c36e23046ad5",
        ),
        (
            4,
            0x21,
            EMPTY,
            "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b4229"
            "07be0b4698e2414a631942",
        ),
        (
            1,
            0x1,
            None,
            "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48d"
            "d6f6db5d6d76e7c5df632d",
        ),
        (
            1,
            0x21,
            None,
            "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4"
            "a2ebe0eed9f22adbcd0e2b",
        ),
    ],
)
def test_published_digests(
    processors: int, features: int, boot: DirectBoot | None, wanted: str
) -> None:
    got = digest(
        firmware(),
        processors=processors,
        features=features,
        boot=boot,
        start=PUBLISHED_FIRMWARE,
    )
    assert got == wanted


@pytest.mark.parametrize(
    ("cpu", "processors", "wanted"),
    [
        (
            "EPYC-Milan",
            2,
            "853c05569d62dc1c263c2b8613e6f5daa684d781bb47cefc9c9f8a729e0edfff70ce58437e"
            "f82ccfc447ea6aec528263",
        ),
        (
            "EPYC-Genoa",
            1,
            "7b91ba58861c7f6077d47aec792b4587d54d2efff309510fccd9073c17ea99211d6765fa0f"
            "a772c18aa3a5789fed0a0f",
        ),
        (
            "EPYC-Turin",
            3,
            "e251f4d18f59ec8a783c5e846da9d707eed68a92a127aca20e1beb87d17b955111cb397cc5"
            "ac599cb1daa9f2b2de9893",
        ),
    ],
)
def test_what_another_program_computes(cpu: str, processors: int, wanted: str) -> None:
    # sev-snp-measure 0.0.13, of the image that firmware() makes.
    boot = DirectBoot(
        kernel=hashlib.sha256(b"kernel").digest(),
        initrd=hashlib.sha256(b"initrd").digest(),
        command_line="console=ttyS0",
    )
    assert digest(firmware(), cpu=cpu, processors=processors, boot=boot) == wanted
    assert firmware_digest(parse_firmware(firmware())).hex() == (
        "9deb58b98ba88b4c9e4d33d69222770951e00309876338841159eec920c3df195abf8c1ba127d"
        "68632bf7ca22da1b63d"
    )


def test_every_page_counts() -> None:
    image = firmware()
    plain = digest(image)
    changed = bytearray(image)
    changed[0] ^= 1
    assert digest(bytes(changed)) != plain
    moved = [(0x800000, 0x8000, 1), (0x808000, 0x1000, 1), *AMD_SEV[1:]]
    assert digest(firmware(moved), start=PUBLISHED_FIRMWARE) == digest(
        image, start=PUBLISHED_FIRMWARE
    )
    assert digest(firmware(AMD_SEV[:-1])) != plain


def test_signatures_of_processors() -> None:
    # CPUID Fn0000_0001_EAX of these parts.
    assert CPU_SIGNATURES["EPYC-v4"] == 0x800F12
    assert CPU_SIGNATURES["EPYC-Rome"] == 0x830F10
    assert CPU_SIGNATURES["EPYC-Milan"] == 0xA00F11
    assert CPU_SIGNATURES["EPYC-Genoa"] == 0xA10F10
    assert CPU_SIGNATURES["EPYC-Turin"] == 0xB00F00


def test_a_save_area_is_a_page_that_begins_where_it_is_told() -> None:
    page = make_vmsa(0x12345678, cpu_signature=0xA00F11, features=0x21)
    assert len(page) == 4096
    assert page[0x178:0x180] == (0x5678).to_bytes(8, "little")
    assert page[0x18:0x20] == (0x12340000).to_bytes(8, "little")


class TestFirmware:
    def test_what_is_read(self) -> None:
        parsed = parse_firmware(firmware(pages=3))
        assert parsed.address == (1 << 32) - 3 * 4096
        assert (parsed.reset_address, parsed.hashes_address) == (0x80B004, 0x810C00)
        assert [section.type for section in parsed.sections] == [
            SectionType.MEMORY,
            SectionType.MEMORY,
            SectionType.SECRETS,
            SectionType.CPUID,
            SectionType.SVSM_CALLING_AREA,
            SectionType.KERNEL_HASHES,
            SectionType.MEMORY,
        ]

    def test_entries_that_are_not_there(self) -> None:
        parsed: Firmware = parse_firmware(firmware(entries={}))
        assert parsed.reset_address is parsed.hashes_address is None

    @pytest.mark.parametrize(
        ("image", "match"),
        [
            (b"", "whole pages"),
            (bytes(4095), "whole pages"),
            (bytes(MAX_FIRMWARE_BYTES + 4096), "whole pages"),
            (bytes(4096), "not OVMF"),
            (firmware(footer=RESET), "not OVMF"),
            (firmware(table_size=17), "a table of 17 bytes"),
            (firmware(table_size=0xFFFF, pages=1), "a table of 65535 bytes"),
            (firmware(table_size=18 + 10), "10 bytes before"),
            (firmware(table_size=18 + 20), "a table entry of"),
            (firmware(entries={RESET: b"abc"}), "cut short"),
            (firmware(from_end=8), "outside"),
            (firmware(from_end=8193), "outside"),
            (firmware(from_end=512), "ASEV"),
            (firmware(head=struct.pack("<4sIII", b"ASEV", 16, 2, 0)), "version 2"),
            (firmware(head=struct.pack("<4sIII", b"ASEV", 9999, 1, 65)), "65 items"),
            (firmware(head=struct.pack("<4sIII", b"ASEV", 16, 1, 1)), "1 items"),
            (firmware([(1, 4096, 1)]), "not pages"),
            (firmware([(4096, 1, 1)]), "not pages"),
            (firmware([(4096, 0, 1)]), "not pages"),
            (firmware([(4096, 4096, 5)]), "unknown type 0x5"),
            (firmware([(0, 0x80000000, 1)]), "more than 1 GiB"),
        ],
    )
    def test_other_forms_are_refused(self, image: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            parse_firmware(image)

    def test_firmware_without_metadata_is_refused(self) -> None:
        image = bytearray(firmware())
        at = image.index(uuid.UUID(METADATA).bytes_le)
        image[at] ^= 1
        with pytest.raises(MalformedInputError, match="no SEV metadata"):
            parse_firmware(bytes(image))

    def test_an_entry_twice_is_refused(self) -> None:
        image = firmware(entries={HASHES: bytes(4), RESET: bytes(4)})
        twice = image.replace(uuid.UUID(HASHES).bytes_le, uuid.UUID(RESET).bytes_le)
        with pytest.raises(MalformedInputError, match="twice"):
            parse_firmware(twice)


class TestThatDoesNotFit:
    @pytest.mark.parametrize(
        ("image", "match"),
        [
            (firmware(AMD_SEV[:1]), "takes no hashes"),
            (firmware(entries={RESET: bytes(4)}), "not within its page"),
            (firmware(entries={HASHES: bytes(8)}), "not within its page"),
            (
                firmware(entries={HASHES: struct.pack("<I", 0x810F80)}),
                "not within its page",
            ),
            (
                firmware(entries={HASHES: struct.pack("<I", 0x80FFF0)}),
                "not within its page",
            ),
            (
                firmware([(0x810000, 0x2000, 0x10)]),
                "not within its page",
            ),
        ],
    )
    def test_a_direct_boot(self, image: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            digest(image, boot=EMPTY)

    def test_further_processors(self) -> None:
        image = firmware(entries={HASHES: ENTRIES[HASHES]})
        assert digest(image, processors=1)
        with pytest.raises(MalformedInputError, match="further processors"):
            digest(image, processors=2)

    @pytest.mark.parametrize("kind", [2, 3])
    def test_more_than_one_page_of_what_is_one(self, kind: int) -> None:
        with pytest.raises(MalformedInputError, match="want one page"):
            digest(firmware([(0x800000, 0x2000, kind)]))
