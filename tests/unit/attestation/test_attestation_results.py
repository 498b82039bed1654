"""From a result to the claims of a token."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bentoml_secure.attestation import results
from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.ear import Tier, tier_of, worst
from bentoml_secure.attestation.evidence import AttestationResult, UncheckedField
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    ConfigurationError,
    MissingDependencyError,
    PolicyRejected,
)
from tests.unit.attestation.result_tokens import (
    ALGORITHMS,
    EC,
    NAMES,
    NOW,
    POLICY,
    issue,
    parts,
    tdx_result,
    verify,
)

HEX = "ab" * 48
LEAVE = {"unchecked": "a test"}
TABLES: dict[str, dict[str, Any]] = {
    "sev-snp": {"measurement": [HEX], "min_tcb": LEAVE},
    "sgx": {"mr_enclave": ["ab" * 32]},
    "nitro": {"pcr": {"0": [HEX]}},
    "cca": {"rim": ["ab" * 32], "cpak": LEAVE},
    "simulated": {"roots": ["sha256:" + "a" * 64]},
}


def policy_of(kind: str, table: dict[str, Any]) -> AppraisalPolicy:
    document = {"version": 1, "max_age_seconds": 600, "allow": [kind], kind: table}
    return AppraisalPolicy.from_table(document)


def submod(
    result: AttestationResult, policy: AppraisalPolicy = POLICY, name: str = "cpu0"
) -> dict[str, Any]:
    _, claims = parts(issue(result, policy))
    found: dict[str, Any] = claims["submods"][name]
    return found


def status_and_vector(
    *left_out: str, kind: str = "tdx", table: dict[str, Any] | None = None, **more: Any
) -> tuple[str, dict[str, int]]:
    policy = POLICY if kind == "tdx" else policy_of(kind, table or TABLES[kind])
    found = submod(tdx_result(*left_out, kind=kind, **more), policy)
    return found["ear_status"], found["ear_trustworthiness_vector"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_claims_of_a_token(algorithm: str) -> None:
    pair = ALGORITHMS[algorithm]
    header, claims = parts(issue(pair=pair))
    (key,) = pair.pinned
    assert header == {"alg": algorithm, "kid": key.key_id, "typ": "eat+jwt"}
    assert claims["eat_profile"] == "tag:ietf.org,2026:rats/ear#04"
    assert (claims["iss"], claims["aud"], claims["eat_nonce"]) == tuple(NAMES.values())
    assert claims["iat"] == claims["nbf"] == NOW.timestamp()
    assert claims["exp"] == NOW.timestamp() + 300
    assert claims["jti"] == "token-1"
    assert claims["ear_status"] == "affirming"
    assert claims["ear_verifier_id"]["build"].startswith("bentoml-secure ")
    assert claims["ear_verifier_id"]["developer"].startswith("https://")
    (appraisal,) = claims["submods"].values()
    assert appraisal["ear_appraisal_policy_ids"] == [digest_json(POLICY.to_json())]
    assert appraisal["ear_attester_claims"]["status"] == "UpToDate"
    own = appraisal["ear_verifier_claims"]["bentoml_secure"]
    assert (own["kind"], own["simulated"], own["vendor"]) == ("tdx", False, "intel")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_issued_is_accepted(algorithm: str) -> None:
    pair = ALGORITHMS[algorithm]
    found = verify(issue(pair=pair), pair)
    assert found.claims.status == Tier.AFFIRMING
    assert not found.claims.simulated
    assert [each.name for each in found.claims.submods] == ["cpu0"]
    assert [left.field for left in found.unchecked] == ["policy"]
    assert found.to_json()["expires_at"] == "2026-03-01T12:05:00Z"


def test_a_token_does_not_outlive_its_result() -> None:
    short = replace(tdx_result(), expires_at=NOW + timedelta(seconds=90.5))
    _, claims = parts(issue(short))
    assert claims["exp"] == NOW.timestamp() + 90


def test_a_result_with_no_time_left_gets_no_token() -> None:
    ended = replace(tdx_result(), expires_at=NOW)
    with pytest.raises(ConfigurationError, match="cannot outlive its result") as caught:
        issue(ended)
    assert "when the challenge was drawn" in caught.value.remedy
    with pytest.raises(ConfigurationError, match="cannot outlive its result"):
        issue(now=NOW + timedelta(seconds=600))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"issuer": ""}, "token issuer"),
        ({"audience": "two words"}, "token audience"),
        ({"token_id": "\n"}, "token id"),
        ({"nonce": "short12"}, "token nonce"),
        ({"nonce": "n" * 89}, "token nonce"),
        ({"nonce": "not base64url!"}, "token nonce"),
        ({"lifetime_seconds": 0}, "token lifetime"),
        ({"lifetime_seconds": 7 * 86_400 + 1}, "token lifetime"),
    ],
)
def test_what_no_token_may_say(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        issue(**change)


def test_a_public_key_signs_nothing() -> None:
    (key,) = EC.pinned
    with pytest.raises(ConfigurationError, match="private key"):
        results.issue_result(tdx_result(), POLICY, key, **NAMES, token_id="t", now=NOW)


def test_another_policy_than_that_which_accepted() -> None:
    with pytest.raises(ConfigurationError, match="does not accept sev-snp"):
        issue(tdx_result(kind="sev-snp"))


def test_claims_too_long_for_a_token() -> None:
    with pytest.raises(ConfigurationError, match="claims make"):
        issue(tdx_result(log="x" * 300_000))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joserfc.jwk", None)
    with pytest.raises(MissingDependencyError, match=r"joserfc") as caught:
        issue()
    assert "bentoml-secure[tokens]" in caught.value.remedy


class TestVector:
    def test_everything_compared(self) -> None:
        assert status_and_vector() == (
            "affirming",
            {
                "instance-identity": 2,
                "configuration": 2,
                "executables": 3,
                "hardware": 2,
                "runtime-opaque": 2,
            },
        )

    @pytest.mark.parametrize(
        ("left_out", "area"),
        [
            ("platform_id", "instance-identity"),
            ("rtmr.0", "configuration"),
            ("xfam", "configuration"),
            ("smt", "configuration"),
        ],
    )
    def test_what_is_left_out_is_not_affirmed(self, left_out: str, area: str) -> None:
        status, vector = status_and_vector(left_out)
        assert (status, vector.pop(area)) == ("affirming", 0)
        assert all(vector.values())

    @pytest.mark.parametrize("left_out", ["mr_td", "rtmr.1", "rtmr.2"])
    def test_without_executables_there_is_no_status(self, left_out: str) -> None:
        status, vector = status_and_vector(left_out)
        assert (status, vector["executables"]) == ("none", 0)

    def test_without_a_challenge_there_is_no_status(self) -> None:
        status, vector = status_and_vector("report_data")
        assert status == "none"
        assert all(vector.values())

    @pytest.mark.parametrize(
        "claims", [{"status": "OutOfDate"}, {"advisories": ["INTEL-SA-00289"]}]
    )
    def test_hardware_with_known_faults_is_a_warning(
        self, claims: dict[str, Any]
    ) -> None:
        status, vector = status_and_vector(**claims)
        assert (status, vector["hardware"]) == ("warning", 32)

    @pytest.mark.parametrize("left_out", ["mr_td", "report_data"])
    def test_no_warning_hides_what_is_not_said(self, left_out: str) -> None:
        status, vector = status_and_vector(left_out, status="OutOfDate")
        assert (status, vector["hardware"]) == ("none", 32)
        token = issue(tdx_result(left_out, status="OutOfDate"))
        with pytest.raises(PolicyRejected, match="cpu0: none") as caught:
            verify(token, allow_warning=True)
        assert "vector" not in [each.field for each in caught.value.findings]

    @pytest.mark.parametrize(
        ("kind", "left_out", "status"),
        [
            ("sev-snp", (), "affirming"),
            ("sev-snp", ("tcb",), "none"),
            ("sev-snp", ("measurement",), "none"),
            ("sgx", ("mr_signer", "isv_prod_id", "isv_svn"), "affirming"),
            ("sgx", ("mr_enclave",), "affirming"),
            ("sgx", ("mr_enclave", "isv_svn"), "none"),
            ("cca", (), "affirming"),
            ("cca", ("cpak",), "none"),
            ("cca", ("rim",), "none"),
        ],
    )
    def test_kinds(self, kind: str, left_out: tuple[str, ...], status: str) -> None:
        assert status_and_vector(*left_out, kind=kind)[0] == status

    @pytest.mark.parametrize(
        ("pcr", "status"),
        [
            ({"0": [HEX]}, "affirming"),
            ({"8": [HEX]}, "affirming"),
            ({"0": [HEX], "8": LEAVE}, "affirming"),
            ({"0": LEAVE, "1": [HEX]}, "none"),
            ({"1": [HEX], "2": [HEX]}, "none"),
            (LEAVE, "none"),
        ],
    )
    def test_registers_have_to_be_listed(
        self, pcr: dict[str, Any], status: str
    ) -> None:
        # The policy says which were compared; a result lists those left out only.
        assert status_and_vector(kind="nitro", table={"pcr": pcr})[0] == status

    def test_simulated_is_contraindicated_whatever_was_compared(self) -> None:
        status, vector = status_and_vector(kind="simulated", simulated=True)
        assert (status, vector["hardware"]) == ("contraindicated", 97)
        assert vector["runtime-opaque"] == 0

    def test_real_formats_under_a_development_root_too(self) -> None:
        status, vector = status_and_vector(simulated=True)
        assert (status, vector["hardware"]) == ("contraindicated", 97)
        assert vector["runtime-opaque"] == 0

    def test_a_simulated_kind_is_compared_as_the_real_one(self) -> None:
        kind = "simulated-tdx"
        table = {"roots": ["sha256:" + "a" * 64], "mr_td": [HEX]}
        result = tdx_result(kind=kind, simulated=True)
        found = submod(result, policy_of(kind, table))
        assert found["ear_trustworthiness_vector"]["executables"] == 3
        assert found["ear_status"] == "contraindicated"

    def test_a_kind_not_known_here_affirms_nothing(self) -> None:
        policy = replace(POLICY, allow=("other",), kinds={"other": POLICY.kinds["tdx"]})
        found = submod(tdx_result(kind="other"), policy)
        vector = found["ear_trustworthiness_vector"]
        assert found["ear_status"] == "none"
        assert (vector["hardware"], vector["executables"]) == (0, 0)


class TestGpu:
    POLICY = AppraisalPolicy.from_table(
        {
            "version": 1,
            "max_age_seconds": 600,
            "allow": ["nvidia-gpu", "tdx"],
            "nvidia-gpu": {"firmware": {"1": [HEX]}, "min_driver": "590.0"},
            "tdx": {"mr_td": [HEX]},
        }
    )

    @staticmethod
    def beside(*left_out: str) -> AttestationResult:
        gpu = tdx_result(kind="nvidia-gpu").claims
        fields = [UncheckedField(field=each, reason="a test") for each in left_out]
        return replace(tdx_result(), gpu=gpu, unchecked=tuple(fields))

    def test_it_is_a_submod_of_its_own(self) -> None:
        token = issue(self.beside("smt", "gpu.revocation"), self.POLICY)
        _, claims = parts(token)
        assert claims["submods"].keys() == {"cpu0", "gpu0"}
        left = {
            name: each["ear_verifier_claims"]["bentoml_secure"]["unchecked"]
            for name, each in claims["submods"].items()
        }
        assert [each["field"] for each in left["cpu0"]] == ["smt"]
        assert [each["field"] for each in left["gpu0"]] == ["revocation"]
        assert verify(token).claims.status == Tier.AFFIRMING

    @pytest.mark.parametrize(
        "left_out", ["gpu.firmware", "gpu.min_vbios", "gpu.report_data"]
    )
    def test_what_it_leaves_out_is_the_whole_token_s(self, left_out: str) -> None:
        _, claims = parts(issue(self.beside(left_out), self.POLICY))
        assert claims["submods"]["cpu0"]["ear_status"] == "affirming"
        assert claims["submods"]["gpu0"]["ear_status"] == "none"
        assert claims["ear_status"] == "none"

    def test_never_alone(self) -> None:
        with pytest.raises(ConfigurationError, match="for no process"):
            issue(tdx_result(kind="nvidia-gpu"), self.POLICY)


def test_what_a_result_leaves_out_stands_in_the_token() -> None:
    found = submod(tdx_result("smt"))
    own = found["ear_verifier_claims"]["bentoml_secure"]
    assert own["unchecked"] == [{"field": "smt", "reason": "a test"}]


@pytest.mark.parametrize(
    ("value", "tier"),
    [
        (-128, "contraindicated"),
        (-97, "contraindicated"),
        (-96, "warning"),
        (-33, "warning"),
        (-32, "affirming"),
        (-2, "affirming"),
        (-1, "none"),
        (1, "none"),
        (2, "affirming"),
        (31, "affirming"),
        (32, "warning"),
        (95, "warning"),
        (96, "contraindicated"),
        (127, "contraindicated"),
    ],
)
def test_tiers(value: int, tier: str) -> None:
    assert tier_of(value) == tier


def test_the_worst_tier() -> None:
    assert worst(Tier) == Tier.CONTRAINDICATED
    assert worst([Tier.AFFIRMING, Tier.NONE]) == Tier.NONE
    assert worst([]) == Tier.NONE


def test_reasons_are_no_lists() -> None:
    # Or _was_compared would take one for the other.
    assert not isinstance(Unchecked("a test").to_json(), list)
