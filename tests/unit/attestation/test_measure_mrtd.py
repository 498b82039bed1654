"""MRTD of firmware: computed a second way, and which images it can be computed of."""

from __future__ import annotations

import struct
import uuid
from dataclasses import replace

import pytest

from bentoml_secure.attestation.measurement.mrtd import PageOrder, mrtd
from bentoml_secure.attestation.measurement.tdvf import (
    MAX_SECTION_BYTES,
    SectionType,
    parse_tdvf,
)
from bentoml_secure.errors import MalformedInputError
from tests.unit.attestation.tdvf_images import (
    BFV,
    CFV,
    METADATA,
    PAGE,
    SMALL,
    TD_HOB,
    TEMP_MEM,
    Sections,
    build_td,
    tdvf,
)

CODE, VARIABLES, TEMPORARY, HANDOFF = SMALL


def measured(image: bytes, order: PageOrder = PageOrder.PAGE) -> bytes:
    return mrtd(parse_tdvf(image), order=order)


def with_measured_memory() -> Sections:
    return (CODE, (*VARIABLES[:5], 1), (*TEMPORARY[:5], 1), HANDOFF)


@pytest.mark.parametrize(
    "sections", [SMALL, SMALL[::-1], (CODE,), with_measured_memory()]
)
def test_what_a_module_measures(sections: Sections) -> None:
    image = tdvf(sections)
    by_page = build_td(image, sections, page_by_page=True)
    by_section = build_td(image, sections, page_by_page=False)
    assert measured(image) == by_page
    assert measured(image, PageOrder.SECTION) == by_section
    assert by_page != by_section


def test_what_is_read() -> None:
    parsed = parse_tdvf(tdvf())
    assert [section.type for section in parsed.sections] == [
        SectionType.BFV,
        SectionType.CFV,
        SectionType.TEMP_MEM,
        SectionType.TD_HOB,
    ]
    code, variables, temporary, _ = parsed.sections
    assert (code.address, code.end, code.offset) == (0xFFFFD000, 1 << 32, PAGE)
    assert (code.measured, variables.measured) == (True, False)
    assert temporary.offset is None


@pytest.mark.parametrize("order", PageOrder)
def test_what_counts(order: PageOrder) -> None:
    image = tdvf()
    plain = measured(image, order)
    changed = bytearray(image)
    changed[0] ^= 1
    assert measured(bytes(changed), order) == plain, "variables are not measured"
    changed[PAGE] ^= 1
    assert measured(bytes(changed), order) != plain
    moved = (CODE, VARIABLES, (0, 0, 0x820000, 2 * PAGE, TEMP_MEM, 0), HANDOFF)
    shorter = (CODE, VARIABLES, (0, 0, 0x810000, PAGE, TEMP_MEM, 0), HANDOFF)
    firmware = parse_tdvf(image)
    # The same code: only which pages there are, and in which order they come.
    for sections in (moved, shorter, (CODE, TEMPORARY, VARIABLES, HANDOFF)):
        other = replace(firmware, sections=parse_tdvf(tdvf(sections)).sections)
        assert mrtd(other, order=order) != plain


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (b"", "whole pages"),
        (bytes(PAGE), "not OVMF"),
        (tdvf(name=str(uuid.UUID(int=1))), "no TDX metadata"),
        (tdvf(from_end=8), "outside of it"),
        (tdvf(from_end=5 * PAGE), "outside of it"),
        (tdvf(from_end=2049), "of version"),
        (tdvf(head=struct.pack("<4sIII", b"TDVF", 144, 2, 4)), "of version 2"),
        (tdvf(head=struct.pack("<4sIII", b"TDVX", 144, 1, 4)), "b'TDVX'"),
        (tdvf(head=struct.pack("<4sIII", b"TDVF", 143, 1, 4)), "4 sections in 143"),
        (tdvf(head=struct.pack("<4sIII", b"TDVF", 16, 1, 0)), "0 sections"),
        (tdvf(head=struct.pack("<4sIII", b"TDVF", 2096, 1, 65)), "65 sections"),
        (tdvf(head=struct.pack("<4sIII", b"TDVF", 2064, 1, 64)), "64 sections"),
    ],
)
def test_other_forms_are_refused(image: bytes, match: str) -> None:
    with pytest.raises(MalformedInputError, match=match):
        parse_tdvf(image)


@pytest.mark.parametrize(
    ("section", "match"),
    [
        ((0, 0, 0x820001, PAGE, TEMP_MEM, 0), "not pages"),
        ((0, 0, 0x820000, PAGE + 1, TEMP_MEM, 0), "not pages"),
        ((0, 0, 0x820000, 0, TEMP_MEM, 0), "not pages"),
        ((0, 0, 1 << 32, PAGE, TEMP_MEM, 0), "beyond 4 GiB"),
        ((0, 0, (1 << 64) - PAGE, PAGE, TEMP_MEM, 0), "beyond 4 GiB"),
        ((0, 0, 0x820000, PAGE, 4, 0), "unknown type 0x4"),
        ((0, 0, 0x820000, PAGE, TEMP_MEM, 2), "unknown attributes 0x2"),
        ((0, PAGE, 0x820000, PAGE, TEMP_MEM, 0), "TEMP_MEM with 0x1000 bytes"),
        ((0, PAGE, 0x820000, 2 * PAGE, CFV, 0), "CFV with 0x1000 bytes"),
        ((4 * PAGE, PAGE, 0x820000, PAGE, CFV, 0), "not its CODE half"),
        ((0xFFFFFFFF, PAGE, 0x820000, PAGE, CFV, 0), "not its CODE half"),
        ((0, PAGE, 0x820000, PAGE, BFV, 0), "code that is not measured"),
        ((0, 0, 0x820000, PAGE, TD_HOB, 1), "no image says"),
        ((0, 0, 0x820000, MAX_SECTION_BYTES, TEMP_MEM, 0), "want at most"),
        ((0, 0, 0x80F000, 2 * PAGE, TEMP_MEM, 0), "overlap at 0x810000"),
        ((0, 0, 0x811000, PAGE, TEMP_MEM, 0), "overlap at 0x811000"),
    ],
)
def test_sections_that_are_refused(
    section: tuple[int, int, int, int, int, int], match: str
) -> None:
    with pytest.raises(MalformedInputError, match=match):
        parse_tdvf(tdvf((*SMALL, section)))


@pytest.mark.parametrize(
    "sections",
    [
        SMALL[1:],
        ((PAGE, 2 * PAGE, 0xFFFFD000, 2 * PAGE, BFV, 1), *SMALL[1:]),
        ((PAGE, 3 * PAGE, 0xFFFFD000, 3 * PAGE, CFV, 1), *SMALL[1:]),
    ],
)
def test_code_that_is_not_where_a_td_begins(sections: Sections) -> None:
    with pytest.raises(MalformedInputError, match="no code at 0xfffffff0"):
        parse_tdvf(tdvf(sections))


def test_the_half_of_an_image_is_told_from_the_whole() -> None:
    whole = tdvf(pages=4)
    assert uuid.UUID(METADATA).bytes_le in whole[PAGE:]
    with pytest.raises(MalformedInputError, match="not its CODE half"):
        parse_tdvf(whole[PAGE:])
