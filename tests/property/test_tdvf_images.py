"""Firmware of trust domains: any layout measures as a module would, or is refused."""

from __future__ import annotations

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bentoml_secure.attestation.measurement.mrtd import PageOrder, mrtd
from bentoml_secure.attestation.measurement.tdvf import parse_tdvf
from bentoml_secure.errors import MalformedInputError
from tests.unit.attestation.tdvf_images import (
    BFV,
    CFV,
    PAGE,
    SMALL,
    TD_HOB,
    TEMP_MEM,
    build_td,
    tdvf,
)

CODE = SMALL[0]


@st.composite
def more_sections(draw: st.DrawFn) -> list[tuple[int, int, int, int, int, int]]:
    """Sections below the code that do not overlap, in any order."""
    sections = []
    address = 0x800000
    for _ in range(draw(st.integers(0, 5))):
        address += PAGE * draw(st.integers(0, 3))
        kind = draw(st.sampled_from([BFV, CFV, TD_HOB, TEMP_MEM]))
        pages = draw(st.integers(1, 3))
        raw = pages * PAGE if kind in (BFV, CFV) else 0
        offset = draw(st.integers(0, 4 - pages)) * PAGE if raw else 0
        measured = {BFV: True, TD_HOB: False}.get(kind, draw(st.booleans()))
        sections.append((offset, raw, address, pages * PAGE, kind, int(measured)))
        address += pages * PAGE
    return draw(st.permutations([CODE, *sections]))


@settings(max_examples=40)
@given(more_sections(), st.sampled_from(PageOrder))
def test_any_layout(
    sections: list[tuple[int, int, int, int, int, int]], order: PageOrder
) -> None:
    image = tdvf(sections)
    by_page = order is PageOrder.PAGE
    wanted = build_td(image, sections, page_by_page=by_page)
    assert mrtd(parse_tdvf(image), order=order) == wanted


@settings(max_examples=60)
@given(st.integers(PAGE, 4 * PAGE - 1), st.integers(1, 255))
def test_no_byte_of_the_code_is_left_out(at: int, change: int) -> None:
    image = bytearray(tdvf())
    plain = mrtd(parse_tdvf(bytes(image)), order=PageOrder.PAGE)
    image[at] ^= change
    try:
        changed = mrtd(parse_tdvf(bytes(image)), order=PageOrder.PAGE)
    except MalformedInputError:
        return
    assert changed != plain


@settings(max_examples=60)
@given(st.binary(min_size=2048, max_size=2048))
def test_any_metadata_is_read_or_refused(tail: bytes) -> None:
    assume(tail[:4] != b"TDVF")
    image = tdvf()
    written = image[:-2048] + b"TDVF" + tail[4:2000] + image[-48:]
    try:
        firmware = parse_tdvf(written)
    except MalformedInputError:
        return
    assert len(mrtd(firmware, order=PageOrder.PAGE)) == 48
