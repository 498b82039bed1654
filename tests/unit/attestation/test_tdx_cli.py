"""``verify evidence`` and ``inspect evidence`` on quotes of TDs and enclaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bentoml_secure.cli import main
from tests.evidence_vectors import vector
from tests.unit.attestation.dcap import PKI, REPORT_DATA, flipped

AT = "2025-07-01T00:00:00Z"
UNCHECKED = ("--unchecked-report-data", "a test")
MR_TD = (
    "91eb2b44d141d4ece09f0c75c2c53d247a3c68edd7fafe8a3520c942a604a407"
    "de03ae6dc5f87f27428b2538873118b7"
)
MR_ENCLAVE = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
POLICY = f"""\
version = 1
max_age_seconds = 300
allow = ["tdx", "sgx"]
[tdx]
mr_td = ["{MR_TD}"]
[sgx]
status = ["ConfigurationAndSWHardeningNeeded"]
mr_enclave = ["{MR_ENCLAVE}"]
"""


class Case:
    """Files of one verification, in a folder."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind
        self.write("policy", POLICY.encode())

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def verify(self, *options: str | Path, at: str = AT) -> Result:
        arguments = ["verify", "evidence", "--kind", self.kind, "--at", at]
        for name in ("evidence", "policy"):
            arguments += [f"--{name}", str(self.folder / name)]
        return CliRunner().invoke(main, arguments + [str(one) for one in options])

    def judge(self, *options: str | Path, at: str = AT) -> tuple[int, Any]:
        """Return the exit code and the one object of ``--json``."""
        result = self.verify(*options, *UNCHECKED, "--json", at=at)
        return result.exit_code, json.loads(result.stdout)


@pytest.fixture(params=["tdx", "sgx"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    case = Case(tmp_path, request.param)
    case.write("evidence", vector(f"{case.kind}/{case.kind}_quote"))
    collateral = vector(f"{case.kind}/{case.kind}_quote_collateral.json")
    case.write("collateral", collateral)
    return case


def given(case: Case) -> tuple[str, Path]:
    return "--endorsements", case.folder / "collateral"


def test_accepted(case: Case) -> None:
    exit_code, verdict = case.judge(*given(case))
    assert (exit_code, verdict["verdict"]) == (0, "accepted")
    assert (verdict["kind"], verdict["vendor"]) == (case.kind, "intel")
    assert verdict["simulated"] is False
    assert verdict["findings"] == []
    unchecked = {entry["field"] for entry in verdict["unchecked"]}
    assert {"advisories", "tcb_evaluation", "age", "report_data"} < unchecked
    lines = case.verify(*given(case), *UNCHECKED).stdout.splitlines()
    assert lines[-1] == f"ACCEPTED  {case.kind}"


def test_report_data(case: Case) -> None:
    got = case.judge(*given(case))[1]["report_data"]
    assert case.verify(*given(case), "--report-data", got).exit_code == 0
    other = case.verify(*given(case), "--report-data", got[::-1], "--json")
    document = json.loads(other.stdout)
    assert (other.exit_code, document["verdict"]) == (1, "rejected")
    assert [finding["field"] for finding in document["findings"]] == ["report_data"]


def test_among_endorsements_of_other_kinds(case: Case) -> None:
    others = [
        case.write("chain.pem", PKI.pck_chain.encode()),
        case.write("root.der", PKI.root.der),
        case.write("key.json", b'{"kty": "EC"}'),
    ]
    options = [option for path in others for option in ("--endorsements", path)]
    assert case.judge(*options, *given(case))[0] == 0
    assert case.judge(*given(case), *options)[0] == 0
    assert case.judge(*options)[0] == 3


@pytest.mark.parametrize(
    "write",
    [
        lambda digits: digits,
        lambda digits: digits.upper(),
        lambda digits: f"0x{digits}\n",
        lambda digits: "\r\n".join(digits[i : i + 64] for i in range(0, 10**4, 64)),
        lambda digits: f"  {digits}0000\n\n",
    ],
    ids=["one line", "upper", "0x", "lines", "padded"],
)
def test_hex_digits(case: Case, write: Any) -> None:
    digits = (case.folder / "evidence").read_bytes().hex()
    case.write("evidence", write(digits).encode())
    assert case.judge(*given(case))[0] == 0


def test_rejected(case: Case) -> None:
    evidence = (case.folder / "evidence").read_bytes()
    for changed, field in (
        (flipped(evidence, 100), "quote.signature"),
        (evidence + b"\x01", case.kind),
        (evidence[:600], case.kind),
    ):
        case.write("evidence", changed)
        exit_code, verdict = case.judge(*given(case))
        assert (exit_code, verdict["verdict"]) == (1, "rejected")
        assert [finding["field"] for finding in verdict["findings"]] == [field]


def test_out_of_their_time(case: Case) -> None:
    for at, field in (
        ("2025-06-01T00:00:00Z", "collateral.issued"),
        ("2026-11-01T00:00:00Z", "crl.expired"),
    ):
        exit_code, verdict = case.judge(*given(case), at=at)
        assert (exit_code, verdict["findings"][0]["field"]) == (1, field)


def test_endorsements_that_are_missing_or_cut(case: Case) -> None:
    result = case.verify(*UNCHECKED)
    assert result.exit_code == 3
    assert "no DCAP collateral was given" in result.stdout
    cut = (case.folder / "collateral").read_bytes()[:-2]
    case.write("collateral", cut)
    exit_code, verdict = case.judge(*given(case))
    assert (exit_code, verdict["verdict"]) == (1, "rejected")


def test_usage(case: Case) -> None:
    case.write("policy", POLICY.replace("mr_", "mr__").encode())
    result = case.verify(*given(case), *UNCHECKED)
    assert result.exit_code == 2
    assert "unknown key" in result.stderr


def test_a_development_root_is_not_intels(tmp_path: Path) -> None:
    case = Case(tmp_path, "tdx")
    case.write("evidence", PKI.tdx_quote(REPORT_DATA))
    case.write("collateral", PKI.collateral("TDX"))
    exit_code, verdict = case.judge(*given(case), at="2026-03-01T12:00:00Z")
    assert (exit_code, verdict["findings"][0]["field"]) == (1, "chain.root")


def test_old_firmware_as_it_was_written_down(tmp_path: Path) -> None:
    case = Case(tmp_path, "tdx")
    case.write("evidence", vector("tdx/tdx-quote.hex"))
    case.write("collateral", vector("tdx/tdx_quote_collateral.json"))
    exit_code, verdict = case.judge(*given(case))
    assert (exit_code, verdict["findings"][0]["field"]) == (1, "tcb.level")


def test_what_a_quote_says(case: Case) -> None:
    evidence = str(case.folder / "evidence")
    result = CliRunner().invoke(main, ["inspect", "evidence", evidence, "--json"])
    document = json.loads(result.stdout)
    assert (result.exit_code, document["verified"]) == (0, False)
    assert list(document["descriptions"]) == [case.kind]
    described = document["descriptions"][case.kind]
    want = {"tdx": ("mr_td", MR_TD), "sgx": ("mr_enclave", MR_ENCLAVE)}[case.kind]
    assert described[want[0]] == want[1]
