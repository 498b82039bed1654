"""The service of one segment's prover, as BentoML makes it.

It starts like a runner: it attests itself, gets the prover key of its segment from the
broker where the set-up is sealed, and answers its deployment's entry alone. Its farm
works on the jobs of its queue, which outlive it.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import bentoml

from bentoml_secure import metrics
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.jobs.store import JobStore
from bentoml_secure.serving.bento_internals import configured_workers, own_module
from bentoml_secure.serving.deployment import Deployment, refuse_workers
from bentoml_secure.serving.prover import ProverCore
from bentoml_secure.serving.prover_cluster import serve_on_clusters
from bentoml_secure.serving.prover_door import ProverDoor
from bentoml_secure.serving.prover_start import open_farm, open_work
from bentoml_secure.serving.settings import own_environment, read_prover_settings
from bentoml_secure.session.responders import Responder
from bentoml_secure.statements import utc_now

# As a runner's: paths are a stranger's to name.
_QUIET = {
    "metrics": {"enabled": False},
    "logging": {"access": {"enabled": False}},
    "tracing": {"excluded_urls": "bsec"},
}


class Prover:
    """The prover of one segment, as BentoML makes it: the class of its service."""

    deployment: Deployment
    name: str
    segment_index: int
    core_of_process: ProverCore | None = None

    def __init__(self) -> None:
        deployment, index = self.deployment, self.segment_index
        environment = own_environment(os.environ, self.name)
        settings = read_prover_settings(environment, service=self.name)
        segment = deployment.plan.segments[index].identity
        identity = deployment.identify(Role.PROVER, self.name, segment)
        work = open_work(deployment, self.name, index, identity, settings)
        responder = Responder(
            identity,
            lambda shown: deployment.judge_entry(shown, identity),
            max_age_seconds=deployment.policy.max_age_seconds,
            clock=utc_now,
        )
        store = JobStore(settings.jobs, queue=f"{self.name} {work.manifest.digest}")
        self.core = ProverCore(
            index,
            work.manifest.digest,
            work.order_key.public,
            identity,
            responder,
            store,
            memory_bytes=work.limits.memory_bytes,
            execute=work.execute,
        )
        self.core.farm = open_farm(
            self.core, work, deployment, type(self).__module__, self.name, settings
        )
        type(self).core_of_process = self.core

    @classmethod
    def running(cls) -> ProverCore:
        """Return this process's prover.

        Raises:
            ConfigurationError: It has not started.
        """
        if cls.core_of_process is None:
            raise ConfigurationError(f"{cls.name} has not started in this process")
        return cls.core_of_process


def prover_services(deployment: Deployment, module: str) -> dict[str, Any]:
    """Make the services of a deployment's provers, by name.

    Args:
        deployment: With a proof set-up.
        module: That they are served from.
    """
    serve_on_clusters(deployment)
    return {
        name: _prover_service(deployment, name, index, module)
        for name, index in deployment.provers.items()
    }


def _prover_service(deployment: Deployment, name: str, index: int, module: str) -> Any:
    def check() -> None:
        # In the supervisor: a start that cannot work fails there and then.
        refuse_workers({"workers": configured_workers(name)}, name)
        deployment.require_settings(name)
        deployment.require_prover(name, index)

    async def start(self: Prover) -> None:
        metrics.forget_ended_processes()
        if self.core.farm is not None:
            await self.core.farm.start()

    async def stop(self: Prover) -> None:
        if self.core.farm is not None:
            await self.core.farm.stop()
        await asyncio.to_thread(self.core.store.close)

    made: type[Prover] = type(
        name,
        (Prover,),
        {
            "__module__": module,
            "__doc__": f"{name}: proves segment {index} of {deployment.name}.",
            "deployment": deployment,
            "name": name,
            "segment_index": index,
            "bsec_check": bentoml.on_deployment(check),
            "bsec_start": bentoml.on_startup(start),
            "bsec_stop": bentoml.on_shutdown(stop),
        },
    )
    service = bentoml.service(name=name, **_QUIET)(made)
    own_module(service, module)
    service.add_asgi_middleware(ProverDoor, core=made.running)
    return service
