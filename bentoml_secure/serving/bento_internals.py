"""Every use of what BentoML does not promise, in one place.

Checked against bentoml 1.4.39; tests/unit/serving/test_bento_internals.py holds each.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import click


def own_module(service: Any, module: str) -> None:
    """Say which module a service made by our factory belongs to.

    BentoML finds it by walking frames and would find the factory's.
    """
    service._caller_module = module


def api_paths(service: Any) -> list[str]:
    """Return the HTTP paths of a service's APIs, tasks' sub-paths included."""
    prefix = (service.path_prefix or "").rstrip("/")
    paths = []
    for method in service.apis.values():
        path = prefix + method.route
        paths.append(path)
        if method.is_task:
            paths.append(f"{path}/submit")
    return paths


def is_service(value: Any) -> bool:
    """Tell whether a value is already a BentoML service."""
    from _bentoml_sdk import Service

    return isinstance(value, Service)


def configured_workers(name: str) -> object:
    """Return how many workers a service will have, by decorator and operator.

    BENTOML_CONFIG and BENTOML_CONFIG_OPTIONS override what the decorator says.
    """
    from bentoml._internal.configuration.containers import BentoMLContainer

    services: dict[str, dict[str, Any]] = BentoMLContainer.config.services.get()
    return services.get(name, {}).get("workers") or 1


def names_given_urls() -> Collection[str] | None:
    """Return the services that this start names a URL for, if it starts no others.

    None where BentoML starts the rest itself (``bentoml serve``), and outside its
    command line. To be asked in the supervisor: a worker is told its URLs.
    """
    context = click.get_current_context(silent=True)
    options = context.params if context is not None else {}
    if not (options.get("service_name") or options.get("development")):
        return None
    depends: Collection[str] = options.get("depends") or ()
    if not depends and (runner_map := options.get("runner_map")):
        return frozenset(json.loads(runner_map))
    return frozenset(one.partition("=")[0] for one in depends)
