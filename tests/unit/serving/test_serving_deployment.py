"""What a decorated class stands for; every start that must not be."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bentoml_secure.attestation.attesters import DEV_ROOT
from bentoml_secure.attestation.attesters.simulated import SIMULATED_PLATFORM
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.attestation.tees.simulated import Simulated
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnknownKindError,
    VerificationError,
)
from bentoml_secure.scenario import parse_scenarios
from bentoml_secure.serving.assembly import assemble_entry
from bentoml_secure.serving.channel import HttpChannel, LocalChannel
from bentoml_secure.serving.deployment import (
    Deployment,
    find,
    refuse_workers,
)
from bentoml_secure.serving.settings import (
    POLICY,
    SALT_TOKEN_FILE,
    STORE,
)
from tests.harness import Project

Read = Callable[..., Deployment]


SCENARIOS = """
version = 1
minimum = "general"
[general]
replicas = 3
quorum = 2
deadline_ms = 5000
grace_ms = 200
evidence_max_age_seconds = 300
"""


@pytest.fixture
def environment(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    for name in (POLICY, SALT_TOKEN_FILE, SIMULATED_PLATFORM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(DEV_ROOT, str(project.dev_root))
    monkeypatch.setenv(STORE, str(tmp_path / "home" / "store"))
    return monkeypatch


@pytest.fixture
def read(project: Project, environment: pytest.MonkeyPatch) -> Read:
    def read(**changes: Any) -> Deployment:
        return Deployment.read(
            **{
                "name": "D",
                "plan": project.plan,
                "replicas": 3,
                "scenarios": project.folder / "services" / "scenarios.toml",
                "threads": 1,
                "in_process": False,
                "max_message_bytes": 1 << 20,
                "module": "nowhere",
                **changes,
            }
        )

    return read


def test_names_of_replicas_are_unique_and_say_where_they_are(read: Read) -> None:
    replicas = {f"DSegment{i}Replica{r}": i for i in range(2) for r in range(2)}
    assert read(replicas=2).runners == replicas
    referees = {f"DSegment{i}Referee": i for i in range(2)}
    assert read(replicas=2, referees=True).runners == replicas | referees


def test_reading_needs_no_settings(read: Read, environment: pytest.MonkeyPatch) -> None:
    environment.delenv(DEV_ROOT)
    deployment = read()
    assert deployment.plan.segments
    with pytest.raises(ConfigurationError, match="no attester is configured"):
        _ = deployment.configuration


def test_every_process_of_a_deployment_has_the_same_configuration(read: Read) -> None:
    one, other = read(), read()
    assert one.configuration.digest == other.configuration.digest
    assert read(replicas=5).configuration.digest != one.configuration.digest
    assert read(name="E").configuration.digest != one.configuration.digest
    # What it does not cover: how one process runs its part.
    assert read(threads=4).configuration.digest == one.configuration.digest


def test_parts_of_a_deployment(read: Read) -> None:
    deployment = read()
    core = deployment.runner("DSegment0Replica0", 0, lambda tensors: tensors)
    document = core.identity.keys.document
    assert (document.role, document.service) == (Role.RUNNER, "DSegment0Replica0")
    assert document.segment == deployment.plan.segments[0].identity
    assert document.config_digest == deployment.configuration.digest
    urls = {name: "http://127.0.0.1:1" for name in deployment.runners}
    del urls["DSegment0Replica0"]
    entry = assemble_entry(deployment, urls, {"DSegment0Replica0": core})
    assert entry.identity.keys.document.role is Role.ENTRY
    kinds = [[type(p.channel) for p in row] for row in entry.engine.peers]
    assert kinds == [[LocalChannel, HttpChannel, HttpChannel], [HttpChannel] * 3]
    names = [p.name for row in entry.engine.peers for p in row]
    assert names == list(deployment.runners)
    assert list(entry.engine.referees) == []
    assert deployment.settings.store.exists()
    entry.store.close()


# Where files are looked for


@pytest.fixture
def module(tmp_path: Path) -> str:
    """A module two folders deep: ``deep.down.served``."""
    made = ModuleType("deep.down.served")
    made.__file__ = str(tmp_path / "src" / "deep" / "down" / "served.py")
    sys.modules[made.__name__] = made
    return made.__name__


@pytest.mark.parametrize("folder", ["cwd", "src/deep/down", "src/deep", "src"])
def test_files_are_found_from_the_project(
    module: str, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    wanted = tmp_path / folder / "models" / "plan"
    wanted.mkdir(parents=True)
    assert find("models/plan", module) == wanted


def test_files_above_the_project_are_not_looked_for(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    (tmp_path / "models").mkdir()
    with pytest.raises(
        ConfigurationError, match=r"models: not found in .*cwd"
    ) as caught:
        find("models", module)
    assert "bentofile.yaml" in caught.value.remedy


def test_the_working_folder_comes_first_and_absolute_paths_stay(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("cwd", "src"):
        (tmp_path / folder / "models").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    assert find("models", module) == tmp_path / "cwd" / "models"
    assert find(tmp_path / "src" / "models", "nowhere") == tmp_path / "src" / "models"
    with pytest.raises(ConfigurationError, match="not found in"):
        find(tmp_path / "none", module)


# Starts that must not be


def test_a_plan_that_is_not_there_or_none(read: Read, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing: not found in"):
        read(plan="missing")
    with pytest.raises(ConfigurationError, match=r"plan\.json'?: cannot be read"):
        read(plan=tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(MalformedInputError, match="field 'inputs' is missing"):
        read(plan=tmp_path)


@pytest.mark.parametrize("replicas", [0, -1, 65])
def test_a_number_of_replicas_that_is_none(read: Read, replicas: int) -> None:
    with pytest.raises(ConfigurationError, match=f"got {replicas}, want 1 to 64"):
        read(replicas=replicas)


def test_scenarios_that_are_not_there_or_none(read: Read, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="none: not found"):
        read(scenarios="none")
    with pytest.raises(ConfigurationError, match=r"scenarios: .*Is a directory"):
        read(scenarios=tmp_path)
    (tmp_path / "scenarios").write_text("version = 1")
    with pytest.raises(ConfigurationError, match="minimum: got None"):
        read(scenarios=tmp_path / "scenarios")


def test_a_scenario_that_asks_for_more_replicas_than_there_are(read: Read) -> None:
    with pytest.raises(
        ConfigurationError, match="'general' asks for 3 replicas, the service has 2"
    ) as caught:
        _ = read(replicas=2).configuration
    assert "Raise replicas=" in caught.value.remedy


def test_a_policy_that_is_not_there_or_none(
    read: Read, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(POLICY, str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match=r"policy: .* does not exist"):
        _ = read().policy
    environment.setenv(POLICY, str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"policy: .*Is a directory"):
        _ = read().policy
    (tmp_path / "policy").write_text("version = 2")
    environment.setenv(POLICY, str(tmp_path / "policy"))
    with pytest.raises(ConfigurationError, match="appraisal policy"):
        _ = read().policy


def test_a_development_root_that_is_none(
    read: Read, project: Project, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(POLICY, str(project.dev_root / "policy.toml"))
    environment.setenv(DEV_ROOT, str(tmp_path))
    with pytest.raises(ConfigurationError, match="development root in") as caught:
        read().identify(Role.ENTRY, "D", None)
    assert "bentoml-secure dev-root DIR" in caught.value.remedy


def platform_of(deployment: Deployment, service: str) -> Any:
    identity = deployment.identify(Role.RUNNER, service, digest_json("a segment"))
    record = identity.attest(bytes(32), identity.keys)
    return Simulated().describe(record.evidence)["platform_id"]


def test_simulated_evidence_names_this_host_for_every_process(read: Read) -> None:
    deployment = read()
    platforms = {platform_of(deployment, name) for name in ("DSegment0Replica0", "E")}
    (platform,) = platforms
    assert platform.startswith("simulated-")


@pytest.mark.parametrize(
    ("told", "platforms"),
    [
        ("machine-7", ["machine-7", "machine-7"]),
        ("simulated-{service}", ["simulated-One", "simulated-Two"]),
    ],
)
def test_simulated_evidence_names_the_machine_that_it_is_told_to(
    read: Read, environment: pytest.MonkeyPatch, told: str, platforms: list[str]
) -> None:
    environment.setenv(SIMULATED_PLATFORM, told)
    deployment = read()
    assert [platform_of(deployment, name) for name in ("One", "Two")] == platforms


@pytest.mark.parametrize("told", ["two words", "{0}", "{service.name}", "x" * 129])
def test_a_machine_that_no_evidence_can_name(
    read: Read, environment: pytest.MonkeyPatch, told: str
) -> None:
    environment.setenv(SIMULATED_PLATFORM, told)
    with pytest.raises(ConfigurationError, match="platform_id: got"):
        read().identify(Role.ENTRY, "D", None)


def test_a_store_that_cannot_be(
    read: Read, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no store")
    environment.setenv(STORE, str(tmp_path / "file" / "store"))
    with pytest.raises(ConfigurationError, match="its folder cannot be made") as caught:
        assemble_entry(read(in_process=True), urls_of(read()), {})
    assert STORE in caught.value.remedy
    environment.setenv(STORE, str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match=r"not a (receipt store|database)"):
        assemble_entry(read(), urls_of(read()), {})


def urls_of(deployment: Deployment, url: str = "http://127.0.0.1:1") -> dict[str, str]:
    return {name: url for name in deployment.runners}


def test_a_replica_at_no_url(read: Read) -> None:
    with pytest.raises(ConfigurationError, match="replica URL: got 'nowhere'"):
        assemble_entry(read(), urls_of(read(), "nowhere"), {})


def test_replicas_without_a_url_are_not_built_inside_the_entry(read: Read) -> None:
    urls: dict[str, str | None] = {**urls_of(read())}
    read().require_urls(urls)
    urls["DSegment1Replica2"] = None
    with pytest.raises(
        ConfigurationError, match="D: no URL for DSegment1Replica2; BentoML would"
    ) as caught:
        read().require_urls(urls)
    assert "--depends" in caught.value.remedy
    assert "in_process=True" in caught.value.remedy
    read(in_process=True).require_urls(urls)


@pytest.mark.parametrize("workers", [0, 2, "cpu_count", None])
def test_more_than_one_worker(workers: object) -> None:
    refuse_workers({}, "entry")
    refuse_workers({"workers": 1}, "entry")
    with pytest.raises(
        ConfigurationError, match=f"entry workers: got {workers!r}, want"
    ) as e:
        refuse_workers({"workers": workers}, "entry")
    assert "scale by replicas" in e.value.remedy


@pytest.fixture
def copied(project: Project, tmp_path: Path) -> Path:
    """A copy of the plan's folder, to be hurt."""
    return Path(shutil.copytree(project.plan, tmp_path / "plan"))


def test_a_segment_that_loads_is_tried_once(read: Read, copied: Path) -> None:
    deployment = read(plan=copied)
    deployment.require_segment(0)
    shutil.rmtree(copied)
    deployment.require_segment(0)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        deployment.require_segment(1)


def test_a_segment_whose_file_was_changed_or_taken_away(
    read: Read, copied: Path
) -> None:
    deployment = read(plan=copied)
    file = copied / deployment.plan.segments[0].file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(VerificationError, match="not the one that the plan was made"):
        deployment.require_segment(0)
    file.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        deployment.require_segment(0)


def test_a_runtime_that_the_plan_does_not_allow(read: Read, copied: Path) -> None:
    document = json.loads((copied / "plan.json").read_text())
    document["runtime"]["version"] = "<1"
    (copied / "plan.json").write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match="the plan wants <1") as caught:
        read(plan=copied).require_segment(0)
    assert "Install a version in that range" in caught.value.remedy


def test_rules_that_cannot_compare_answers(read: Read, copied: Path) -> None:
    def naming(rule: str) -> Deployment:
        document = json.loads((copied / "plan.json").read_text())
        document["segments"][0]["rule"] = rule
        (copied / "plan.json").write_text(json.dumps(document))
        return read(plan=copied)

    naming("exact").require_rules()
    with pytest.raises(UnknownKindError, match="no-such"):
        naming("no-such").require_rules()
    ends = copied / "scenarios.toml"
    ends.write_text(SCENARIOS.replace("[general]", '[general]\nmode = "end-to-end"'))
    with pytest.raises(ConfigurationError, match="exact, within_tolerance"):
        dataclasses.replace(
            naming("exact"), scenarios=parse_scenarios(ends.read_bytes())
        ).require_rules()


def test_a_deployment_does_not_change(read: Read) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="replicas"):
        read().replicas = 1  # type: ignore[misc]
