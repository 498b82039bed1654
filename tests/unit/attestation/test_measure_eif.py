"""Enclave image files: registers, signature, and forms that are refused."""

from __future__ import annotations

import io
import struct
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bentoml_secure.attestation.measurement.eif import EnclaveImage, measure_eif
from bentoml_secure.errors import CheckFailedError, MalformedInputError
from tests.unit.attestation.enclave_images import (
    COMMAND_LINE,
    KERNEL,
    METADATA,
    RAMDISK,
    SIGNATURE,
    UNSIGNED,
    Signer,
    eif,
    pcr,
)

CONTENTS = [data for kind, data in UNSIGNED if kind != METADATA]
KERNEL_DATA, LINE, INIT, APPLICATION, MORE = CONTENTS
PCR0 = pcr(*CONTENTS)


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.make()


def measure(image: bytes) -> EnclaveImage:
    return measure_eif(io.BytesIO(image))


class TestRegisters:
    def test_of_an_unsigned_image(self) -> None:
        measured = measure(eif())
        assert measured.signer is None
        assert measured.pcrs == {
            0: PCR0,
            1: pcr(KERNEL_DATA, LINE, INIT),
            2: pcr(APPLICATION, MORE),
        }

    @pytest.mark.parametrize("as_numbers", [True, False])
    def test_of_a_signed_image(self, signer: Signer, as_numbers: bool) -> None:
        section = signer.section(PCR0, as_numbers=as_numbers)
        measured = measure(eif([*UNSIGNED, (SIGNATURE, section)]))
        assert measured.signer == "CN=signer"
        assert measured.pcrs[0] == PCR0
        assert measured.pcrs[8] == pcr(signer.certificate.public_bytes(Encoding.DER))

    def test_metadata_is_not_measured(self) -> None:
        without = [section for section in UNSIGNED if section[0] != METADATA]
        assert measure(eif(without)).pcrs == measure(eif()).pcrs

    def test_without_an_application(self) -> None:
        sections = [(KERNEL, b"k"), (COMMAND_LINE, b"c"), (RAMDISK, b"r")]
        assert measure(eif(sections)).pcrs == {
            0: pcr(b"k", b"c", b"r"),
            1: pcr(b"k", b"c", b"r"),
            2: pcr(),
        }

    def test_a_section_longer_than_what_is_read_at_once(self) -> None:
        kernel = bytes(range(256)) * 10_000
        measured = measure(eif([(KERNEL, kernel), (COMMAND_LINE, b"c")]))
        assert measured.pcrs[0] == pcr(kernel, b"c")


class TestSignature:
    def test_another_key_s_is_refused(self, signer: Signer) -> None:
        other = ec.generate_private_key(ec.SECP384R1())
        section = signer.section(PCR0, key=other)
        with pytest.raises(CheckFailedError, match=r"eif\.signature") as caught:
            measure(eif([*UNSIGNED, (SIGNATURE, section)]))
        assert caught.value.findings[0].field == "eif.signature"

    @pytest.mark.parametrize(("value", "index"), [(bytes(48), 0), (PCR0, 1)])
    def test_a_signature_of_another_image_is_refused(
        self, signer: Signer, value: bytes, index: int
    ) -> None:
        section = signer.section(value, index=index)
        with pytest.raises(CheckFailedError, match=r"eif\.pcr0") as caught:
            measure(eif([*UNSIGNED, (SIGNATURE, section)]))
        assert caught.value.findings[0].field == "eif.pcr0"

    @pytest.mark.parametrize(
        ("section", "match"),
        [
            (b"", "cut short"),
            (cbor2.dumps([]), "list of one"),
            (cbor2.dumps([{}, {}]), "list of one"),
            (cbor2.dumps([1]), "list of one"),
            (cbor2.dumps([{}]), "want bytes, got NoneType"),
            (cbor2.dumps([{"signing_certificate": [256]}]), "want bytes, got list"),
            (cbor2.dumps([{"signing_certificate": b"PEM"}]), "certificate"),
            (bytes(65 * 1024), "a signature of"),
        ],
    )
    def test_other_forms_are_refused(self, section: bytes, match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            measure(eif([*UNSIGNED, (SIGNATURE, section)]))

    def test_a_payload_of_another_form_is_refused(self, signer: Signer) -> None:
        section = cbor2.loads(signer.section(PCR0, as_numbers=False))
        cose = cbor2.loads(section[0]["signature"])
        cose[2] = b"\x01"
        section[0]["signature"] = cbor2.dumps(cose)
        with pytest.raises(CheckFailedError, match=r"eif\.signature"):
            measure(eif([*UNSIGNED, (SIGNATURE, cbor2.dumps(section))]))


class TestForm:
    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"magic": b"\x7fELF"}, "begins with"),
            ({"version": 1}, "version 1"),
            ({"version": 5}, "version 5"),
            ({"count": 0}, "0 sections"),
            ({"count": 33}, "33 sections"),
            ({"count": 5}, "bytes after"),
            ({"count": 7}, "the header says"),
            ({"crc": 1}, "CRC"),
            ({"edit": lambda offsets, sizes: sizes.__setitem__(0, 1)}, "header says"),
            ({"edit": lambda offsets, sizes: offsets.__setitem__(0, 1)}, "header says"),
            (
                {"edit": lambda offsets, sizes: sizes.__setitem__(0, 1 << 63)},
                "larger than",
            ),
        ],
    )
    def test_other_headers_are_refused(
        self, changes: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(MalformedInputError, match=match):
            measure(eif(**changes))

    @pytest.mark.parametrize(
        ("sections", "match"),
        [
            ([(KERNEL, b"k")], "no command line"),
            ([(COMMAND_LINE, b"c")], "no kernel"),
            ([*UNSIGNED, (KERNEL, b"k")], "two sections"),
            ([*UNSIGNED, (0, b"")], "unknown type 0"),
            ([*UNSIGNED, (6, b"")], "unknown type 6"),
        ],
    )
    def test_other_sections_are_refused(
        self, sections: list[tuple[int, bytes]], match: str
    ) -> None:
        with pytest.raises(MalformedInputError, match=match):
            measure(eif(sections))

    @pytest.mark.parametrize("length", [0, 4, 547, 548, 555, 600, 7000])
    def test_an_image_cut_short_is_refused(self, length: int) -> None:
        with pytest.raises(MalformedInputError, match="cut short"):
            measure(eif()[:length])

    def test_bytes_after_it_are_refused(self) -> None:
        with pytest.raises(MalformedInputError, match="bytes after"):
            measure(eif() + b"\0")

    def test_a_flipped_byte_breaks_the_crc(self) -> None:
        image = bytearray(eif())
        image[1000] ^= 1
        with pytest.raises(MalformedInputError, match="CRC"):
            measure(bytes(image))

    def test_the_header_has_the_size_of_the_format(self) -> None:
        assert struct.calcsize(">4sHHQQHH32Q32QII") == 548
