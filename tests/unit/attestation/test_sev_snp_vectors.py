"""Genuine reports of AMD's chips, as their owners published them, and edits of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.amd_chain import AMD_ROOTS
from bentoml_secure.attestation.tees.snp_report import SIGNED_BYTES
from bentoml_secure.cli import main
from bentoml_secure.digest import digest_bytes
from bentoml_secure.errors import (
    CheckFailedError,
    MalformedInputError,
    MissingEndorsementError,
    PolicyRejected,
)
from bentoml_secure.testing.amd_pki import AmdPki
from tests.evidence_vectors import vector

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
ANY = {"measurement": {"unchecked": "a test"}}
MILAN_CHIP = (
    "d49554ec717f4e5b0fe6b143bcf0405bd7ae304727edf46603f2a76aef6a3abc"
    "15d7af38db757039029f0efacfd08e244324884738c72b082e2f87a44d541eb6"
)
MILAN_TCB = {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}
MILAN_MEASUREMENT = (
    "7a1e5c266c0108dbc9bb94fa926951320940915d0aafb42464bd88b579ea158d"
    "3e1a0dc39b2c60bd95b9c480cd81841f"
)
CHAINS = (
    ("milan", "milan_vlek"),
    ("genoa", "genoa_vlek"),
    ("turin_vcek", "turin_vlek"),
)


def chain(name: str) -> list[bytes]:
    """Return AMD's ASK and ARK of a name, as DER."""
    pem = vector(f"sev_snp/trust/ask_ark_{name}.pem")
    return [
        certificate.public_bytes(Encoding.DER)
        for certificate in x509.load_pem_x509_certificates(pem)
    ]


def milan() -> bytes:
    return bytes.fromhex(vector("sev_snp/report_milan.hex").decode())


def given() -> list[bytes]:
    return [vector("sev_snp/vcek_milan.der"), *chain("milan")]


def verify(
    blob: bytes, endorsements: Sequence[bytes], now: datetime = NOW
) -> VerifiedClaims:
    tee = load_tee("sev-snp")
    return tee.verify(Evidence(kind="sev-snp", blob=blob), endorsements, now=now)


def rejected(
    claims: VerifiedClaims, table: dict[str, Any], data: bytes | None = None
) -> list[str]:
    policy = AppraisalPolicy.from_table(
        {"version": 1, "max_age_seconds": 300, "allow": ["sev-snp"], "sev-snp": table}
    )
    try:
        appraise(
            claims,
            policy,
            report_data=data or claims.report_data or b"",
            now=NOW,
            nonce_issued_at=NOW,
        )
    except PolicyRejected as rejection:
        return [finding.field for finding in rejection.findings]
    return []


def test_a_milan_report() -> None:
    claims = verify(milan(), given())
    assert not claims.simulated
    assert claims.vendor == "amd"
    assert claims.platform_id == MILAN_CHIP
    assert AMD_ROOTS[claims.root] == "Milan"
    assert claims.expires_at == datetime(2030, 4, 3, 19, 23, 43, tzinfo=UTC)
    assert claims.claims["measurement"] == MILAN_MEASUREMENT
    assert claims.claims["product"] == "Milan"
    assert all(tcb == MILAN_TCB for tcb in claims.claims["tcb"].values())
    assert claims.claims["policy"]["raw"] == "0x30000"
    assert claims.claims["firmware"]["current"] == "1.52.4"
    table = {"measurement": [MILAN_MEASUREMENT], "min_tcb": MILAN_TCB}
    assert rejected(claims, table) == []
    assert rejected(claims, table, bytes(64)) == ["report_data"]
    higher = {"min_tcb": MILAN_TCB | {"snp": 9}}
    tcbs = ["tcb.reported", "tcb.committed", "tcb.current"]
    assert rejected(claims, table | higher) == tcbs


def test_a_genuine_guest_that_its_host_may_debug() -> None:
    report = vector("sev_snp/attestation.bin")
    claims = verify(report, [vector("sev_snp/vcek.testcer"), *chain("milan")])
    assert claims.claims["policy"]["raw"] == "0xb0000"
    assert claims.report_data == bytes([1, 2, 3, 4, 5]) + bytes(59)
    assert rejected(claims, ANY) == ["policy.debug"]


@pytest.mark.parametrize(("vceks", "vleks"), CHAINS)
def test_amds_roots_are_pinned(vceks: str, vleks: str) -> None:
    (_, ark), (_, again) = chain(vceks), chain(vleks)
    assert ark == again
    assert AMD_ROOTS[digest_bytes(ark)].lower() == vceks.partition("_")[0]


def test_endorsements_of_all_products_and_both_chips() -> None:
    names = [name for names in CHAINS for name in names]
    trust = [der for name in names for der in chain(name)]
    leaves = [vector("sev_snp/vcek.testcer"), vector("sev_snp/vcek_milan.der")]
    for endorsements in ([*leaves, *trust], [*trust[::-1], *leaves[::-1]]):
        assert verify(milan(), endorsements).platform_id == MILAN_CHIP


def test_every_signed_bit() -> None:
    report, endorsements, tee = milan(), given(), load_tee("sev-snp")
    for at in range(SIGNED_BYTES):
        hurt = bytearray(report)
        hurt[at] ^= 1 << at % 8
        with pytest.raises((CheckFailedError, MalformedInputError), match=r"."):
            tee.verify(
                Evidence(kind="sev-snp", blob=bytes(hurt)), endorsements, now=NOW
            )


@pytest.mark.parametrize("which", [0, 1, 2], ids=["vcek", "ask", "ark"])
def test_every_byte_of_a_certificate(which: int) -> None:
    report, endorsements = milan(), given()
    der = endorsements[which]
    for at in range(which, len(der), 3):
        hurt = bytearray(der)
        hurt[at] ^= 1 << at % 8
        edited = [*endorsements[:which], bytes(hurt), *endorsements[which + 1 :]]
        with pytest.raises(
            (CheckFailedError, MalformedInputError, MissingEndorsementError), match=r"."
        ):
            verify(report, edited)


@pytest.mark.parametrize(
    ("now", "match"),
    [
        (datetime(2023, 4, 3, tzinfo=UTC), r"chain\.dates"),
        (datetime(2030, 4, 4, tzinfo=UTC), r"chain\.dates"),
        (datetime(2046, 1, 1, tzinfo=UTC), r"chain\.dates"),
    ],
)
def test_out_of_date(now: datetime, match: str) -> None:
    with pytest.raises(CheckFailedError, match=match):
        verify(milan(), given(), now=now)


def test_another_chips_vcek() -> None:
    other = [vector("sev_snp/vcek.testcer"), *chain("milan")]
    with pytest.raises(CheckFailedError, match=r"leaf\.hwid"):
        verify(milan(), other)


def test_another_products_chain() -> None:
    leaf = vector("sev_snp/vcek_milan.der")
    for name in ("genoa", "turin_vcek"):
        with pytest.raises(CheckFailedError, match=r"leaf\.issuer"):
            verify(milan(), [leaf, *chain(name)])
    (_, ark) = chain("genoa")
    with pytest.raises(CheckFailedError, match=r"ask\.issuer"):
        verify(milan(), [leaf, chain("milan")[0], ark])


def test_a_development_root_in_place_of_amds() -> None:
    pki = AmdPki(now=NOW)
    with pytest.raises(CheckFailedError, match=r"ark\.pinned"):
        verify(pki.sign_report(), pki.endorsements())
    with pytest.raises(CheckFailedError, match=r"ark\.pinned"):
        verify(pki.sign_report(), [*pki.endorsements(), *given()])


class TestCommandLine:
    """The same through the command: exit codes, forms of files, JSON."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        leaf, ask, ark = given()
        debug = vector("sev_snp/attestation.bin")
        files = {
            "report.bin": milan(),
            "report.hex": vector("sev_snp/report_milan.hex"),
            "debug.bin": debug,
            "vcek.der": leaf,
            "debug.der": vector("sev_snp/vcek.testcer"),
            "ask.der": ask,
            "ark.der": ark,
            "chain.pem": vector("sev_snp/trust/ask_ark_milan.pem"),
            "genoa.pem": vector("sev_snp/trust/ask_ark_genoa.pem"),
            "policy.toml": (
                'version = 1\nmax_age_seconds = 300\nallow = ["sev-snp"]\n[sev-snp]\n'
                f'measurement = ["{MILAN_MEASUREMENT}"]\n'
                "min_tcb = { bootloader = 3, tee = 0, snp = 8, microcode = 115 }\n"
            ).encode(),
            "any.toml": (
                b'version = 1\nmax_age_seconds = 300\nallow = ["sev-snp"]\n[sev-snp]\n'
                b'measurement = { unchecked = "a test" }\n'
            ),
            "bad.toml": b'version = 1\nmax_age_seconds = 300\nallow = ["sev-snp"]\n'
            b"[sev-snp]\nallow_debug = true\n",
        }
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        return tmp_path

    def run(
        self,
        folder: Path,
        evidence: str,
        *endorsements: str,
        policy: str = "policy.toml",
        data: str = "",
        at: str = "2026-03-01T12:00:00Z",
    ) -> tuple[Result, dict[str, Any]]:
        arguments = ["verify", "evidence", "--kind", "sev-snp", "--json", "--at", at]
        arguments += ["--evidence", str(folder / evidence)]
        arguments += ["--policy", str(folder / policy)]
        arguments += ["--report-data", data or milan()[0x50:0x90].hex()]
        for name in endorsements:
            arguments += ["--endorsements", str(folder / name)]
        result = CliRunner().invoke(main, arguments, prog_name="bentoml-secure")
        return result, json.loads(result.stdout) if result.stdout else {}

    @pytest.mark.parametrize("evidence", ["report.bin", "report.hex"])
    @pytest.mark.parametrize(
        "endorsements",
        [
            ("vcek.der", "chain.pem"),
            ("chain.pem", "vcek.der"),
            ("ark.der", "vcek.der", "ask.der"),
            ("genoa.pem", "debug.der", "policy.toml", "vcek.der", "chain.pem"),
        ],
        ids=len,
    )
    def test_accepted(
        self, folder: Path, evidence: str, endorsements: tuple[str, ...]
    ) -> None:
        result, document = self.run(folder, evidence, *endorsements)
        assert result.exit_code == 0, result.output
        assert document["verdict"] == "accepted"
        assert document["kind"] == "sev-snp"
        assert document["findings"] == []
        assert document["platform_id"] == MILAN_CHIP
        assert document["tcb"]["reported"] == MILAN_TCB
        assert "revocation" in [field["field"] for field in document["unchecked"]]

    def test_rejected_for_debug(self, folder: Path) -> None:
        result, document = self.run(
            folder,
            "debug.bin",
            "debug.der",
            "chain.pem",
            policy="any.toml",
            data=(bytes([1, 2, 3, 4, 5]) + bytes(59)).hex(),
        )
        assert result.exit_code == 1
        assert document["verdict"] == "rejected"
        assert [item["field"] for item in document["findings"]] == ["policy.debug"]

    def test_rejected_for_the_challenge(self, folder: Path) -> None:
        result, document = self.run(
            folder, "report.bin", "vcek.der", "chain.pem", data="00" * 64
        )
        assert result.exit_code == 1
        assert [item["field"] for item in document["findings"]] == ["report_data"]

    @pytest.mark.parametrize(
        ("endorsements", "field"),
        [
            (("debug.der", "chain.pem"), "leaf.hwid"),
            (("vcek.der", "genoa.pem"), "leaf.issuer"),
        ],
    )
    def test_rejected_for_endorsements_that_do_not_fit(
        self, folder: Path, endorsements: tuple[str, ...], field: str
    ) -> None:
        result, document = self.run(folder, "report.bin", *endorsements)
        assert result.exit_code == 1
        assert [item["field"] for item in document["findings"]] == [field]

    def test_rejected_out_of_date(self, folder: Path) -> None:
        result, document = self.run(
            folder, "report.bin", "vcek.der", "chain.pem", at="2040-01-01T00:00:00Z"
        )
        assert result.exit_code == 1
        assert [item["field"] for item in document["findings"]] == ["chain.dates"]

    def test_rejected_as_malformed(self, folder: Path) -> None:
        (folder / "short.bin").write_bytes(milan()[:-1])
        result, document = self.run(folder, "short.bin", "vcek.der", "chain.pem")
        assert result.exit_code == 1
        assert document["verdict"] == "rejected"

    def test_usage(self, folder: Path) -> None:
        for changes in ({"policy": "bad.toml"}, {"policy": "none.toml"}):
            result, _ = self.run(
                folder, "report.bin", "vcek.der", "chain.pem", **changes
            )
            assert result.exit_code == 2

    @pytest.mark.parametrize(
        "endorsements",
        [(), ("vcek.der",), ("chain.pem",), ("vcek.der", "ark.der")],
        ids=str,
    )
    def test_incomplete(self, folder: Path, endorsements: tuple[str, ...]) -> None:
        result, document = self.run(folder, "report.bin", *endorsements)
        assert result.exit_code == 3, result.output
        assert document["verdict"] == "incomplete"
        assert "kdsintf.amd.com/vcek/v1/" in document["findings"][0]["got"]

    def test_inspect(self, folder: Path) -> None:
        arguments = ["inspect", "evidence", "--kind", "sev-snp", "--json"]
        arguments.append(str(folder / "report.bin"))
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0
        described = json.loads(result.stdout)["descriptions"]["sev-snp"]
        assert described["chip_id"] == MILAN_CHIP
