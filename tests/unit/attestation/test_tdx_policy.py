"""The table ``[tdx]``: what it compares, leaves out and refuses to say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise
from bentoml_secure.attestation.evidence import VerifiedClaims
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.attestation.tees.dcap_policy import STATUSES
from bentoml_secure.attestation.tees.tdx import Tdx
from bentoml_secure.errors import ConfigurationError, PolicyRejected
from bentoml_secure.testing.dcap_pki import DcapPki
from bentoml_secure.testing.dcap_platform import Platform, measurement
from tests.unit.attestation.dcap import (
    NOW,
    PKI,
    REPORT_DATA,
    field,
    fields,
    left_out,
    level,
    tdx,
)

MR_TD = measurement("TD").hex()
OTHER = measurement("other").hex()
NONE = {
    "rtmr.0": "the policy lists none",
    "rtmr.1": "the policy lists none",
    "rtmr.2": "the policy lists none",
    "rtmr.3": "the policy lists none",
    "mr_config_id": "the policy lists none",
    "mr_owner": "the policy lists none",
    "mr_owner_config": "the policy lists none",
    "mr_seam": "the policy lists none",
    "xfam": "the policy lists none",
    "advisories": "the policy rejects none",
    "tcb_evaluation": "the policy names no minimum",
    "dynamic_platform": "the policy accepts either",
    "cached_keys": "the policy accepts either",
    "smt": "the policy accepts either",
}


@pytest.fixture(scope="module")
def claims() -> VerifiedClaims:
    return tdx()


def compare(claims: VerifiedClaims, **table: Any) -> list[str]:
    policy = Tdx().parse_policy({"mr_td": [MR_TD], **table})
    return fields(policy.compare(claims))


def changed(claims: VerifiedClaims, **values: Any) -> VerifiedClaims:
    return replace(claims, claims={**claims.claims, **values})


def test_what_is_not_compared_is_listed(claims: VerifiedClaims) -> None:
    comparison = Tdx().parse_policy({"mr_td": [MR_TD]}).compare(claims)
    assert comparison.findings == ()
    assert left_out(comparison) == NONE


def test_a_policy_that_compares_everything(claims: VerifiedClaims) -> None:
    pki = DcapPki(now=NOW, platform=Platform(flags=(False, False, False)))
    quiet = tdx(pki.tdx_quote(REPORT_DATA), pki.collateral("TDX"))
    table = {
        "status": ["UpToDate", "SWHardeningNeeded"],
        "reject_advisories": ["INTEL-SA-00960"],
        "min_tcb_evaluation": 17,
        "dynamic_platform": False,
        "cached_keys": False,
        "smt": False,
        "mr_td": [OTHER, MR_TD],
        "rtmr": {str(i): [measurement(f"RTMR{i}").hex()] for i in range(4)},
        "mr_config_id": [claims.claims["mr_config_id"]],
        "mr_owner": [claims.claims["mr_owner"]],
        "mr_owner_config": [claims.claims["mr_owner_config"]],
        "mr_seam": [claims.claims["mr_seam"]],
        "xfam": [claims.claims["xfam"]],
    }
    comparison = Tdx().parse_policy(table).compare(quiet)
    assert comparison.findings == ()
    assert comparison.unchecked == ()


@pytest.mark.parametrize(
    ("check", "table"),
    [
        ("mr_td", {"mr_td": [OTHER]}),
        ("rtmr.0", {"rtmr": {"0": [OTHER]}}),
        ("rtmr.1", {"rtmr": {"1": [OTHER]}}),
        ("rtmr.2", {"rtmr": {"2": [OTHER]}}),
        ("rtmr.3", {"rtmr": {"3": [OTHER]}}),
        ("mr_config_id", {"mr_config_id": [OTHER]}),
        ("mr_owner", {"mr_owner": [OTHER]}),
        ("mr_owner_config", {"mr_owner_config": [OTHER]}),
        ("mr_seam", {"mr_seam": [OTHER]}),
        ("xfam", {"xfam": ["0000000000000000"]}),
        ("tcb_evaluation", {"min_tcb_evaluation": 18}),
        ("dynamic_platform", {"dynamic_platform": False}),
        ("cached_keys", {"cached_keys": False}),
        ("smt", {"smt": False}),
    ],
)
def test_a_difference_is_found(
    claims: VerifiedClaims, check: str, table: dict[str, Any]
) -> None:
    assert compare(claims, **table) == [check]


def test_flags_that_are_accepted_on_purpose(claims: VerifiedClaims) -> None:
    flags = dict.fromkeys(("dynamic_platform", "cached_keys", "smt"), True)
    assert compare(claims, **flags) == []


def test_a_processor_has_no_flags_to_refuse() -> None:
    pki = DcapPki(now=NOW, platform=Platform(instance=None))
    claims = tdx(pki.tdx_quote(REPORT_DATA), pki.collateral("TDX"))
    flags = dict.fromkeys(("dynamic_platform", "cached_keys", "smt"), False)
    assert compare(claims, **flags) == []


def test_collateral_that_was_rolled_back() -> None:
    for which in ("edit_tcb", "edit_qe"):
        old = PKI.collateral("TDX", **{which: field(tcbEvaluationDataNumber=16)})
        claims = tdx(None, old)
        assert compare(claims, min_tcb_evaluation=16) == []
        assert compare(claims, min_tcb_evaluation=17) == ["tcb_evaluation"]


class TestStatus:
    @pytest.mark.parametrize("status", sorted(set(STATUSES) - {"UpToDate"}))
    def test_only_what_the_policy_names(
        self, claims: VerifiedClaims, status: str
    ) -> None:
        got = changed(claims, status=status)
        assert compare(got) == ["status"]
        assert compare(got, status=["UpToDate"]) == ["status"]
        assert compare(got, status=["UpToDate", status]) == []

    def test_from_signed_collateral(self) -> None:
        old = PKI.collateral("TDX", edit_tcb=level(tcbStatus="OutOfDate"))
        assert compare(tdx(None, old)) == ["status"]

    def test_revoked_cannot_be_accepted(self) -> None:
        with pytest.raises(ConfigurationError, match=r"status: got 'Revoked'"):
            Tdx().parse_policy({"mr_td": [MR_TD], "status": ["Revoked"]})

    def test_left_out_on_purpose(self, claims: VerifiedClaims) -> None:
        policy = Tdx().parse_policy(
            {"mr_td": [MR_TD], "status": {"unchecked": "an experiment"}}
        )
        comparison = policy.compare(changed(claims, status="OutOfDate"))
        assert comparison.findings == ()
        assert left_out(comparison)["status"] == "an experiment"


class TestAdvisories:
    def test_one_that_applies(self) -> None:
        ids = ["INTEL-SA-00001", "INTEL-SA-00002"]
        edit = level(tcbStatus="OutOfDate", advisoryIDs=ids)
        claims = tdx(None, PKI.collateral("TDX", edit_tcb=edit))
        allowed = {"status": ["OutOfDate"]}
        assert compare(claims, **allowed, reject_advisories=["INTEL-SA-00003"]) == []
        assert compare(claims, **allowed, reject_advisories=ids[1:]) == ["advisories"]

    def test_an_empty_list_rejects_none(self, claims: VerifiedClaims) -> None:
        policy = Tdx().parse_policy({"mr_td": [MR_TD], "reject_advisories": []})
        assert left_out(policy.compare(claims)) == NONE


class TestWhatNoPolicyMayAccept:
    @pytest.mark.parametrize(
        ("check", "attributes"),
        [
            ("debug", "0100001000000000"),
            ("td_attributes.profiling", "4000001000000000"),
            ("td_attributes.reserved", "0200001000000000"),
            ("td_attributes.reserved", "0000001001000000"),
            ("td_attributes.migratable", "0000003000000000"),
            ("td_attributes.sept_ve_disable", "0000000000000000"),
            ("mr_service_td", "0000021000000000"),
        ],
    )
    def test_attributes(
        self, claims: VerifiedClaims, check: str, attributes: str
    ) -> None:
        # As a library that verifies more would report them.
        assert compare(changed(claims, td_attributes=attributes)) == [check]

    @pytest.mark.parametrize("name", ["mr_service_td", "cur_service_td_hash"])
    def test_a_service_td(self, claims: VerifiedClaims, name: str) -> None:
        assert compare(changed(claims, **{name: OTHER})) == ["mr_service_td"]


class TestTable:
    @pytest.mark.parametrize(
        ("table", "match"),
        [
            ({}, "mr_td is missing"),
            ({"mr_td": []}, "mr_td: got"),
            ({"mr_td": MR_TD}, "mr_td: got"),
            ({"mr_td": [MR_TD.upper()]}, "48 bytes as lower-case hex"),
            ({"mr_td": [MR_TD[2:]]}, "48 bytes as lower-case hex"),
            ({"mr_td": [MR_TD], "allow_debug": True}, "unknown key 'allow_debug'"),
            ({"mr_td": [MR_TD], "rtmr": {"4": [MR_TD]}}, "unknown key '4'"),
            ({"mr_td": [MR_TD], "rtmr": [MR_TD]}, "want accepted values by index"),
            ({"mr_td": [MR_TD], "rtmr": {}}, "want accepted values by index"),
            ({"mr_td": [MR_TD], "rtmr": {"unchecked": ""}}, "want a reason"),
            ({"mr_td": [MR_TD], "rtmr": {"0": []}}, "rtmr 0: got"),
            ({"mr_td": [MR_TD], "xfam": [MR_TD]}, "8 bytes as lower-case hex"),
            ({"mr_td": [MR_TD], "status": []}, "status: got"),
            ({"mr_td": [MR_TD], "status": ["uptodate"]}, "want one of UpToDate"),
            ({"mr_td": [MR_TD], "reject_advisories": ["SA-1"]}, "want advisory"),
            ({"mr_td": [MR_TD], "reject_advisories": None}, "reject_advisories: got"),
            ({"mr_td": [MR_TD], "min_tcb_evaluation": True}, "got True, want 0"),
            ({"mr_td": [MR_TD], "min_tcb_evaluation": -1}, "got -1, want 0"),
            ({"mr_td": [MR_TD], "min_tcb_evaluation": 2**32}, "want 0 to 4294967295"),
            ({"mr_td": [MR_TD], "smt": 0}, "smt: got 0, want false"),
        ],
    )
    def test_what_is_refused(self, table: dict[str, Any], match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            Tdx().parse_policy(table)

    @pytest.mark.parametrize(
        "table",
        [
            {"mr_td": [MR_TD]},
            {"mr_td": {"unchecked": "any TD"}, "smt": True, "reject_advisories": []},
            {"mr_td": [MR_TD], "rtmr": {"unchecked": "replayed elsewhere"}},
            {
                "mr_td": [OTHER, MR_TD, MR_TD],
                "rtmr": {"1": [OTHER], "3": {"unchecked": "not extended"}},
                "xfam": ["e702060000000000"],
                "status": {"unchecked": "why"},
                "reject_advisories": ["INTEL-SA-00002", "INTEL-SA-00001"],
                "min_tcb_evaluation": 0,
                "smt": False,
                "cached_keys": False,
            },
        ],
    )
    def test_what_is_written_reads_back(self, table: dict[str, Any]) -> None:
        policy = Tdx().parse_policy(table)
        assert Tdx().parse_policy(policy.to_json()) == policy


def test_all_registers_are_left_out_for_one_reason() -> None:
    table = {"mr_td": [MR_TD], "rtmr": {"unchecked": "replayed elsewhere"}}
    assert Tdx().parse_policy(table).rtmr == (Unchecked("replayed elsewhere"),) * 4


def test_a_wrong_nonce_and_every_other_difference_at_once(
    claims: VerifiedClaims,
) -> None:
    table = {"mr_td": [OTHER], "min_tcb_evaluation": 18}
    policy = AppraisalPolicy.from_table(
        {"version": 1, "max_age_seconds": 300, "allow": ["tdx"], "tdx": table}
    )
    with pytest.raises(PolicyRejected) as caught:
        appraise(
            claims,
            policy,
            report_data=REPORT_DATA[::-1],
            now=NOW,
            nonce_issued_at=NOW,
        )
    names = [finding.field for finding in caught.value.findings]
    assert names == ["tcb_evaluation", "mr_td", "report_data"]
