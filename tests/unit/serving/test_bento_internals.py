"""Each thing that we take of BentoML without its promise, on the installed release."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import bentoml
import click
import pytest

from bentoml_secure.serving.bento_internals import (
    api_paths,
    configured_workers,
    is_service,
    names_given_urls,
    own_module,
)


def make(**options: Any) -> Any:
    class Plain:
        @bentoml.api  # type: ignore[untyped-decorator]  # bentoml is untyped here
        def ask(self) -> int:
            return 0

        @bentoml.api(route="/elsewhere")  # type: ignore[untyped-decorator]
        def moved(self) -> int:
            return 0

        @bentoml.task  # type: ignore[untyped-decorator]
        def long(self) -> int:
            return 0

        def internal(self) -> int:
            return 0

    return bentoml.service(**options)(Plain)


def test_the_release_that_this_was_checked_against() -> None:
    major, minor, patch = (int(part) for part in version("bentoml").split(".")[:3])
    assert (major, minor) == (1, 4)
    assert patch >= 39


def test_a_service_is_told_from_anything_else() -> None:
    service = make()
    assert is_service(service)
    for other in (service.inner, object(), None, int):
        assert not is_service(other)


def test_a_service_belongs_to_the_module_that_we_say() -> None:
    service = make()
    own_module(service, __name__)
    globals()["_Served"] = service
    try:
        assert service.import_string == f"{__name__}:_Served"
    finally:
        del globals()["_Served"]


def served_paths(service: Any, configure: Callable[..., None]) -> set[str]:
    """Return the POST paths that BentoML itself puts up."""
    configure(service)
    from _bentoml_impl.server.app import ServiceAppFactory

    return {
        route.path
        for route in ServiceAppFactory(service, is_main=True).routes
        if "POST" in (getattr(route, "methods", None) or ())
    }


@pytest.mark.parametrize("prefix", ["", "/v1", "/v1/"])
def test_paths_are_those_that_bentoml_serves(
    configure: Callable[..., None], prefix: str
) -> None:
    options = {"path_prefix": prefix} if prefix else {}
    service = make(**options)
    paths = api_paths(service)
    root = prefix.rstrip("/")
    wanted = {f"{root}/{p}" for p in ("ask", "elsewhere", "long", "long/submit")}
    assert set(paths) == wanted
    assert served_paths(service, configure) >= wanted


def test_every_path_that_runs_a_handler_is_known(
    configure: Callable[..., None],
) -> None:
    """A POST path of BentoML's that we did not know would not be recorded."""
    service = make()
    unknown = served_paths(service, configure) - set(api_paths(service))
    # Runs a task again, outside a request: there an infer is refused.
    assert unknown == {"/long/retry"}


def test_workers_as_the_decorator_and_the_operator_say(
    configure: Callable[..., None],
) -> None:
    service = make(name="Plain")
    configure(service)
    assert configured_workers("Plain") == 1
    assert configured_workers("Unheard") == 1
    configure(make(name="Plain", workers=3))
    assert configured_workers("Plain") == 3
    configure(service, "services.Plain.workers=2")
    assert configured_workers("Plain") == 2


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, None),
        ({"depends": ["A=http://a"]}, None),
        ({"service_name": "Entry"}, set()),
        (
            {"service_name": "Entry", "depends": ["A=http://a", "B=http://b"]},
            {"A", "B"},
        ),
        ({"service_name": "E", "runner_map": json.dumps({"A": "http://a"})}, {"A"}),
        ({"development": True}, set()),
    ],
)
def test_services_that_a_start_names_urls_for(
    options: dict[str, Any], wanted: set[str] | None
) -> None:
    assert names_given_urls() is None
    context = click.Context(click.Command("serve"))
    context.params = options
    with context:
        named = names_given_urls()
    assert (named if named is None else set(named)) == wanted


def test_bentomls_own_commands_have_the_options_that_we_ask_for() -> None:
    from bentoml_cli._internal.start import build_start_command

    serve = build_start_command().commands["start-http-server"]
    names = {parameter.name for parameter in serve.params}
    assert {"service_name", "depends", "runner_map"} <= names
