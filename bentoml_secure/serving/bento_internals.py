"""Every use of what BentoML does not promise, in one place.

Checked against bentoml 1.4.39; tests/unit/serving/test_bento_internals.py holds each.
"""

from __future__ import annotations

from typing import Any


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
