"""The decorator: what it makes of a class, and what it refuses to make."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import bentoml
import click
import numpy as np
import pytest

import bentoml_secure
from bentoml_secure.attestation.attesters import DEV_ROOT
from bentoml_secure.errors import ConfigurationError, SecureError
from bentoml_secure.serving.entry_door import EntryDoor
from bentoml_secure.serving.request import enter
from bentoml_secure.serving.runner_app import RunnerDoor
from bentoml_secure.serving.service import Secure, dependency_name
from bentoml_secure.serving.settings import (
    POLICY,
    SALT_TOKEN_FILE,
    STORE,
)
from tests.harness import Project, sample
from tests.unit.serving.serving_parts import Ground, scenario

Make = Callable[..., Any]


@pytest.fixture
def make(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    for name in (POLICY, SALT_TOKEN_FILE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(DEV_ROOT, str(project.dev_root))
    monkeypatch.setenv(STORE, str(tmp_path / "store"))

    def make(cls: type | None = None, **changes: Any) -> Any:
        decorate = bentoml_secure.service(
            **{
                "plan": project.plan,
                "replicas": 3,
                "scenarios": project.folder / "services" / "scenarios.toml",
                "name": "Made",
                "in_process": True,
                **changes,
            }
        )
        return decorate(cls or asks())

    return make


def asks() -> type:
    class Asks:
        """Asks the model."""

        secure: Secure

        def __init__(self) -> None:
            self.plan = self.secure.entry.engine.plan

        @bentoml.api(route="/ask")  # type: ignore[untyped-decorator]  # bentoml's
        async def ask(self) -> int:
            return 0

    return Asks


def middlewares(service: Any) -> list[tuple[type, dict[str, Any]]]:
    return [(m[0], m[1]) for m in service.middlewares]


def test_a_service_for_every_replica_of_every_segment(make: Make) -> None:
    service = make()
    names = {f"MadeSegment{s}Replica{r}" for s in range(2) for r in range(3)}
    assert set(service.all_services()) == {"Made", *names}
    for name in names:
        runner = service.all_services()[name]
        assert runner.inner.name == name
        assert str(runner.inner.segment_index) in name
        assert [kind for kind, _ in middlewares(runner)] == [RunnerDoor]
        assert dependency_name(name) in service.dependencies
    ((kind, options),) = middlewares(service)
    assert kind is EntryDoor
    assert options["apis"] == ["/ask"]


def test_the_class_keeps_its_name_its_words_and_its_module(make: Make) -> None:
    service = make()
    assert service.inner.__name__ == "Asks"
    assert service.inner.__doc__ == "Asks the model."
    assert service.inner.__module__ == __name__
    assert {s._caller_module for s in service.all_services().values()} == {__name__}
    assert make(name=None).name == "Asks"


def test_options_go_to_whom_they_are_for(make: Make) -> None:
    service = make(
        traffic={"timeout": 30}, runner={"resources": {"cpu": "1"}}, threads=2
    )
    assert service.config["traffic"]["timeout"] == 30
    assert service.config["runner_probe"] == {"enabled": False}
    runner = service.all_services()["MadeSegment0Replica0"]
    assert runner.config["resources"] == {"cpu": "1"}
    assert runner.inner.deployment.threads == 2
    assert make(runner_probe={"enabled": True}).config["runner_probe"] == {
        "enabled": True
    }


def test_caps_reach_the_doors(make: Make) -> None:
    service = make(max_body_bytes=7, max_message_bytes=9)
    assert middlewares(service)[0][1]["max_body_bytes"] == 7
    for name, made in service.all_services().items():
        if name != "Made":
            assert middlewares(made)[0][1]["max_message_bytes"] == 9


def test_reading_a_class_needs_no_settings_and_makes_no_keys(
    make: Make, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DEV_ROOT)
    service = make()
    configure(service)
    with pytest.raises(ConfigurationError, match="no attester is configured"):
        service.inner.bsec_check()


@pytest.mark.parametrize(
    ("options", "who"),
    [({"workers": 2}, "entry"), ({"runner": {"workers": 2}}, "runner")],
)
def test_more_workers_are_refused_by_the_decorator(
    make: Make, options: dict[str, Any], who: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"{who} workers: got 2, want 1"):
        make(**options)


@pytest.mark.parametrize("name", ["Made", "MadeSegment0Replica1"])
def test_more_workers_by_the_operators_configuration_are_refused(
    make: Make, configure: Callable[..., None], name: str
) -> None:
    service = make()
    configure(service, f"services.{name}.workers=4")
    with pytest.raises(ConfigurationError, match="workers: got 4, want 1"):
        service.all_services()[name].inner.bsec_check()


def test_a_service_is_not_made_twice(make: Make) -> None:
    with pytest.raises(ConfigurationError, match="is a BentoML service already") as e:
        make(bentoml.service(asks()))
    assert "in place of @bentoml.service" in e.value.remedy


def test_checks_before_anything_starts(
    make: Make, configure: Callable[..., None]
) -> None:
    service = make()
    configure(service)
    for made in service.all_services().values():
        made.inner.bsec_check()


def test_an_entry_alone_must_be_told_of_every_replica(
    make: Make, configure: Callable[..., None]
) -> None:
    service = make(in_process=False)
    configure(service)
    context = click.Context(click.Command("start-http-server"))
    replicas = [name for name in service.all_services() if name != "Made"]
    context.params = {"service_name": "Made", "depends": []}
    with context:
        with pytest.raises(ConfigurationError, match="no URL for MadeSegment0Replica0"):
            service.inner.bsec_check()
        context.params["depends"] = [f"{name}=http://h" for name in replicas]
        service.inner.bsec_check()


def test_before_the_start_there_is_no_entry_and_no_runner(make: Make) -> None:
    service = make()
    blank = service.inner.__new__(service.inner)
    with pytest.raises(ConfigurationError, match="has not started in this process"):
        _ = blank.secure.entry
    runner = service.all_services()["MadeSegment0Replica0"].inner
    with pytest.raises(
        ConfigurationError, match="MadeSegment0Replica0 has not started"
    ):
        runner.running()


def test_runners_are_not_built_inside_the_entry_unasked(make: Make) -> None:
    service = make(in_process=False)
    with pytest.raises(ConfigurationError, match="build these segments inside"):
        service.inner()


async def test_a_whole_deployment_in_this_process(make: Make, project: Project) -> None:
    service = make()
    instance = service.inner()
    # Seen in the user's own constructor already.
    assert instance.plan is instance.secure.entry.engine.plan
    runner = service.all_services()["MadeSegment0Replica0"].inner
    assert runner.running().identity.keys.document.service == "MadeSegment0Replica0"
    await instance.bsec_start()
    async with asyncio.timeout(10):
        while not await instance.__is_ready__():  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
    context = Ground.context(
        Ground(plan=instance.plan, segments=(), scenario=scenario())
    )
    enter(context)
    feed = {"features": sample()}
    made = await instance.secure.infer(feed)
    np.testing.assert_array_equal(made["probability"], project.expected(sample()))
    # From a synchronous handler, which BentoML runs in a thread.
    again = await anyio.to_thread.run_sync(instance.secure.infer_sync, feed)
    np.testing.assert_array_equal(again["probability"], made["probability"])
    assert [record.index for record in context.infers] == [0, 1]
    await context.abandon()
    await instance.bsec_stop()
    with pytest.raises(SecureError, match="has not started"):
        _ = instance.secure.entry
    # Twice does no harm: BentoML may stop what never started.
    await instance.bsec_stop()


async def test_infer_outside_a_request_is_refused(make: Make) -> None:
    instance = make().inner()

    async def outside() -> None:
        await instance.secure.infer({})

    task = asyncio.create_task(outside(), context=contextvars.Context())
    with pytest.raises(ConfigurationError, match="outside a secured request"):
        await task
    await instance.bsec_stop()


def test_readiness_of_ones_own_is_kept(make: Make) -> None:
    class Own:
        async def __is_ready__(self) -> bool:
            return True

        @bentoml.api  # type: ignore[untyped-decorator]  # bentoml's
        async def ask(self) -> int:
            return 0

    assert make(Own).inner.__is_ready__ is Own.__is_ready__
