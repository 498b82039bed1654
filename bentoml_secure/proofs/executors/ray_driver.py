"""What talks to a Ray cluster: the child of ``ray_cluster``, one attempt, then it ends.

What nodes of a cluster send each other are pickles: whoever can send one runs code in
who reads it. So the prover's own process, which has keys, never does; this one has
none, and hands on bytes.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bentoml_secure.errors import UnavailableError
from bentoml_secure.proofs.backends.child import Tell, serve
from bentoml_secure.proofs.executors.ray_task import attempt

_NAMESPACE = "bentoml-secure"


def _attempt(
    arguments: Mapping[str, Any], paths: Mapping[str, str], tell: Tell
) -> None:
    import ray
    from ray.exceptions import RayError

    order = Path(paths["order"]).read_bytes()
    link = Path(paths["link"]).read_bytes() if "link" in paths else None
    try:
        ray.init(
            address=arguments["address"],
            namespace=_NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
        # The farm counts attempts: the cluster must make none of its own.
        task = ray.remote(attempt).options(
            num_returns="streaming",
            num_cpus=arguments["cpus"],
            memory=arguments["memory_bytes"],
            resources=arguments["resources"],
            max_retries=0,
            name=arguments["name"],
        )
        # Typed as one reference; "streaming" makes it a generator of them.
        events: Any = task.remote(
            arguments["path"],
            arguments["context"],
            tuple(arguments["key"]),
            order,
            link,
            arguments["memory_bytes"],
        )
        for event in events:
            tell(_plain(ray.get(event)))
    except (RayError, ConnectionError, TimeoutError, RuntimeError) as error:
        # Its text quotes addresses and folders of the cluster.
        raise UnavailableError(f"cluster: {type(error).__name__}") from error


def _plain(event: Any) -> dict[str, Any]:
    match event:
        case ("executed", None):
            return {"executed": None}
        case ("executed" | "finished" as what, bytes(data)):
            return {what: base64.b64encode(data).decode()}
        case ("failed", str(reason), bool(retry)):
            return {"failed": reason, "retry": retry}
    raise UnavailableError("cluster: a worker told what it should not")


_TASKS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, str], Tell], None]] = {
    "attempt": _attempt
}

if __name__ == "__main__":
    serve(_TASKS)
