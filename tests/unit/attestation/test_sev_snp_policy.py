"""What a policy accepts of SEV-SNP: each comparison, alone and by name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import AttestationResult, Evidence
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.attestation.tees.sev_snp import SevSnp
from bentoml_secure.attestation.tees.snp_report import Product, SigningKey, Tcb
from bentoml_secure.errors import ConfigurationError, PolicyRejected
from bentoml_secure.testing.amd_pki import MEASUREMENT, POLICY, AmdPki, encode_tcb

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
WHY = Unchecked("a test of reference values")
GOOD: dict[str, Any] = {
    "measurement": [MEASUREMENT.hex()],
    "min_tcb": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219},
    "min_launch_tcb": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219},
    "min_abi": "1.55",
    "host_data": ["11" * 32],
    "id_key_digest": ["22" * 48],
    "author_key_digest": ["33" * 48],
    "products": ["Milan", "Genoa"],
    "keys": ["vcek"],
    "require_platform": ["ecc", "alias_check_complete"],
    "refuse_platform": ["smt", "tsme"],
    "require_policy": ["single_socket", "ciphertext_hiding"],
    "refuse_policy": ["smt", "cxl"],
    "require_crl": True,
}
FIELDS: dict[str, Any] = {
    "host_data": b"\x11" * 32,
    "id_key_digest": b"\x22" * 48,
    "author_key_digest": b"\x33" * 48,
    "platform_info": 1 << 2 | 1 << 5,
    "policy": 1 << 17 | 1 << 20 | 1 << 24,
}
ANY: dict[str, Any] = {"measurement": {"unchecked": "a test"}}
LOW = encode_tcb(Tcb(bootloader=4, tee=0, snp=23, microcode=219))


@pytest.fixture(scope="module")
def pki() -> AmdPki:
    return AmdPki(now=NOW)


def judged(
    pki: AmdPki,
    table: dict[str, Any],
    *,
    key: SigningKey = SigningKey.VCEK,
    crl: bool = True,
    **fields: Any,
) -> AttestationResult:
    given = (*pki.endorsements(key), *([pki.issue_crl()] if crl else []))
    blob = pki.sign_report(key=key, **fields)
    claims = SevSnp(roots=pki.roots).verify(
        Evidence(kind="sev-snp", blob=blob), given, now=NOW
    )
    policy = AppraisalPolicy.from_table(
        {"version": 1, "max_age_seconds": 300, "allow": ["sev-snp"], "sev-snp": table}
    )
    return appraise(claims, policy, report_data=WHY, now=NOW, nonce_issued_at=NOW)


def refused(pki: AmdPki, table: dict[str, Any], **fields: Any) -> list[str]:
    with pytest.raises(PolicyRejected, match="not acceptable") as caught:
        judged(pki, table, **fields)
    return [finding.field for finding in caught.value.findings]


def test_all_that_can_be_demanded_is_met(pki: AmdPki) -> None:
    result = judged(pki, GOOD, **FIELDS)
    assert [field.field for field in result.unchecked] == ["report_data", "platform_id"]
    assert result.simulated


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("measurement", {"measurement": b"\x44" * 48}),
        ("host_data", {"host_data": b""}),
        ("id_key_digest", {"id_key_digest": b"\x33" * 48}),
        ("author_key_digest", {"author_key_digest": b"\x22" * 48}),
        ("key", {"key": SigningKey.VLEK}),
        ("policy.debug", {"policy": FIELDS["policy"] | 1 << 19}),
        ("policy.migrate_ma", {"policy": FIELDS["policy"] | 1 << 18}),
        ("policy.reserved", {"policy": FIELDS["policy"] | 1 << 26}),
        ("policy.reserved", {"policy": FIELDS["policy"] | 1 << 63}),
        ("policy.reserved", {"policy": FIELDS["policy"] ^ 1 << 17}),
        ("policy.required", {"policy": FIELDS["policy"] ^ 1 << 20}),
        ("policy.required", {"policy": FIELDS["policy"] ^ 1 << 24}),
        ("policy.refused", {"policy": FIELDS["policy"] | 1 << 16}),
        ("policy.refused", {"policy": FIELDS["policy"] | 1 << 21}),
        ("platform.required", {"platform_info": 1 << 2}),
        ("platform.required", {"platform_info": 1 << 5}),
        ("platform.refused", {"platform_info": FIELDS["platform_info"] | 1}),
        ("platform.refused", {"platform_info": FIELDS["platform_info"] | 2}),
        ("vmpl", {"vmpl": 1}),
        ("vmpl", {"vmpl": 0xFFFFFFFF}),
        ("tcb.current", {"current_tcb": LOW}),
        ("tcb.committed", {"committed_tcb": LOW}),
        ("tcb.launch", {"launch_tcb": LOW}),
        ("firmware.current", {"current_version": bytes([99, 54, 1])}),
        ("firmware.current", {"current_version": bytes([99, 99, 0])}),
        ("firmware.committed", {"committed_version": bytes([99, 54, 1])}),
        ("revocation", {"crl": False}),
    ],
    ids=str,
)
def test_each_difference_is_refused_by_name(
    pki: AmdPki, field: str, changes: dict[str, Any]
) -> None:
    assert refused(pki, GOOD, **FIELDS | changes) == [field]


@pytest.mark.parametrize("part", ["bootloader", "snp", "microcode"])
def test_a_reported_tcb_below_the_minimum(part: str) -> None:
    pki = AmdPki(now=NOW)
    good = pki.tcb
    high = encode_tcb(good)
    pki.tcb = Tcb(**{**good.to_json(), part: good.to_json()[part] - 1})
    tcbs = dict.fromkeys(["current_tcb", "committed_tcb", "launch_tcb"], high)
    assert refused(pki, GOOD, **FIELDS | tcbs) == ["tcb.reported"]


def test_a_product_that_is_not_listed() -> None:
    pki = AmdPki(now=NOW, product=Product.GENOA)
    table = GOOD | {"products": ["Milan", "Turin"]}
    assert refused(pki, table, **FIELDS) == ["product"]
    assert judged(pki, GOOD, **FIELDS).claims.claims["product"] == "Genoa"


def test_every_finding_is_listed(pki: AmdPki) -> None:
    changes: dict[str, Any] = {
        "policy": POLICY | 1 << 19,
        "vmpl": 3,
        "measurement": b"",
    }
    got = refused(pki, {"measurement": GOOD["measurement"]}, **changes)
    assert got == ["measurement", "policy.debug", "vmpl"]


def test_what_is_left_out_shows(pki: AmdPki) -> None:
    table = {"measurement": {"unchecked": "a test"}}
    result = judged(pki, table, crl=False)
    unchecked = {field.field: field.reason for field in result.unchecked}
    assert unchecked == {
        "measurement": "a test",
        "host_data": "the policy lists no host_data",
        "id_key_digest": "the policy lists no id_key_digest",
        "author_key_digest": "the policy lists no author_key_digest",
        "product": "the policy lists no products",
        "key": "the policy lists no keys",
        "tcb": "the policy sets no min_tcb",
        "tcb.launch": "the policy sets no min_launch_tcb",
        "firmware": "the policy sets no min_abi",
        "revocation": "no revocation list among the endorsements",
        "report_data": WHY.reason,
        "platform_id": "the policy lists no machines",
    }


@pytest.mark.parametrize("bit", [18, 19, 26])
def test_no_policy_accepts_what_opens_the_guest(pki: AmdPki, bit: int) -> None:
    table = {"measurement": {"unchecked": "a test"}, "max_vmpl": 3}
    (field,) = refused(pki, table, policy=POLICY | 1 << bit)
    assert field.startswith("policy.")


def test_a_higher_vmpl_has_to_be_allowed(pki: AmdPki) -> None:
    table = {"measurement": {"unchecked": "a test"}, "max_vmpl": 2}
    assert judged(pki, table, vmpl=2).claims.claims["vmpl"] == 2
    assert refused(pki, table, vmpl=3) == ["vmpl"]


def test_levels_are_compared_one_by_one() -> None:
    # 5 beats 4, and does not make up for 23.
    pki = AmdPki(now=NOW)
    pki.tcb = Tcb(bootloader=5, tee=9, snp=23, microcode=255)
    table = {"measurement": {"unchecked": "a test"}, "min_tcb": GOOD["min_tcb"]}
    assert refused(pki, table) == ["tcb.reported", "tcb.committed", "tcb.current"]


class TestTurin:
    def test_the_fmc_counts_where_there_is_one(self, pki: AmdPki) -> None:
        table = ANY | {"min_tcb": GOOD["min_tcb"] | {"fmc": 2}}
        turin = AmdPki(now=NOW, product=Product.TURIN)
        assert set(refused(turin, table)) == {
            "tcb.reported",
            "tcb.committed",
            "tcb.current",
        }
        assert judged(pki, table).claims.claims["product"] == "Milan"

    def test_an_fmc_without_a_minimum_shows(self) -> None:
        turin = AmdPki(now=NOW, product=Product.TURIN)
        result = judged(turin, ANY | {"min_tcb": GOOD["min_tcb"]})
        unchecked = {field.field: field.reason for field in result.unchecked}
        assert unchecked["tcb.fmc"] == "min_tcb has no fmc"


class TestReading:
    def test_a_policy_reads_back(self) -> None:
        for table in (GOOD, {"measurement": {"unchecked": "a test"}}):
            policy = SevSnp().parse_policy(table)
            assert SevSnp().parse_policy(policy.to_json()) == policy

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"allow_debug": True}, "unknown key 'allow_debug'"),
            ({"measurement": []}, "at least one launch measurement"),
            ({"measurement": ["00" * 32]}, "want launch measurement of 96"),
            ({"measurement": {"unchecked": " "}}, "want a reason"),
            ({"min_tcb": {"bootloader": 4}}, "min_tcb: tee is missing"),
            ({"min_tcb": GOOD["min_tcb"] | {"ucode": 1}}, "unknown key 'ucode'"),
            ({"min_tcb": GOOD["min_tcb"] | {"snp": 256}}, "snp: got 256, want 0 to"),
            ({"min_tcb": GOOD["min_tcb"] | {"snp": True}}, "snp: got True"),
            ({"min_tcb": 4}, "min_tcb: got 4, want a table"),
            ({"min_tcb": {"unchecked": ""}}, "want a reason"),
            ({"min_launch_tcb": {}}, "min_launch_tcb: bootloader is missing"),
            ({"max_vmpl": 4}, "max_vmpl: got 4, want 0 to 3"),
            ({"max_vmpl": -1}, "max_vmpl: got -1"),
            ({"max_vmpl": False}, "max_vmpl: got False"),
            ({"min_abi": 1.55}, "min_abi: got 1.55"),
            ({"min_abi": "1.55.1"}, "min_abi: got '1.55.1'"),
            ({"min_abi": {"why": "so"}}, "unknown key 'why'"),
            ({"products": ["Rome"]}, "want product: Milan, Genoa, Turin"),
            ({"keys": ["none"]}, "want key: vcek, vlek"),
            ({"require_platform": ["debug"]}, "want name: smt, tsme"),
            ({"refuse_policy": []}, "at least one name"),
            ({"require_crl": 1}, "require_crl: got 1, want true or false"),
        ],
        ids=str,
    )
    def test_mistakes_are_the_operators(
        self, changes: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=match):
            SevSnp().parse_policy(GOOD | changes)

    def test_a_measurement_is_required(self) -> None:
        with pytest.raises(ConfigurationError, match="measurement is missing"):
            SevSnp().parse_policy({"min_tcb": GOOD["min_tcb"]})
