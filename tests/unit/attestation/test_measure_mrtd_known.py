"""MRTD of firmware that distributions ship, as trust domains showed it.

The images are not part of this project. They are looked for where distributions install
them (`apt-get install ovmf`), and in the folder that BENTOML_SECURE_FIRMWARE names.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from bentoml_secure.attestation.measurement.firmware_table import MAX_FIRMWARE_BYTES
from bentoml_secure.attestation.measurement.mrtd import PageOrder, mrtd
from bentoml_secure.attestation.measurement.tdvf import parse_tdvf
from bentoml_secure.errors import MalformedInputError
from tests.unit.attestation.tdvf_images import build_td

FOLDERS = ("/usr/share/ovmf", "/usr/share/OVMF", "/usr/share/edk2/ovmf")
VARIABLE = "BENTOML_SECURE_FIRMWARE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An image and its MRTDs by order."""

    package: str
    sha256: str
    values: Mapping[PageOrder, str]


PUBLISHED = (
    # The image's digest stands in tinfoilsh/hardware-measurements, fetch-ovmf.sh; the
    # values in tinfoilsh/verifier, sigstore_test.go and tdx_platform_test.go.
    Known(
        package="Ubuntu 25.04, ovmf 2025.02-3ubuntu2",
        sha256="9e807cb2cd4313406a3aa4becc0836671a5c64ca7bdc08a45e15260184b446bf",
        values={
            PageOrder.PAGE: (
                "7357a10d2e2724dffe68813e3cc4cfcde6814d749f2fb62e3953e54f6e0b50a219786afe"
                "2cd478f684b52c61837e1114"
            ),
            PageOrder.SECTION: (
                "7ce4cec5729d95652108c1dfe381a3ccb6a6a9061920f0479a3e4c7c806cf51d2438958d"
                "ef083084880f2bf4dd2e14eb"
            ),
        },
    ),
    # In a TD under QEMU 10.1 and Linux 6.17: lunal-dev/attestation-rs, PROGRESS.md.
    Known(
        package="Ubuntu 25.10, ovmf 2025.02-8ubuntu3",
        sha256="a8135e3ddf1a3217cf36fa579c3cd24baed74a7879a656a5d7097e828af0a72e",
        values={
            PageOrder.PAGE: (
                "eea8b6a814569a52bd1e12f6b869bb2d9c0c8a7a43e658ffc3b42c199f116157ea7f04d3"
                "59c7fdfd8ac483152cc13542"
            )
        },
    ),
    # In a quote: google/go-tdx-guest, testing/testdata/quote_v5_sample.dat.
    Known(
        package="Ubuntu 25.10, ovmf-inteltdx 2025.02-8ubuntu3",
        sha256="ae577ac531f6d7ecf7aee3203bfbd3d40db5eb8f79ce3e1ba69894a4711bc118",
        values={
            PageOrder.PAGE: (
                "7348651a34b2d2d3462822e3a750ec6110125f36757c78480bbfc69cc0d21fb001a1ced3"
                "ee19747dda8f750c3bc8f876"
            )
        },
    ),
)

COMPUTED = (
    # Nobody published these: they are what build_td gives.
    Known(
        package="Debian 12, ovmf 2022.11-6+deb12u2",
        sha256="7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773",
        values={
            PageOrder.PAGE: (
                "4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed"
                "0744d5631a212967fb231c47"
            ),
            PageOrder.SECTION: (
                "acccbcc870a381adab0d3919d90a7f268ac3b0364771f202ed4bb4e892d045b33db3b32e"
                "6924cba830a724eed443f7e1"
            ),
        },
    ),
    Known(
        package="Debian 13, ovmf 2025.02-8+deb13u1",
        sha256="14954040cc754ade0c625ac3470ea46d4c14318b5b1396de4ef77090203d76db",
        values={
            PageOrder.PAGE: (
                "bdc6fb145880f06f30c8b346b8dce2a99d9351b56892df22f80fcf6574caa9f9c31df8e8"
                "576d53b4d0cd1c3f28910e11"
            ),
            PageOrder.SECTION: (
                "456f07902150d008bb913c3e1e84e9297f735a6c83cd2a957a1f0a8bbedb06df188e3837"
                "ae48d32c73d473d097dc0db2"
            ),
        },
    ),
)


@functools.cache
def images() -> Mapping[str, Path]:
    """Return every image at hand by its digest."""
    named = os.environ.get(VARIABLE)
    folders = (*FOLDERS, named) if named else FOLDERS
    found = sorted(path for folder in folders for path in Path(folder).glob("*.fd"))
    return {
        hashlib.sha256(path.read_bytes()).hexdigest(): path
        for path in found
        if path.is_file() and path.stat().st_size <= MAX_FIRMWARE_BYTES
    }


def image_of(known: Known) -> bytes:
    if known.sha256 not in images():
        pytest.skip(f"no image of {known.package}: install it, or set {VARIABLE}")
    return images()[known.sha256].read_bytes()


@pytest.mark.parametrize("known", PUBLISHED + COMPUTED, ids=lambda known: known.package)
def test_the_mrtd_of(known: Known) -> None:
    firmware = parse_tdvf(image_of(known))
    got = {order: mrtd(firmware, order=order).hex() for order in known.values}
    assert got == known.values


def test_a_second_computation_agrees_about_whatever_is_at_hand() -> None:
    of_tds = {}
    for path in images().values():
        # The CODE half of an image, or one without TDX metadata.
        with suppress(MalformedInputError):
            of_tds[path] = parse_tdvf(path.read_bytes())
    if not of_tds:
        pytest.skip(f"no firmware of a TD at hand: install ovmf, or set {VARIABLE}")
    for path, firmware in of_tds.items():
        sections = [
            (s.offset or 0, 0, s.address, s.size, int(s.type), int(s.measured))
            for s in firmware.sections
        ]
        for order in PageOrder:
            by_page = order is PageOrder.PAGE
            wanted = build_td(firmware.data, sections, page_by_page=by_page)
            assert mrtd(firmware, order=order) == wanted, path
