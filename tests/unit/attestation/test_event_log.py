"""Event logs: read by the specification, replayed as registers are extended."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections.abc import Iterator

import pytest

from bentoml_secure.attestation.event_log import (
    MAX_LOG_BYTES,
    LogKind,
    parse_event_log,
    replay,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.testing.swtpm import SoftwareTpm, missing_tools
from tests.unit.attestation.event_logs import (
    ACTION,
    IPL,
    NO_ACTION,
    SEPARATOR,
    SHA1,
    SHA256,
    SHA384,
    SIZES,
    ccel,
    event,
    head,
    startup_locality,
)

TPM, TDX = LogKind.TPM, LogKind.TDX


def registers(log: bytes, kind: LogKind = TPM) -> dict[int, str]:
    replayed = replay(parse_event_log(log, kind), kind)
    return {index: value.hex() for index, value in replayed.items()}


def extended(name: str, *digested: bytes, start: bytes | None = None) -> str:
    value = start or bytes(hashlib.new(name).digest_size)
    for data in digested:
        value = hashlib.new(name, value + hashlib.new(name, data).digest()).digest()
    return value.hex()


class TestReplay:
    def test_events_extend_in_order(self) -> None:
        log = head() + event(0, b"a") + event(7, b"b") + event(0, b"c")
        assert registers(log) == {
            0: extended("sha256", b"a", b"c"),
            7: extended("sha256", b"b"),
        }

    def test_the_separator_of_a_real_boot(self) -> None:
        # A PCR with nothing but the separator has this value on every machine.
        log = head() + event(3, bytes(4), kind=SEPARATOR)
        assert registers(log)[3] == (
            "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
        )

    def test_what_is_no_action_extends_nothing(self) -> None:
        log = head() + event(0, b"note", kind=NO_ACTION) + event(1, b"a")
        assert registers(log) == {1: extended("sha256", b"a")}

    @pytest.mark.parametrize("locality", [0, 3, 4])
    def test_pcr_0_begins_with_the_locality(self, locality: int) -> None:
        log = head() + startup_locality(locality) + event(0, b"a") + event(1, b"a")
        start = bytes(31) + bytes([locality])
        assert registers(log) == {
            0: extended("sha256", b"a", start=start),
            1: extended("sha256", b"a"),
        }

    def test_the_digest_counts_and_not_the_text(self) -> None:
        log = head() + event(8, b"grub: linux", kind=IPL, digested=b"linux")
        (parsed,) = parse_event_log(log, TPM)
        assert not parsed.data_is_digested
        assert registers(log) == {8: extended("sha256", b"linux")}

    def test_a_td_s_registers(self) -> None:
        log = ccel((1, b"a"), (2, b"b"), (4, b"c"), (1, b"d"))
        assert registers(log, TDX) == {
            0: extended("sha384", b"a", b"d"),
            1: extended("sha384", b"b"),
            3: extended("sha384", b"c"),
        }

    def test_what_is_in_mrtd_is_in_no_rtmr(self) -> None:
        log = ccel((0, b"in MRTD"), (1, b"a"))
        assert registers(log, TDX) == {0: extended("sha384", b"a")}

    @pytest.mark.parametrize("register", range(17, 23))
    def test_a_late_launch_is_not_replayed(self, register: int) -> None:
        events = parse_event_log(head() + event(register, b"a"), TPM)
        with pytest.raises(MalformedInputError, match="late launch"):
            replay(events, TPM)

    @pytest.mark.parametrize("localities", [(3, 3), (5,)])
    def test_localities_that_cannot_be(self, localities: tuple[int, ...]) -> None:
        log = head() + b"".join(map(startup_locality, localities))
        events = parse_event_log(log, TPM)
        with pytest.raises(MalformedInputError, match="start-up locality"):
            replay(events, TPM)

    def test_no_event_no_register(self) -> None:
        assert registers(head()) == {}


class TestForm:
    def test_an_event_says_what_it_is(self) -> None:
        log = head() + event(0, b"a", kind=SEPARATOR) + event(1, b"b", kind=0xFFF)
        first, second = parse_event_log(log, TPM)
        assert (first.type_name, second.type_name) == ("EV_SEPARATOR", "0xfff")
        assert (first.register, first.data, first.extends) == (0, b"a", True)
        assert first.data_is_digested

    @pytest.mark.parametrize("byte", [b"\0", b"\xff"])
    @pytest.mark.parametrize("count", [0, 1, 7, 8, 1000])
    def test_padding_ends_a_log(self, byte: bytes, count: int) -> None:
        log = head() + event(1, b"a") + byte * count
        assert len(parse_event_log(log, TPM)) == 1

    def test_an_event_that_begins_as_padding_is_one(self) -> None:
        log = head() + event(0, b"", kind=0) + event(1, b"a")
        assert len(parse_event_log(log, TPM)) == 2

    @pytest.mark.parametrize("cut", range(1, len(head() + event(1, b"abc")), 3))
    def test_a_log_cut_short_is_refused(self, cut: int) -> None:
        log = (head() + event(1, b"abc"))[:-cut]
        if log in (head(), b""):
            pytest.skip("cut between two events")
        with pytest.raises(MalformedInputError, match="event log"):
            parse_event_log(log, TPM)

    @pytest.mark.parametrize(
        ("log", "kind", "match"),
        [
            (b"", TPM, "left"),
            (head(register=1), TPM, "does not begin"),
            (head(kind=ACTION), TPM, "does not begin"),
            (head(signature=b"Spec ID Event02\0"), TPM, "specification"),
            (head(()), TPM, "digests of 0"),
            (head((SHA1,) * 9), TPM, "digests of 9"),
            (head((SHA256, SHA256)), TPM, "twice"),
            (head((SHA1,)), TPM, "no sha256 digests"),
            (head((SHA256,)), TDX, "no sha384 digests"),
            (head((SHA256,), sizes={SHA256: 31}), TPM, "no sha256 digests"),
            (head() + event(24, b"a"), TPM, "register 24"),
            (ccel((5, b"a")), TDX, "register 5"),
            (head() + event(1, b"a", banks=(SHA1,)), TPM, "without sha256"),
            (head() + event(1, b"a", banks=(SHA384,)), TPM, "not listed"),
            (head() + event(1, b"a", banks=(SHA256, SHA256)), TPM, "twice"),
            (head() + event(1, b"a", banks=(SHA1, SHA256, SHA1)), TPM, "3 digests"),
            (head() + struct.pack("<III", 0, 4, 2**32 - 1), TPM, "at most 2"),
            (head() + event(1, b"a")[:-5] + b"\xff\xff\xff\x7fa", TPM, "left"),
            (bytes(MAX_LOG_BYTES + 1), TPM, "at most"),
        ],
    )
    def test_other_forms_are_refused(
        self, log: bytes, kind: LogKind, match: str
    ) -> None:
        with pytest.raises(MalformedInputError, match=match):
            parse_event_log(log, kind)

    def test_a_size_that_lies_allocates_nothing(self) -> None:
        spec = head((SHA256,), sizes=SIZES | {SHA256: 0xFFFF})
        with pytest.raises(MalformedInputError, match="no sha256"):
            parse_event_log(spec, TPM)


@pytest.fixture(scope="module")
def tpm() -> Iterator[SoftwareTpm]:
    if missing := missing_tools():
        pytest.skip(f"not installed: {', '.join(missing)}")
    with SoftwareTpm() as running:
        yield running


def test_a_tpm_comes_to_the_same_registers(tpm: SoftwareTpm) -> None:
    events = [(8, b"kernel"), (9, b"initrd"), (8, b"command line"), (14, b"more")]

    def tool(*arguments: str) -> str:
        return subprocess.run(
            [*arguments, "--tcti", tpm.tcti],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout

    for register, data in events:
        digest = hashlib.sha256(data).hexdigest()
        tool("tpm2_pcrextend", f"{register}:sha256={digest}")
    log = head() + b"".join(event(register, data) for register, data in events)
    replayed = registers(log)
    assert set(replayed) == {8, 9, 14}
    read = tool("tpm2_pcrread", "sha256:8,9,14").lower()
    for index, value in replayed.items():
        line = next(
            li for li in read.splitlines() if li.split(":")[0].strip() == f"{index}"
        )
        assert line.split("0x")[1] == value
