"""What a relying party demands of a result, and results of a Trustee broker."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from bentoml_secure.attestation.ear import EAR_PROFILE, TRUSTEE_PROFILE, Tier
from bentoml_secure.attestation.ear_parsing import MAX_LIST, MAX_SUBMODS
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    PolicyRejected,
)
from tests.unit.attestation.result_tokens import (
    EC,
    NAMES,
    NOW,
    POLICY,
    changed,
    expected,
    issue,
    parts,
    signed,
    tdx_result,
    verify,
)

TOKEN = issue()
SECONDS = int(NOW.timestamp())
WHY = Unchecked("a test")
POLICY_ID = digest_json(POLICY.to_json())


def rejected(token: str, **changes: Any) -> list[str]:
    """Return the names of the checks that reject a token."""
    with pytest.raises(PolicyRejected, match="authentic but not acceptable") as caught:
        verify(token, **changes)
    return [finding.field for finding in caught.value.findings]


def appraisal(token: str = TOKEN, **changes: Any) -> str:
    """Sign a token again with claims about the CPU replaced, or left out by None."""
    _, claims = parts(token)
    cpu = claims["submods"]["cpu0"] | changes
    kept = {name: value for name, value in cpu.items() if value is not None}
    return changed(token, submods={"cpu0": kept})


def vector(**areas: int) -> str:
    _, claims = parts(TOKEN)
    said = claims["submods"]["cpu0"]["ear_trustworthiness_vector"]
    return appraisal(ear_trustworthiness_vector=said | areas)


class TestNames:
    @pytest.mark.parametrize("issuer", ["https://other.example", None])
    def test_issuer(self, issuer: str | None) -> None:
        assert rejected(changed(TOKEN, iss=issuer)) == ["issuer"]

    @pytest.mark.parametrize("audience", ["other", ["other", "more"], [], None])
    def test_audience(self, audience: str | list[str] | None) -> None:
        assert rejected(changed(TOKEN, aud=audience)) == ["audience"]

    @pytest.mark.parametrize("audience", ["pipeline", ["other", "pipeline"]])
    def test_one_of_the_audiences(self, audience: str | list[str]) -> None:
        assert "pipeline" in verify(changed(TOKEN, aud=audience)).claims.audience

    @pytest.mark.parametrize("nonce", ["cd" * 32, "AB" * 32, "ab" * 31, [], None])
    def test_nonce(self, nonce: str | list[str] | None) -> None:
        assert rejected(changed(TOKEN, eat_nonce=nonce)) == ["nonce"]

    def test_one_of_the_nonces(self) -> None:
        assert (
            verify(changed(TOKEN, eat_nonce=["x" * 8, NAMES["nonce"]])).claims.token_id
            == "token-1"
        )

    def test_what_is_left_out_shows(self) -> None:
        nameless = changed(TOKEN, iss=None, aud=None, eat_nonce=None, jti=None)
        found = verify(nameless, issuer=WHY, audience=WHY, nonce=WHY)
        left = {each.field: each.reason for each in found.unchecked}
        assert left == dict.fromkeys(("issuer", "audience", "nonce"), "a test") | {
            "policy": "no appraisal policy was named"
        }
        assert found.to_json()["issuer"] is None

    @pytest.mark.parametrize("name", ["issuer", "audience", "nonce", "policies"])
    def test_nothing_is_no_demand(self, name: str) -> None:
        with pytest.raises(ConfigurationError, match=f"{name} is empty"):
            expected(**{name: () if name == "policies" else ""})

    def test_every_finding_is_listed(self) -> None:
        token = changed(TOKEN, iss="a", aud="b", eat_nonce="c" * 8, exp=1)
        assert rejected(token) == ["issuer", "audience", "nonce", "expires_at"]


class TestTimes:
    def test_until_its_last_second(self) -> None:
        end = NOW + timedelta(seconds=300)
        assert (
            verify(TOKEN, now=end - timedelta(microseconds=1)).claims.token_id
            == "token-1"
        )
        # RFC 7519: on or after which it must not be accepted.
        assert rejected(TOKEN, now=end) == ["expires_at"]

    def test_no_end_at_all(self) -> None:
        with pytest.raises(MalformedInputError, match="exp: got None"):
            verify(changed(TOKEN, exp=None))

    def test_issued_later(self) -> None:
        ahead = changed(TOKEN, iat=SECONDS + 60, nbf=None)
        assert verify(ahead).claims.issued_at == SECONDS + 60
        assert rejected(changed(TOKEN, iat=SECONDS + 61)) == ["issued_at"]

    def test_not_yet(self) -> None:
        assert verify(changed(TOKEN, nbf=SECONDS + 60)).claims.token_id == "token-1"
        assert rejected(changed(TOKEN, nbf=SECONDS + 61)) == ["not_before"]

    @pytest.mark.parametrize("name", ["iat", "nbf", "exp"])
    @pytest.mark.parametrize("value", [1.5, True, "1", -1, 253_402_300_800, [], {}])
    def test_forms(self, name: str, value: object) -> None:
        with pytest.raises(MalformedInputError, match=f"{name}: got"):
            verify(changed(TOKEN, EC, **{name: value}))


class TestPolicy:
    def test_one_that_is_named(self) -> None:
        found = verify(TOKEN, policies=("another", POLICY_ID))
        assert found.unchecked == ()

    @pytest.mark.parametrize("ids", [["b"], [POLICY_ID, "b"], None])
    def test_another(self, ids: list[str] | None) -> None:
        token = appraisal(ear_appraisal_policy_ids=ids)
        assert rejected(token, policies=(POLICY_ID,)) == ["policy"]


class TestStatus:
    @pytest.mark.parametrize("status", ["none", "warning", "contraindicated"])
    def test_not_affirming(self, status: str) -> None:
        assert rejected(appraisal(ear_status=status)) == ["status", "overall"]

    def test_a_warning_that_is_accepted(self) -> None:
        token = issue(tdx_result(status="OutOfDate"))
        assert rejected(token) == ["status", "overall"]
        assert verify(token, allow_warning=True).claims.status == Tier.WARNING

    @pytest.mark.parametrize("status", ["none", "contraindicated"])
    def test_worse_than_a_warning(self, status: str) -> None:
        token = appraisal(ear_status=status)
        assert rejected(token, allow_warning=True) == ["status", "overall"]

    def test_the_whole_is_worse_than_its_parts(self) -> None:
        assert rejected(changed(TOKEN, ear_status="contraindicated")) == ["overall"]

    def test_the_whole_is_no_better_than_its_parts(self) -> None:
        token = appraisal(ear_status="warning")
        assert verify(token, allow_warning=True).claims.status == Tier.WARNING

    def test_the_whole_may_say_nothing(self) -> None:
        found = verify(changed(TOKEN, ear_status=None))
        assert found.claims.status == Tier.AFFIRMING

    def test_one_of_several(self) -> None:
        _, claims = parts(TOKEN)
        gpu = claims["submods"]["cpu0"] | {"ear_status": "warning"}
        submods = claims["submods"] | {"gpu0": gpu}
        assert rejected(changed(TOKEN, submods=submods)) == ["status", "overall"]

    @pytest.mark.parametrize("value", [32, 96, 127, -33, -128])
    def test_better_than_its_vector(self, value: int) -> None:
        token = vector(executables=value)
        assert rejected(token, allow_warning=True) == ["vector"]

    def test_worse_than_its_vector(self) -> None:
        token = appraisal(ear_status="warning")
        assert verify(token, allow_warning=True).claims.token_id == "token-1"

    def test_a_gpu_alone(self) -> None:
        _, claims = parts(TOKEN)
        submods = {"gpu0": claims["submods"]["cpu0"]}
        assert rejected(changed(TOKEN, submods=submods)) == ["cpu"]


class TestSimulated:
    TOKEN = issue(tdx_result(simulated=True))

    def test_refused(self) -> None:
        assert rejected(self.TOKEN) == ["simulated", "status", "overall"]

    def test_by_its_flag_alone(self) -> None:
        own = {"bentoml_secure": {"simulated": True}}
        assert rejected(appraisal(ear_verifier_claims=own)) == ["simulated"]

    def test_allowed(self) -> None:
        found = verify(self.TOKEN, allow_simulated=True)
        assert found.claims.simulated
        assert found.claims.status == Tier.CONTRAINDICATED
        assert found.to_json()["simulated"] is True

    def test_allowed_and_nothing_compared(self) -> None:
        token = issue(tdx_result("mr_td", "platform_id", "smt", simulated=True))
        assert verify(token, allow_simulated=True).claims.simulated

    def test_allowed_does_not_excuse_the_rest(self) -> None:
        _, claims = parts(self.TOKEN)
        said = claims["submods"]["cpu0"]["ear_trustworthiness_vector"]
        token = appraisal(
            self.TOKEN, ear_trustworthiness_vector={**said, "executables": 96}
        )
        assert rejected(token, allow_simulated=True) == ["status"]

    def test_allowed_does_not_excuse_real_hardware(self) -> None:
        token = appraisal(ear_status="contraindicated")
        assert rejected(token, allow_simulated=True) == ["status", "overall"]

    @pytest.mark.parametrize("flag", [None, 0, "false"])
    def test_forms(self, flag: object) -> None:
        token = appraisal(ear_verifier_claims={"bentoml_secure": {"simulated": flag}})
        with pytest.raises(MalformedInputError, match="neither true nor false"):
            verify(token)


class TestForms:
    @pytest.mark.parametrize("profile", [None, 5, [], "tag:ietf.org,2026:rats/ear#03"])
    def test_profiles_that_are_not_known(self, profile: object) -> None:
        with pytest.raises(CheckFailedError, match="eat_profile: got") as caught:
            verify(changed(TOKEN, eat_profile=profile))
        assert caught.value.findings[0].field == "eat_profile"

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"submods": None}, "submods: got None"),
            ({"submods": {}}, "submods: got 0"),
            ({"submods": {str(i): {} for i in range(MAX_SUBMODS + 1)}}, "got 33"),
            ({"submods": {"": {}}}, "1 to 256 printable"),
            ({"submods": {"cpu0": 5}}, "want an object"),
            ({"submods": {"cpu0": {}}}, "status: got None"),
            ({"iss": ""}, "iss: got ''"),
            ({"iss": "x" * 257}, "1 to 256 printable"),
            ({"iss": "\ud800"}, "1 to 256 printable"),
            ({"eat_nonce": "\ud800"}, "1 to 256 printable"),
            ({"jti": 5}, "jti: got 5"),
            ({"aud": {}}, "aud: want a text"),
            ({"aud": ["x"] * (MAX_LIST + 1)}, "aud: want a text"),
            ({"eat_nonce": [5]}, "eat_nonce: got 5"),
            ({"ear_status": "fine"}, "status: got 'fine'"),
            ({"ear_status": []}, "status: got"),
            ({"ear_verifier_id": None}, "verifier: got None"),
            ({"ear_verifier_id": {"developer": "x"}}, "verifier: got None"),
        ],
    )
    def test_claims(self, change: dict[str, Any], match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(changed(TOKEN, **change))

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"ear_trustworthiness_vector": []}, "vector: got"),
            ({"ear_trustworthiness_vector": {"luck": 2}}, "unknown area 'luck'"),
            ({"ear_trustworthiness_vector": {"hardware": 128}}, "hardware: got 128"),
            ({"ear_trustworthiness_vector": {"hardware": True}}, "hardware: got True"),
            ({"ear_trustworthiness_vector": {"hardware": 2.0}}, "hardware: got 2.0"),
            ({"ear_appraisal_policy_ids": 5}, "policies: want"),
            ({"ear_attester_claims": []}, "want an object"),
            ({"ear_verifier_claims": []}, "want an object"),
            ({"ear_verifier_claims": {"bentoml_secure": 5}}, "want an object"),
        ],
    )
    def test_appraisals(self, change: dict[str, Any], match: str) -> None:
        with pytest.raises(MalformedInputError, match=match):
            verify(appraisal(**change))

    def test_no_vector(self) -> None:
        found = verify(appraisal(ear_trustworthiness_vector=None))
        assert found.claims.submods[0].vector == {}

    def test_the_dotted_names_are_not_this_profile_s(self) -> None:
        token = appraisal(ear_status=None, **{"ear.status": "affirming"})
        with pytest.raises(MalformedInputError, match="status: got None"):
            verify(token)


def trustee(**changes: Any) -> dict[str, Any]:
    """Return the claims of a token as Trustee 0.16 writes them."""
    return {
        "eat_profile": TRUSTEE_PROFILE,
        "iat": SECONDS,
        "exp": SECONDS + 300,
        "ear.verifier-id": {"build": "attestation-service 0.1.0", "developer": "CoCo"},
        "submods": {
            "cpu0": {
                "ear.status": "affirming",
                "ear.trustworthiness-vector": {
                    "instance-identity": 0,
                    "configuration": 2,
                    "executables": 3,
                    "file-system": 0,
                    "hardware": 2,
                    "runtime-opaque": 0,
                    "storage-opaque": 0,
                    "sourced-data": 0,
                },
                "ear.appraisal-policy-id": "default",
                "ear.veraison.annotated-evidence": {
                    "report_data": "00" * 64,
                    "runtime_data_claims": {"nonce": "abc"},
                    "tdx": {"quote": {"body": {"mr_td": "ab" * 48}}},
                },
                **changes,
            }
        },
    }


LEFT: dict[str, Any] = dict.fromkeys(("issuer", "audience", "nonce"), WHY)
"""What Trustee's tokens do not name."""


class TestTrustee:
    def found(self, claims: dict[str, Any], **header: Any) -> Any:
        token = signed({"typ": "JWT", "alg": "ES256", **header}, claims)
        return verify(token, **LEFT)

    def test_an_affirming_token(self) -> None:
        found = self.found(trustee())
        (cpu,) = found.claims.submods
        assert (found.claims.profile, cpu.status) == (TRUSTEE_PROFILE, Tier.AFFIRMING)
        assert cpu.attester_claims["runtime_data_claims"] == {"nonce": "abc"}
        assert cpu.policies == ("default",)
        assert not found.claims.simulated

    def test_it_names_no_issuer_audience_or_nonce(self) -> None:
        token = signed({"typ": "JWT", "alg": "ES256"}, trustee())
        assert rejected(token) == ["issuer", "audience", "nonce"]

    def test_the_later_names(self) -> None:
        claims = trustee(
            **{"ear.status": None, "ear.veraison.annotated-evidence": None}
        )
        cpu = {k: v for k, v in claims["submods"]["cpu0"].items() if v is not None}
        cpu |= {"ear_status": "affirming", "ear_attester_claims": {"tee": "tdx"}}
        found = self.found(claims | {"submods": {"cpu0": cpu}})
        assert found.claims.submods[0].attester_claims == {"tee": "tdx"}

    def test_both_names_at_once(self) -> None:
        # Readers of one and of the other would disagree.
        with pytest.raises(MalformedInputError, match=r"both ear\.status and"):
            self.found(trustee(ear_status="contraindicated"))

    @pytest.mark.parametrize(
        "evidence", [{"sample": {"svn": "1"}}, {"sampledevice": {}}]
    )
    def test_samples_are_simulated(self, evidence: dict[str, Any]) -> None:
        claims = trustee(**{"ear.veraison.annotated-evidence": evidence})
        token = signed({"alg": "ES256"}, claims)
        assert rejected(token, **LEFT) == ["simulated"]
        assert verify(token, allow_simulated=True, **LEFT).claims.simulated

    def test_samples_by_the_later_name(self) -> None:
        claims = trustee()
        cpu = claims["submods"]["cpu0"]
        del cpu["ear.veraison.annotated-evidence"]
        for tee in ("sample", "sampledevice"):
            cpu["ear_attester_claims"] = {"tee": tee}
            token = signed({"alg": "ES256"}, claims)
            assert rejected(token, **LEFT) == ["simulated"]
        cpu["ear_attester_claims"] = {"tee": ["sample"]}
        with pytest.raises(MalformedInputError, match="tee: got"):
            self.found(claims)

    @pytest.mark.parametrize("status", ["none", "warning", "contraindicated"])
    def test_another_status(self, status: str) -> None:
        token = signed({"alg": "ES256"}, trustee(**{"ear.status": status}))
        assert rejected(token, **LEFT) == ["status", "overall"]

    def test_own_names_under_its_profile(self) -> None:
        assert EAR_PROFILE != TRUSTEE_PROFILE
        found = verify(changed(TOKEN, eat_profile=TRUSTEE_PROFILE))
        assert found.claims.status == Tier.AFFIRMING
