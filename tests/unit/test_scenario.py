"""Scenarios and the configuration of a deployment, from TOML that says nothing else."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from bentoml_secure.attestation.evidence import VerifiedClaims
from bentoml_secure.digest import Digest, Scheme, digest_bytes, digest_json
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.scenario import (
    MAX_SCENARIO_BYTES,
    Configuration,
    Independence,
    Proving,
    Scenario,
    Scenarios,
    Topology,
    parse_scenarios,
    read_independence,
)

FIELDS: dict[str, Any] = {
    "replicas": 3,
    "quorum": 2,
    "deadline_ms": 5000,
    "grace_ms": 500,
    "evidence_max_age_seconds": 300,
}
DEFAULTS: dict[str, Any] = {
    "independence": "none",
    "placement": {},
    "sealed": True,
    "spares": 0,
    "escalation": 0,
    "referee": False,
    "mode": "lock-step",
    "commit_reveal": False,
    "audit_rate": 0,
    "proof": "none",
    "proof_deadline_seconds": 600,
    "proof_wait": False,
    "serve_proven": False,
    "challenge_rate": 0,
    "epoch_seconds": 60,
    "commitments": "hmac-sha256",
}


def table(name: str, /, **changes: Any) -> str:
    fields = {**FIELDS, **changes}
    return f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in fields.items())


def toml(*tables: str, minimum: str = '"general"', version: str = "1") -> bytes:
    head = f"version = {version}\nminimum = {minimum}\n"
    return (head + "".join(tables)).encode()


def scenario(**changes: Any) -> Scenario:
    return Scenario(**{"name": "general", **FIELDS, **changes})


def test_a_file_of_scenarios() -> None:
    parsed = parse_scenarios(toml(table("general"), table("critical", quorum=3)))
    assert parsed.minimum == "general"
    assert parsed.by_name == {
        "general": scenario(),
        "critical": scenario(name="critical", quorum=3),
    }


def test_a_digest_is_that_of_the_document_in_every_field() -> None:
    document = {"name": "general", **FIELDS, **DEFAULTS}
    assert scenario().digest == digest_json(document)
    changed = [
        scenario(**{name: FIELDS[name] + 1}) for name in ("replicas", "grace_ms")
    ]
    changed += [scenario(quorum=3), scenario(deadline_ms=1), scenario(name="other")]
    changed += [scenario(evidence_max_age_seconds=1)]
    changed += [scenario(independence=one) for one in list(Independence)[1:]]
    changed += [scenario(commitments=Scheme.BLAKE3)]
    changed += [
        scenario(placement={"0": ("tdx",)}),
        scenario(placement={"*": ("tdx",)}),
    ]
    assert len({s.digest for s in [scenario(), *changed]}) == 12
    for made in [scenario(), *changed[1:]]:
        assert Scenario.from_json(made.to_json()) == made


def test_what_is_left_out_has_its_default() -> None:
    parsed = parse_scenarios(toml(table("general"))).by_name["general"]
    assert parsed.independence is Independence.NONE
    assert parsed.placement == {}
    assert [parsed.kinds(segment) for segment in (0, 7)] == [None, None]
    full = table("general", independence='"none"', placement="{}", sealed="true")
    assert parse_scenarios(toml(full)).by_name["general"].digest == parsed.digest


def test_a_placement_names_kinds_by_segment_or_for_the_others() -> None:
    placed = '{ 0 = ["tdx", "sev-snp"], "*" = ["nitro"] }'
    data = toml(table("general", placement=placed, independence='"vendor"'))
    parsed = parse_scenarios(data).by_name["general"]
    assert parsed.independence is Independence.VENDOR
    assert parsed.kinds(0) == ("sev-snp", "tdx")
    assert parsed.kinds(1) == parsed.kinds(99) == ("nitro",)
    assert scenario(placement={"1": ("tdx",)}).kinds(0) is None


def test_the_order_of_kinds_does_not_matter() -> None:
    one = scenario(placement={"0": ("tdx", "sev-snp"), "*": ("nitro",)})
    two = scenario(placement={"*": ("nitro",), "0": ("sev-snp", "tdx")})
    assert one == two
    assert one.digest == two.digest
    assert one.to_json()["placement"]["0"] == ["sev-snp", "tdx"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff", "not TOML"),
        (b"version = ", "not TOML"),
        (b"a = " + b"[" * 30_000, "not TOML"),
        (b"a = " + b"1" * 5000, "not TOML"),
        (b"#" * (MAX_SCENARIO_BYTES + 1), "got 65537 bytes, want at most 65536"),
        (b"", "version: want 1"),
        (toml(table("general"), version="2"), "version: want 1"),
        (toml(table("general"), version='"1"'), "version: want 1"),
        (toml(), "minimum: got 'general', want the name of a scenario here"),
        (toml(table("general"), minimum="1"), "minimum: got 1"),
        (toml(table("general"), minimum='"critical"'), "minimum: got 'critical'"),
        (toml("mode = 1\n", table("general")), "unknown key 'mode'"),
        (toml(table("general", name='"x"')), "unknown key 'general'"),
        (toml(table("general", zk="true")), "missing or unknown zk; want exactly"),
        (toml("[general]\n"), "missing or unknown deadline_ms"),
        (toml(table("general", quorum="2.0")), "quorum: want an integer"),
        (toml(table("general", grace_ms="true")), "grace_ms: want an integer"),
        (toml(table("general", replicas=0)), "replicas: got 0, want 1 to 64"),
        (toml(table("general", replicas=65)), "replicas: got 65, want 1 to 64"),
        (toml(table("general", quorum=1)), "quorum: got 1, want more than half of 3"),
        (toml(table("general", quorum=4)), "quorum: got 4, want more than half of 3"),
        (toml(table("general", replicas=4)), "quorum: got 2, want more than half of 4"),
        (toml(table("general", deadline_ms=0)), "deadline_ms: got 0"),
        (toml(table("general", grace_ms=60_001)), "grace_ms: got 60001"),
        (toml(table("general", evidence_max_age_seconds=0)), "max_age_seconds: got 0"),
        (
            toml(table("general", independence='"host"')),
            "'general' independence: got 'host', want one of none, platform, vendor",
        ),
        (toml(table("general", independence="1")), "independence: got 1"),
        (toml(table("general", sealed="1")), "sealed: want true or false"),
        (toml(table("general", placement='["tdx"]')), "placement: got .* want a table"),
        (toml(table("general", placement="{ a = ['tdx'] }")), "got segment 'a', want"),
        (toml(table("general", placement="{ 01 = ['tdx'] }")), "got segment '01'"),
        (toml(table("general", placement="{ 1000 = ['tdx'] }")), "got segment '1000'"),
        (toml(table("general", placement="{ '-1' = ['tdx'] }")), "got segment '-1'"),
        (toml(table("general", placement="{ 0 = [] }")), "placement 0: got .*1 to 32"),
        (toml(table("general", placement="{ 0 = 'tdx' }")), "placement 0: got 'tdx'"),
        (
            toml(table("general", placement=f"{{ 0 = {['a'] * 33} }}")),
            "want a list of 1 to 32 kinds",
        ),
        (toml(table("general", placement="{ 0 = [1] }")), "placement 0: got 1, want a"),
        (toml(table("general", placement="{ 0 = ['TDX'] }")), "0: got 'TDX', want a"),
        (
            toml(table("general", placement="{ 0 = ['tdx', 'tdx'] }")),
            "placement 0: a kind stands twice",
        ),
        (b"version = 1\n" + b"a." * 500 + b"b = 1", "missing or unknown a"),
    ],
)
def test_a_file_that_says_anything_else_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        parse_scenarios(data)


@pytest.mark.parametrize("document", [None, [], {}, {"name": 1, **FIELDS}, FIELDS])
def test_what_is_no_scenario(document: object) -> None:
    with pytest.raises(ConfigurationError, match="want a table with a name"):
        Scenario.from_json(document)


def test_a_name_that_has_no_canonical_form() -> None:
    with pytest.raises(MalformedInputError, match="canonical JSON"):
        Scenario.from_json({"name": "\ud800", **FIELDS})


def scenarios(**others: Scenario) -> Scenarios:
    return Scenarios(minimum="general", by_name={"general": scenario(), **others})


def test_the_minimum_is_served_where_none_was_asked_for() -> None:
    assert scenarios().select(None) == scenario()
    assert scenarios().select("general") == scenario()


def test_an_unknown_scenario_is_refused_with_those_there_are() -> None:
    critical = scenario(name="critical", replicas=5, quorum=3)
    assert scenarios(critical=critical).select("critical") == critical
    for name in ("other", "", "General", "x" * 1000):
        with pytest.raises(ConfigurationError, match="want one of general, critical"):
            scenarios(critical=critical).select(name)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"replicas": 2}, ["replicas"]),
        ({"replicas": 1, "quorum": 1}, ["replicas", "quorum"]),
        ({"evidence_max_age_seconds": 301}, ["evidence_max_age_seconds"]),
        ({"sealed": False}, ["sealed"]),
        ({"deadline_ms": 9, "grace_ms": 9}, []),
        ({"replicas": 5, "quorum": 3, "evidence_max_age_seconds": 1}, []),
        ({"independence": Independence.VENDOR, "placement": {"0": ("tdx",)}}, []),
    ],
)
def test_less_than_the_minimum_is_never_served(
    changes: dict[str, Any], fields: list[str]
) -> None:
    other = scenario(name="other", **changes)
    assert other.weaker_than(scenario()) == fields
    if fields:
        why = f"'other': below the service's minimum 'general' in {', '.join(fields)}"
        with pytest.raises(ConfigurationError, match=re.escape(why)):
            scenarios(other=other).select("other")
    else:
        assert scenarios(other=other).select("other") == other


@pytest.mark.parametrize(
    ("least", "other", "weaker"),
    [
        ("none", "platform", False),
        ("platform", "platform", False),
        ("platform", "vendor", False),
        ("platform", "none", True),
        ("vendor", "platform", True),
    ],
)
def test_less_independence_than_the_minimum(
    least: str, other: str, weaker: bool
) -> None:
    minimum = scenario(independence=Independence(least))
    chosen = scenario(independence=Independence(other))
    assert chosen.weaker_than(minimum) == (["independence"] if weaker else [])


@pytest.mark.parametrize(
    ("least", "other", "weaker"),
    [
        ({}, {"0": ("tdx",)}, False),
        ({"0": ("tdx",)}, {}, True),
        ({"0": ("tdx",)}, {"1": ("tdx",)}, True),
        ({"0": ("tdx", "nitro")}, {"0": ("tdx",)}, False),
        ({"0": ("tdx",)}, {"0": ("tdx", "nitro")}, True),
        ({"0": ("tdx", "nitro")}, {"*": ("nitro",)}, False),
        ({"*": ("tdx",)}, {"0": ("tdx",)}, True),
        ({"*": ("tdx",)}, {"0": ("nitro",), "*": ("tdx",)}, True),
        ({"*": ("tdx",), "0": ("nitro",)}, {"*": ("tdx",)}, True),
        ({"*": ("tdx",), "0": ("nitro",)}, {"*": ("tdx",), "0": ("nitro",)}, False),
    ],
)
def test_a_wider_placement_than_the_minimum(
    least: dict[str, tuple[str, ...]], other: dict[str, tuple[str, ...]], weaker: bool
) -> None:
    chosen = scenario(placement=other)
    want = ["placement"] if weaker else []
    assert chosen.weaker_than(scenario(placement=least)) == want


def claims(platform_id: str = "one", vendor: str = "A") -> VerifiedClaims:
    return VerifiedClaims(
        kind="tdx",
        report_data=bytes(64),
        claims={},
        platform_id=platform_id,
        vendor=vendor,
        root=Digest("sha256:00"),
        issued_at=None,
        expires_at=None,
        simulated=False,
    )


def test_a_voice_is_a_replicas_a_platforms_or_a_vendors() -> None:
    none, platform, vendor = Independence
    assert none.voice("r", claims()) == "r"
    assert platform.voice("r", claims()) == platform.voice("s", claims(vendor="B"))
    assert platform.voice("r", claims()) != platform.voice("r", claims("two"))
    assert vendor.voice("r", claims()) == vendor.voice("s", claims("two"))
    assert vendor.voice("r", claims()) != vendor.voice("r", claims(vendor="B"))
    assert {one.voice("r", None) for one in Independence} == {"r"}


def test_replicas_that_name_no_platform_are_one_voice() -> None:
    voice = Independence.PLATFORM.voice
    assert voice("r", claims("")) == voice("s", claims(""))
    assert voice("r", claims("s")) != voice("s", None)


@pytest.mark.parametrize("value", [None, True, 1, "", "None", "PLATFORM", ["none"]])
def test_an_independence_that_is_none(value: object) -> None:
    with pytest.raises(ConfigurationError, match="file independence: got"):
        read_independence(value, what="file")


def configuration(**changes: Any) -> Configuration:
    return Configuration(
        **{
            "service": "D",
            "replicas": 3,
            "segments": 2,
            "scenarios": scenarios(),
            "policy": {"version": 1},
            **changes,
        }
    )


def test_every_part_of_a_configuration_is_in_its_digest() -> None:
    other = scenario(name="other")
    made = [
        configuration(),
        configuration(service="E"),
        configuration(replicas=4),
        configuration(segments=3),
        configuration(scenarios=scenarios(other=other)),
        configuration(
            scenarios=Scenarios(
                minimum="other", by_name={"general": scenario(), "other": other}
            )
        ),
        configuration(policy={"version": 2}),
        configuration(sealed=True),
        configuration(signer=digest_bytes(b"one")),
        configuration(signer=digest_bytes(b"other")),
        configuration(sealed=True, signer=digest_bytes(b"one")),
    ]
    assert len({c.digest for c in made}) == len(made)
    assert configuration().digest == digest_json(configuration().to_json())


def test_what_is_not_demanded_of_a_model_is_not_in_the_configuration() -> None:
    assert "model" not in configuration().to_json()
    assert configuration(sealed=True).to_json()["model"] == {"sealed": True}
    signer = digest_bytes(b"one")
    assert configuration(signer=signer).to_json()["model"] == {"signer": signer}


def test_the_order_of_scenarios_in_the_file_does_not_matter() -> None:
    other = scenario(name="other")
    one = {"general": scenario(), "other": other}
    two = {"other": other, "general": scenario()}
    assert (
        configuration(scenarios=Scenarios(minimum="other", by_name=one)).digest
        == configuration(scenarios=Scenarios(minimum="other", by_name=two)).digest
    )


def test_more_replicas_than_there_are() -> None:
    with pytest.raises(
        ConfigurationError, match="'general' asks for 3 replicas, the service has 2"
    ) as caught:
        configuration(replicas=2)
    assert (
        caught.value.remedy == "Raise replicas= of the service or lower the scenario's."
    )


def placed(**placement: tuple[str, ...]) -> Scenarios:
    one = scenario(
        placement={key.strip("s"): kinds for key, kinds in placement.items()}
    )
    return Scenarios(minimum="general", by_name={"general": one})


def test_a_placement_must_be_one_that_can_be_served() -> None:
    policy = {"version": 1, "allow": ["nitro", "tdx"]}
    fits = placed(s0=("tdx",), s1=("nitro", "sgx"))
    assert configuration(scenarios=fits, policy=policy).scenarios == fits
    with pytest.raises(
        ConfigurationError,
        match="'general' placement: got segment 2, the plan has 2, from 0",
    ):
        configuration(scenarios=placed(s2=("tdx",)), policy=policy)
    with pytest.raises(
        ConfigurationError,
        match="placement 1: got sgx, want one that the appraisal policy allows: nitro",
    ):
        configuration(scenarios=placed(s1=("sgx",)), policy=policy)
    others = scenario(placement={"*": ("sgx",)})
    with pytest.raises(ConfigurationError, match=r"placement \*: got sgx"):
        configuration(
            scenarios=Scenarios(minimum="general", by_name={"general": others}),
            policy=policy,
        )


def test_scenarios_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="quorum"):
        scenario().quorum = 1  # type: ignore[misc]


PROVING = [
    ({"proof_wait": True}, "proof_wait: got it beside proof 'none', want it with"),
    ({"serve_proven": True}, "serve_proven: got it beside proof 'none'"),
    ({"challenge_rate": 0.1}, "challenge_rate: got it beside proof 'none'"),
    ({"proof": "challenge"}, "challenge_rate: got 0 beside proof 'challenge'"),
    ({"proof": "every", "challenge_rate": 0.1}, "beside proof 'every'"),
    ({"proof": "challenge", "challenge_rate": 0.1, "proof_wait": True}, "proof_wait"),
    ({"proof": "some"}, "proof: got 'some', want one of none, challenge, every"),
    ({"proof_deadline_seconds": 0}, "proof_deadline_seconds: got 0, want 1 to 86400"),
    ({"proof_wait": 1}, "proof_wait: want true or false"),
]


@pytest.mark.parametrize(("fields", "match"), PROVING)
def test_what_means_nothing_beside_the_proofs_is_refused(
    fields: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Scenario.from_json({"name": "general", **FIELDS, **fields})


@pytest.mark.parametrize(
    ("asked", "least", "weaker"),
    [
        ({}, {"proof": Proving.EVERY}, ["proof"]),
        ({"proof": Proving.CHALLENGE}, {"proof": Proving.EVERY}, ["proof"]),
        ({"proof": Proving.EVERY}, {"proof": Proving.CHALLENGE}, []),
        (
            {"proof": Proving.EVERY, "proof_deadline_seconds": 601},
            {"proof": Proving.EVERY},
            ["proof_deadline_seconds"],
        ),
        (
            {"proof": Proving.CHALLENGE, "challenge_rate": 0.1, "epoch_seconds": 61},
            {"proof": Proving.CHALLENGE, "challenge_rate": 0.2},
            ["epoch_seconds", "challenge_rate"],
        ),
        ({"proof_deadline_seconds": 601}, {}, []),
        (
            {"proof": Proving.EVERY},
            {"proof": Proving.EVERY, "proof_wait": True, "serve_proven": True},
            ["proof_wait", "serve_proven"],
        ),
    ],
)
def test_fewer_later_or_slower_proofs_are_weaker(
    asked: dict[str, Any], least: dict[str, Any], weaker: list[str]
) -> None:
    assert scenario(**asked).weaker_than(scenario(**least)) == weaker


def test_a_scenario_with_proofs_needs_a_proof_set_up() -> None:
    offered = parse_scenarios(toml(table("general", proof='"every"')))
    made: dict[str, Any] = {"service": "S", "replicas": 3, "segments": 2}
    made["policy"] = {}
    with pytest.raises(ConfigurationError, match="asks for proofs, the service has no"):
        Configuration(scenarios=offered, **made)
    manifest = digest_json({"any": "manifest"})
    proven = Configuration(scenarios=offered, proofs=manifest, **made)
    assert proven.to_json()["proofs"] == {"manifest": manifest}
    assert proven.topology.prover_name(1) == "SProver1"
    assert Topology.from_configuration(proven.to_json()) == proven.topology
