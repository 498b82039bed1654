"""Proofs made by the workers of a Ray cluster.

A worker is told which service's which segment it is to prove, and where the project
lies; nothing secret. It attests itself as the prover that it works for and gets the key
from the broker, as that one did. Of a set-up in plain it needs the prover's own folder,
which a cluster of one host has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.executors.ray_cluster import Placement, RayCluster
from bentoml_secure.proofs.work import Work
from bentoml_secure.serving.deployment import Deployment
from bentoml_secure.serving.prover_start import open_work, order_key_file
from bentoml_secure.serving.settings import own_environment, read_prover_settings

_OPENS = "bentoml_secure.serving.prover_cluster:open_cluster_work"

_SERVED: dict[str, Deployment] = {}
"""By prover: what the modules that this process has imported serve."""


def serve_on_clusters(deployment: Deployment) -> None:
    """Let workers in this process find a deployment by its provers' names."""
    for name in deployment.provers:
        _SERVED[name] = deployment


def cluster_executor(
    deployment: Deployment, module: str, name: str, address: str
) -> RayCluster:
    """Return what has a prover's attempts made on a cluster.

    Args:
        deployment: Whose prover it is.
        module: That the service is served from: workers import it.
        name: Of the prover.
        address: Of the cluster's head, host:port.

    Raises:
        ConfigurationError: An address of another form.
        MissingDependencyError: Ray is not installed.
    """
    context = {"module": module, "prover": name, "project": str(Path.cwd())}
    return RayCluster(Placement(address=address, path=_OPENS, context=context))


def open_cluster_work(context: Mapping[str, str]) -> Work:
    """Return what proves a segment, in a cluster's worker.

    Args:
        context: As ``cluster_executor`` made it.

    Raises:
        SecureError: The service is not there, or its key is not to be had.
    """
    project, module, name = context["project"], context["module"], context["prover"]
    if project not in sys.path:
        sys.path.insert(0, project)
    try:
        import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"{name}: its service {module} cannot be imported: {error}.",
            remedy="Have the project on every node of the cluster, at the same place.",
        ) from error
    deployment = _SERVED.get(name)
    if deployment is None:
        raise ConfigurationError(f"{module}: serves no prover {name}")
    index = deployment.provers[name]
    environment = own_environment(os.environ, name)
    settings = read_prover_settings(environment, service=name)
    if not deployment.require_proofs().is_sealed:
        _require_order_key(order_key_file(settings, name))
    segment = deployment.plan.segments[index].identity
    identity = deployment.identify(Role.PROVER, name, segment)
    return open_work(deployment, name, index, identity, settings)


def _require_order_key(path: Path) -> None:
    # Made anew, it would open nothing that the prover was sent.
    if not path.exists():
        raise ConfigurationError(
            f"order key {path}: is not on this node.",
            remedy="Seal the set-up (`bentoml-secure seal-proofs`): workers get their "
            "key from the broker then.",
        )
