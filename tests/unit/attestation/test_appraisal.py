from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bentoml_secure.attestation.appraisal import (
    MAX_POLICY_BYTES,
    AppraisalPolicy,
    appraise,
    parse_policy,
)
from bentoml_secure.attestation.evidence import AttestationResult, VerifiedClaims
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.attestation.tees.simulated import Simulated, SimulatedAttester
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import ConfigurationError, PolicyRejected

ROOT = "sha256:" + "a" * 64
REPORT_DATA = bytes(range(64))
GOOD: dict[str, Any] = {
    "version": 1,
    "max_age_seconds": 300,
    "allow": ["simulated"],
    "simulated": {"roots": [ROOT], "measurement": ["ab" * 32]},
    "platforms": {"allow": ["host-a", "host-b"]},
}


@pytest.fixture
def claims(attester: SimulatedAttester, now: datetime) -> VerifiedClaims:
    verified = Simulated().verify(attester.attest(REPORT_DATA), (), now=now)
    return replace(verified, root=type(verified.root)(ROOT))


def judge(
    claims: VerifiedClaims, now: datetime, table: dict[str, Any] = GOOD, **known: Any
) -> AttestationResult:
    arguments: dict[str, Any] = {"report_data": REPORT_DATA, "nonce_issued_at": now}
    return appraise(
        claims, AppraisalPolicy.from_table(table), now=now, **arguments | known
    )


def rejected_fields(claims: VerifiedClaims, now: datetime, **known: Any) -> list[str]:
    with pytest.raises(PolicyRejected, match="authentic but not acceptable") as caught:
        judge(claims, now, **known)
    return [finding.field for finding in caught.value.findings]


class TestReading:
    def test_toml_and_table_say_the_same(self) -> None:
        text = f"""
            version = 1
            max_age_seconds = 300
            allow = ["simulated"]
            [simulated]
            roots = ["{ROOT}"]
            measurement = ["{"ab" * 32}"]
            [platforms]
            allow = ["host-b", "host-a", "host-b"]
        """
        assert parse_policy(text.encode()) == AppraisalPolicy.from_table(GOOD)

    def test_the_order_of_a_list_does_not_change_the_document(self) -> None:
        roots = [ROOT, "sha256:" + "b" * 64]
        one, other = (
            AppraisalPolicy.from_table(
                {**GOOD, "simulated": {"roots": order}}
            ).to_json()
            for order in (roots, roots[::-1])
        )
        assert digest_json(one) == digest_json(other)
        assert digest_json(one) != digest_json(GOOD)

    def test_the_document_reads_back(self) -> None:
        for table in (GOOD, {k: v for k, v in GOOD.items() if k != "platforms"}):
            policy = AppraisalPolicy.from_table(table)
            assert AppraisalPolicy.from_table(policy.to_json()) == policy

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"version": 2}, "version: got 2, want 1"),
            ({"version": True}, "version: got True"),
            ({"version": None}, "version: got None"),
            ({"max_age_seconds": 0}, "max_age_seconds: got 0, want 1 to 604800"),
            ({"max_age_seconds": 604_801}, "max_age_seconds: got 604801"),
            ({"max_age_seconds": 1.5}, "max_age_seconds: got 1.5"),
            ({"max_age_seconds": True}, "max_age_seconds: got True"),
            ({"allow": []}, r"allow: got \[\], want a list with at least one"),
            ({"allow": "simulated"}, "allow: got 'simulated', want a list"),
            ({"allow": ["Simulated"]}, "allow: got 'Simulated', want kind"),
            ({"allow": [1]}, "allow: got 1, want kind"),
            ({"allow": ["simulated", "tdx"]}, "allows 'tdx' without saying what"),
            ({"allow_debug": True}, "unknown key 'allow_debug'; known: allow, max"),
            ({"allow_debug": {}}, r"unknown table \[allow_debug\]"),
            ({"simulatde": {"roots": [ROOT]}}, r"unknown table \[simulatde\]"),
            ({"simulated": {}}, "roots: got None, want a list with at least one"),
            ({"simulated": {"roots": []}}, r"roots: got \[\], want a list"),
            ({"simulated": {"roots": ["a" * 64]}}, "roots: got 'a+', want digest"),
            (
                {"simulated": {"roots": {"unchecked": "any will do"}}},
                "roots: got {'unchecked': 'any will do'}, want a list",
            ),
            (
                {"simulated": {"roots": [ROOT], "allow_debug": True}},
                "unknown key 'allow_debug'; known: measurement, roots",
            ),
            (
                {"simulated": {"roots": [ROOT], "measurement": []}},
                "measurement: got .., want a list",
            ),
            (
                {"simulated": {"roots": [ROOT], "measurement": ["AB" * 32]}},
                "want package digest of 64 hex digits",
            ),
            (
                {"simulated": {"roots": [ROOT], "measurement": {}}},
                "unchecked: got None, want a reason",
            ),
            (
                {"simulated": {"roots": [ROOT], "measurement": {"unchecked": "  "}}},
                "unchecked: got '  ', want a reason",
            ),
            (
                {"simulated": {"roots": [ROOT], "measurement": {"unchecked": True}}},
                "unchecked: got True, want a reason",
            ),
            (
                {"simulated": {"roots": [ROOT], "measurement": {"uncheked": "x"}}},
                "measurement: unknown key 'uncheked'",
            ),
            ({"simulated": [ROOT]}, "unknown key 'simulated'"),
            ({"platforms": {}}, "allow: got None, want a list"),
            ({"platforms": {"allow": []}}, "allow: got .., want a list"),
            ({"platforms": {"deny": []}}, "unknown key 'deny'; known: allow"),
            ({"platforms": ["host-a"]}, "want a table"),
        ],
    )
    def test_a_careless_policy_is_refused(
        self, change: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=match):
            AppraisalPolicy.from_table({**GOOD, **change})

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (b"version = ", "is not TOML"),
            (b"\xff", "is not TOML"),
            (b"a = 1\na = 2", "is not TOML"),
            (b"a = " + b"[" * 5000, "is not TOML"),
            (b"", "version: got None"),
            (b"#" * (MAX_POLICY_BYTES + 1), "want at most"),
        ],
    )
    def test_what_is_no_policy_at_all_is_refused(self, data: bytes, match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            parse_policy(data)

    def test_a_policy_is_a_table(self) -> None:
        with pytest.raises(ConfigurationError, match="want a table"):
            AppraisalPolicy.from_table(["simulated"])


class TestJudging:
    def test_acceptable_claims_give_a_result(
        self, claims: VerifiedClaims, now: datetime
    ) -> None:
        result = judge(claims, now)
        assert (result.kind, result.simulated) == ("simulated", True)
        assert (result.unchecked, result.findings) == ((), ())
        assert result.verified_at == now
        assert result.expires_at == now + timedelta(seconds=300)
        shown = result.to_json()
        assert shown["verdict"] == "accepted"
        assert shown["simulated"] is True
        assert shown["platform_id"] == "host-a"
        assert shown["measurement"] == "ab" * 32

    def test_every_finding_is_listed(
        self, claims: VerifiedClaims, now: datetime
    ) -> None:
        strict: dict[str, Any] = {
            **GOOD,
            "simulated": {"roots": ["sha256:" + "b" * 64], "measurement": ["cd" * 32]},
            "platforms": {"allow": ["host-c"]},
        }
        later = now + timedelta(seconds=301)
        fields = rejected_fields(
            replace(claims, expires_at=now),
            later,
            table=strict,
            report_data=bytes(64),
            nonce_issued_at=now,
        )
        assert fields == [
            "root",
            "measurement",
            "report_data",
            "issued_at",
            "nonce_issued_at",
            "expires_at",
            "platform_id",
        ]

    def test_a_finding_names_got_and_want(
        self, claims: VerifiedClaims, now: datetime
    ) -> None:
        other = "sha256:" + "b" * 64
        with pytest.raises(PolicyRejected, match=f"root: got {other}, want {ROOT}"):
            judge(replace(claims, root=type(claims.root)(other)), now)

    def test_a_kind_that_is_not_allowed_is_refused(
        self, claims: VerifiedClaims, now: datetime
    ) -> None:
        policy = replace(AppraisalPolicy.from_table(GOOD), allow=("tdx",))
        for each in (policy, replace(policy, kinds={})):
            with pytest.raises(PolicyRejected, match="kind: got simulated, want tdx"):
                appraise(
                    claims, each, report_data=REPORT_DATA, now=now, nonce_issued_at=now
                )

    @pytest.mark.parametrize("bit", [0, 255, 511])
    def test_one_bit_of_report_data_counts(
        self, claims: VerifiedClaims, now: datetime, bit: int
    ) -> None:
        other = bytearray(REPORT_DATA)
        other[bit // 8] ^= 1 << bit % 8
        assert rejected_fields(claims, now, report_data=bytes(other)) == ["report_data"]

    @pytest.mark.parametrize("length", [0, 31, 33, 63, 65])
    def test_report_data_of_no_length_in_use_is_a_mistake(
        self, claims: VerifiedClaims, now: datetime, length: int
    ) -> None:
        given = (REPORT_DATA + b"\x40")[:length]
        with pytest.raises(ConfigurationError, match=f"got {length} bytes, want 64"):
            judge(claims, now, report_data=given)

    def test_half_of_the_report_data_is_not_enough(
        self, claims: VerifiedClaims, now: datetime
    ) -> None:
        half = REPORT_DATA[:32]
        assert rejected_fields(claims, now, report_data=half) == ["report_data"]

    def test_a_kind_with_a_short_field_covers_the_first_bytes(
        self, claims: VerifiedClaims, now: datetime
    ) -> None:
        short = replace(claims, report_data=REPORT_DATA[:32])
        judge(short, now)
        other = REPORT_DATA[1:] + b"\x00"
        assert rejected_fields(short, now, report_data=other) == ["report_data"]

    def test_what_is_left_out_shows(
        self, claims: VerifiedClaims, now: datetime
    ) -> None:
        lax = {
            **{key: value for key, value in GOOD.items() if key != "platforms"},
            "simulated": {"roots": [ROOT], "measurement": {"unchecked": "why"}},
        }
        result = judge(claims, now, lax, report_data=Unchecked("another tool does"))
        assert [(each.field, each.reason) for each in result.unchecked] == [
            ("measurement", "why"),
            ("report_data", "another tool does"),
            ("platform_id", "the policy lists no machines"),
        ]
        assert result.to_json()["unchecked"][0] == {
            "field": "measurement",
            "reason": "why",
        }

    def test_a_policy_without_measurements_says_so(
        self, claims: VerifiedClaims, now: datetime
    ) -> None:
        result = judge(claims, now, {**GOOD, "simulated": {"roots": [ROOT]}})
        assert [each.field for each in result.unchecked] == ["measurement"]


class TestAge:
    @pytest.mark.parametrize(
        ("issued", "nonce", "fields"),
        [
            (0, 0, []),
            (-300, -300, []),
            (-301, 0, ["issued_at"]),
            (0, -301, ["nonce_issued_at"]),
            (60, 60, []),
            (61, 0, ["issued_at"]),
            (0, 61, ["nonce_issued_at"]),
            (None, -301, ["nonce_issued_at"]),
            (-301, None, ["issued_at"]),
        ],
    )
    def test_limits(
        self,
        claims: VerifiedClaims,
        now: datetime,
        issued: int | None,
        nonce: int | None,
        fields: list[str],
    ) -> None:
        issued_at, nonce_issued_at = (
            None if seconds is None else now + timedelta(seconds=seconds)
            for seconds in (issued, nonce)
        )
        dated = replace(claims, issued_at=issued_at)
        if fields:
            assert (
                rejected_fields(dated, now, nonce_issued_at=nonce_issued_at) == fields
            )
        else:
            judge(dated, now, nonce_issued_at=nonce_issued_at)

    def test_the_oldest_time_and_the_chain_end_it(
        self, claims: VerifiedClaims, now: datetime
    ) -> None:
        drawn = now - timedelta(seconds=100)
        aged = judge(claims, now, nonce_issued_at=drawn)
        assert aged.expires_at == drawn + timedelta(seconds=300)
        soon = now + timedelta(seconds=1)
        assert judge(replace(claims, expires_at=soon), now).expires_at == soon

    def test_without_any_time_the_result_holds_for_now_only(
        self, claims: VerifiedClaims, now: datetime
    ) -> None:
        undated = replace(claims, issued_at=None)
        result = judge(undated, now, nonce_issued_at=None)
        assert [each.field for each in result.unchecked] == ["age"]
        assert result.expires_at == result.verified_at == now

    def test_the_end_of_the_calendar_is_no_accident(
        self, claims: VerifiedClaims
    ) -> None:
        end = datetime.max.replace(tzinfo=UTC)
        late = replace(claims, issued_at=end, expires_at=None)
        assert judge(late, end).expires_at == end
        start = datetime.min.replace(tzinfo=UTC)
        assert rejected_fields(late, start) == ["issued_at"]
