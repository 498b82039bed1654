"""The service of one segment's prover, as BentoML makes it.

It starts like a runner: it attests itself, gets the prover key of its segment from the
broker where the set-up is sealed, and answers its deployment's entry alone. Its farm
works on the jobs of its queue, which outlive it.
"""

from __future__ import annotations

import logging
import os

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.proofs.farm import Farm
from bentoml_secure.proofs.jobs.store import JobStore
from bentoml_secure.serving.deployment import Deployment
from bentoml_secure.serving.prover import ProverCore
from bentoml_secure.serving.prover_work import open_work
from bentoml_secure.serving.settings import own_environment, read_prover_settings
from bentoml_secure.session.responders import Responder
from bentoml_secure.statements import utc_now

logger = logging.getLogger("bentoml_secure")


class Prover:
    """The prover of one segment, as BentoML makes it: the class of its service."""

    deployment: Deployment
    name: str
    segment_index: int
    core_of_process: ProverCore | None = None

    def __init__(self) -> None:
        deployment, index = self.deployment, self.segment_index
        environment = own_environment(os.environ, self.name)
        self.settings = read_prover_settings(environment, service=self.name)
        self.settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        segment = deployment.plan.segments[index].identity
        identity = deployment.identify(Role.PROVER, self.name, segment)
        work = open_work(deployment, self.name, index, identity, self.settings)
        responder = Responder(
            identity,
            lambda shown: deployment.judge_entry(shown, identity),
            max_age_seconds=deployment.policy.max_age_seconds,
            clock=utc_now,
        )
        manifest = work.manifest.digest
        store = JobStore(self.settings.jobs, queue=f"{self.name} {manifest}")
        self.core = ProverCore(
            index,
            manifest,
            work.order_key.public,
            identity,
            responder,
            store,
            memory_bytes=work.limits.memory_bytes,
            execute=work.execute,
        )
        self.farm = Farm(
            store,
            self._executor(work),
        )
        type(self).core_of_process = self.core
