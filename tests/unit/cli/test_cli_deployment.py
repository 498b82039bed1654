"""``dev-root`` and ``trust``: what they write is what the other rooms read."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bentoml_secure.attestation.appraisal import parse_policy
from bentoml_secure.attestation.key_document import package_digest
from bentoml_secure.digest import canonical_json
from bentoml_secure.keys.model_signing import signer_digest
from bentoml_secure.receipts.draw import Drawn
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.scenario import Configuration, Independence, parse_scenarios
from bentoml_secure.testing.deployment import make_plan
from tests.unit.cli.conftest import Run

SCENARIOS = """
version = 1
minimum = "general"
[general]
replicas = 3
quorum = 2
deadline_ms = 5000
grace_ms = 200
evidence_max_age_seconds = 300
[critical]
replicas = 3
quorum = 3
deadline_ms = 5000
grace_ms = 200
evidence_max_age_seconds = 300
[weak]
replicas = 1
quorum = 1
deadline_ms = 5000
grace_ms = 200
evidence_max_age_seconds = 300
"""


@pytest.fixture
def owned(run: Run, tmp_path: Path) -> Path:
    """The owner's folder: a plan, scenarios, a development root with its policy."""
    (tmp_path / "plan").mkdir()
    document = canonical_json(make_plan(2).to_json())
    (tmp_path / "plan" / "plan.json").write_bytes(document)
    (tmp_path / "scenarios.toml").write_text(SCENARIOS)
    assert run("dev-root", tmp_path / "root").exit_code == 0
    return tmp_path


def trust_arguments(owned: Path, *rest: str | Path) -> tuple[str | Path, ...]:
    return (
        *("trust", owned / "plan", "--scenarios", owned / "scenarios.toml"),
        *("--policy", owned / "root" / "policy.toml"),
        *("--service", "Diagnosis", "--replicas", "3", *rest),
    )


def test_dev_root_makes_a_private_key_and_says_what_it_is_worth(
    run: Run, tmp_path: Path
) -> None:
    result = run("dev-root", tmp_path / "root")
    key = tmp_path / "root" / "root.key"
    assert result.exit_code == 0
    assert "SIMULATED - NOT HARDWARE" in result.stderr
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    root = result.stdout.split()[2]
    assert root in (tmp_path / "root" / "policy.toml").read_text()


def test_dev_root_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    assert run("dev-root", tmp_path / "root").exit_code == 0
    before = (tmp_path / "root" / "root.key").read_bytes()
    result = run("dev-root", tmp_path / "root")
    assert result.exit_code == 2
    assert "is not empty" in result.stderr
    assert (tmp_path / "root" / "root.key").read_bytes() == before


def test_trust_holds_the_digests_of_the_deployment(run: Run, owned: Path) -> None:
    result = run(*trust_arguments(owned))
    trust = parse_trust(result.stdout.encode())
    policy = parse_policy((owned / "root" / "policy.toml").read_bytes())
    scenarios = parse_scenarios(SCENARIOS.encode())
    configuration = Configuration(
        service="Diagnosis",
        replicas=3,
        segments=2,
        scenarios=scenarios,
        policy=policy.to_json(),
    )
    assert trust.plan_digests == (make_plan(2).digest,)
    assert trust.config_digests == (configuration.digest,)
    assert trust.package_digests == (package_digest(),)
    assert trust.minimum_quorum == 2
    assert trust.policy == policy
    # What is below the service's minimum is never served, nor trusted.
    assert trust.scenarios == {
        name: scenarios.by_name[name].digest for name in ("critical", "general")
    }


def test_trust_knows_of_referees_and_takes_their_word_where_a_scenario_does(
    run: Run, owned: Path
) -> None:
    ruled = SCENARIOS.replace("[critical]", "[critical]\nreferee = true\n", 1)
    (owned / "scenarios.toml").write_text(ruled)
    # The minimum lets no referee decide: one that does is below it.
    assert not parse_trust(
        run(*trust_arguments(owned, "--referees")).stdout.encode()
    ).referee
    refused = run(*trust_arguments(owned))
    assert refused.exit_code == 2
    assert "the service has none" in refused.stderr
    general = SCENARIOS.replace("[general]", "[general]\nreferee = true\n", 1)
    (owned / "scenarios.toml").write_text(general)
    trust = parse_trust(run(*trust_arguments(owned, "--referees")).stdout.encode())
    assert trust.referee


def test_trust_may_demand_more_of_the_draw(run: Run, owned: Path) -> None:
    trust = parse_trust(run(*trust_arguments(owned)).stdout.encode())
    assert (trust.draw, trust.weight_ratio) == (Drawn.ASSERTED, 200.0)
    rest = ("--draw", "committed", "--weight-ratio", "4")
    trust = parse_trust(run(*trust_arguments(owned, *rest)).stdout.encode())
    assert (trust.draw, trust.weight_ratio) == (Drawn.COMMITTED, 4.0)


def test_trust_tells_a_sealed_deployment_and_a_signed_one(
    run: Run, owned: Path
) -> None:
    def config_digest(*rest: str | Path) -> str:
        arguments = trust_arguments(owned, *rest)
        accepted = parse_trust(run(*arguments).stdout.encode()).config_digests
        assert isinstance(accepted, tuple)
        (digest,) = accepted
        return digest

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = owned / "signer.pem"
    pem.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    configuration = Configuration(
        service="Diagnosis",
        replicas=3,
        segments=2,
        scenarios=parse_scenarios(SCENARIOS.encode()),
        policy=parse_policy((owned / "root" / "policy.toml").read_bytes()).to_json(),
    )
    assert config_digest() == configuration.digest
    signed = replace(configuration, signer=signer_digest(key))
    assert config_digest("--signer", pem) == signed.digest
    (owned / "plan" / "sealed.json").write_text("")
    assert config_digest() == replace(configuration, sealed=True).digest
    assert config_digest("--signer", pem) == replace(signed, sealed=True).digest


def test_a_signers_key_that_is_none(run: Run, owned: Path) -> None:
    pem = owned / "scenarios.toml"
    result = run(*trust_arguments(owned, "--signer", pem))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "model signer's key" in result.stderr


def test_trust_asks_for_the_independence_of_the_minimum(run: Run, owned: Path) -> None:
    assert (
        parse_trust(run(*trust_arguments(owned)).stdout.encode()).independence
        is Independence.NONE
    )
    strict = SCENARIOS.replace("quorum = 2", 'quorum = 2\nindependence = "platform"')
    (owned / "scenarios.toml").write_text(strict)
    trust = parse_trust(run(*trust_arguments(owned)).stdout.encode())
    assert trust.independence is Independence.PLATFORM
    # Critical has the larger quorum, but of replicas that may share a host.
    assert trust.scenarios == {
        "general": parse_scenarios(strict.encode()).by_name["general"].digest
    }


def test_trust_writes_a_file_and_replaces_it_whole(run: Run, owned: Path) -> None:
    out = owned / "trust.toml"
    assert run(*trust_arguments(owned, "--out", out)).exit_code == 0
    rest = ("--out", out, "--minimum-quorum", "3")
    assert run(*trust_arguments(owned, *rest)).stdout == ""
    assert parse_trust(out.read_bytes()).minimum_quorum == 3
    assert stat.S_IMODE(out.stat().st_mode) == 0o644
    assert [path.name for path in owned.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("plan/plan.json", "{}", "plan.json"),
        ("scenarios.toml", "version = 2", "scenarios.toml"),
        ("root/policy.toml", "version = 1", "policy.toml"),
        ("scenarios.toml", SCENARIOS.replace("replicas = 3", "replicas = 5"), "5"),
    ],
)
def test_a_file_of_the_owner_that_is_wrong_is_a_usage_error(
    run: Run, owned: Path, name: str, text: str, said: str
) -> None:
    (owned / name).write_text(text)
    result = run(*trust_arguments(owned, "--out", owned / "trust.toml"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert not (owned / "trust.toml").exists()


def test_a_place_that_cannot_be_written_is_a_usage_error(run: Run, owned: Path) -> None:
    result = run(*trust_arguments(owned, "--out", owned / "none" / "trust.toml"))
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
