"""The table ``[sgx]``: what it compares, leaves out and refuses to say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bentoml_secure.attestation.evidence import VerifiedClaims
from bentoml_secure.attestation.tees.sgx import Sgx
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.testing.dcap_platform import measurement
from tests.unit.attestation.dcap import (
    PKI,
    field,
    fields,
    left_out,
    level,
    sgx,
)

ENCLAVE = measurement("enclave")[:32].hex()
SIGNER = measurement("signer")[:32].hex()
OTHER = measurement("other")[:32].hex()
BY_SIGNER = {"mr_signer": [SIGNER], "isv_prod_id": 7, "min_isv_svn": 3}
PLATFORM = {
    "advisories": "the policy rejects none",
    "tcb_evaluation": "the policy names no minimum",
    "dynamic_platform": "the policy accepts either",
    "cached_keys": "the policy accepts either",
    "smt": "the policy accepts either",
}


@pytest.fixture(scope="module")
def claims() -> VerifiedClaims:
    return sgx()


def compare(claims: VerifiedClaims, **table: Any) -> list[str]:
    return fields(Sgx().parse_policy(table).compare(claims))


def test_by_enclave(claims: VerifiedClaims) -> None:
    comparison = Sgx().parse_policy({"mr_enclave": [ENCLAVE]}).compare(claims)
    assert comparison.findings == ()
    assert left_out(comparison) == PLATFORM | {
        "mr_signer": "the policy lists none",
        "isv_prod_id": "the policy lists no signer",
        "isv_svn": "the policy lists no signer",
        "config_id": "the policy lists none",
    }


def test_by_signer(claims: VerifiedClaims) -> None:
    comparison = Sgx().parse_policy(BY_SIGNER).compare(claims)
    assert comparison.findings == ()
    assert left_out(comparison) == PLATFORM | {
        "mr_enclave": "the policy lists none",
        "config_id": "the policy lists none",
    }


@pytest.mark.parametrize(
    ("check", "table"),
    [
        ("mr_enclave", {"mr_enclave": [OTHER]}),
        ("mr_enclave", {**BY_SIGNER, "mr_enclave": [OTHER]}),
        ("mr_signer", {**BY_SIGNER, "mr_signer": [OTHER]}),
        ("isv_prod_id", {**BY_SIGNER, "isv_prod_id": 8}),
        ("isv_svn", {**BY_SIGNER, "min_isv_svn": 4}),
        ("config_id", {**BY_SIGNER, "config_id": [OTHER * 2]}),
        ("tcb_evaluation", {**BY_SIGNER, "min_tcb_evaluation": 18}),
        ("dynamic_platform", {**BY_SIGNER, "dynamic_platform": False}),
        ("cached_keys", {**BY_SIGNER, "cached_keys": False}),
        ("smt", {**BY_SIGNER, "smt": False}),
    ],
)
def test_a_difference_is_found(
    claims: VerifiedClaims, check: str, table: dict[str, Any]
) -> None:
    assert compare(claims, **table) == [check]


def test_a_newer_version_of_the_product(claims: VerifiedClaims) -> None:
    assert compare(claims, **{**BY_SIGNER, "min_isv_svn": 2}) == []


def test_a_debugger_whatever_the_policy(claims: VerifiedClaims) -> None:
    # As a library that verifies more would report it.
    changed = {**claims.claims, "attributes": "07" + "00" * 15}
    got = replace(claims, claims=changed)
    assert compare(got, mr_enclave=[ENCLAVE]) == ["debug"]


def test_the_platform_under_the_enclave() -> None:
    edit = level(tcbStatus="OutOfDate", advisoryIDs=["INTEL-SA-00001"])
    got = sgx(None, PKI.collateral("SGX", edit_tcb=edit))
    table = {**BY_SIGNER, "status": ["OutOfDate"]}
    assert compare(got, **BY_SIGNER) == ["status"]
    assert compare(got, **table) == []
    rejecting = {**table, "reject_advisories": ["INTEL-SA-00001"]}
    assert compare(got, **rejecting) == ["advisories"]
    old = PKI.collateral("SGX", edit_tcb=field(tcbEvaluationDataNumber=16))
    rolled_back = compare(sgx(None, old), **BY_SIGNER, min_tcb_evaluation=17)
    assert rolled_back == ["tcb_evaluation"]


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({}, "neither mr_enclave nor mr_signer"),
        ({"isv_prod_id": 1, "min_isv_svn": 1}, "neither mr_enclave nor mr_signer"),
        ({"mr_signer": [SIGNER]}, "go with a list of mr_signer"),
        ({"mr_signer": [SIGNER], "isv_prod_id": 1}, "go with a list of mr_signer"),
        ({"mr_signer": [SIGNER], "min_isv_svn": 1}, "go with a list of mr_signer"),
        ({"mr_enclave": [ENCLAVE], "min_isv_svn": 1}, "go with a list of mr_signer"),
        (
            {"mr_signer": {"unchecked": "why"}, "isv_prod_id": 1, "min_isv_svn": 1},
            "go with a list of mr_signer",
        ),
        ({"mr_enclave": []}, "mr_enclave: got"),
        ({"mr_enclave": [ENCLAVE.upper()]}, "32 bytes as lower-case hex"),
        ({"mr_enclave": [ENCLAVE], "config_id": [ENCLAVE]}, "64 bytes as lower-case"),
        ({"mr_enclave": [ENCLAVE], "allow_debug": False}, "unknown key 'allow_debug'"),
        ({**BY_SIGNER, "isv_prod_id": 65536}, "got 65536, want 0 to 65535"),
        ({**BY_SIGNER, "isv_prod_id": True}, "isv_prod_id: got True"),
        ({**BY_SIGNER, "min_isv_svn": "3"}, "min_isv_svn: got '3'"),
        ({**BY_SIGNER, "cached_keys": "no"}, "cached_keys: got 'no'"),
    ],
)
def test_what_is_refused(table: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Sgx().parse_policy(table)


@pytest.mark.parametrize(
    "table",
    [
        BY_SIGNER,
        {"mr_enclave": [OTHER, ENCLAVE]},
        {"mr_enclave": {"unchecked": "any"}, "config_id": [OTHER * 2]},
        {**BY_SIGNER, "mr_enclave": [ENCLAVE], "smt": False, "min_tcb_evaluation": 1},
    ],
)
def test_what_is_written_reads_back(table: dict[str, Any]) -> None:
    policy = Sgx().parse_policy(table)
    assert Sgx().parse_policy(policy.to_json()) == policy
