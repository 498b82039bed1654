"""How a prover gets what it works with: keys first, then who runs the work.

A set-up that is sealed opens under the prover key that the broker releases to this
process; a plain one is read. Workers of a cluster do the same for themselves: they are
told where the service is, never a key.
"""

from __future__ import annotations

from pathlib import Path

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.keys.hardening import forbid_core_dumps
from bentoml_secure.keys.order_secret import order_secret, read_or_make_order_secret
from bentoml_secure.keys.release import fetch_segment_key
from bentoml_secure.keys.release_messages import ReleaseRequest
from bentoml_secure.keys.sealed_proofs import open_sealed_setup, require_sealed_setup
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.proofs.admission import available_memory, estimate
from bentoml_secure.proofs.backends import open_backend
from bentoml_secure.proofs.executors.local import Local
from bentoml_secure.proofs.farm import Budget, Farm
from bentoml_secure.proofs.folder import ProofFolder
from bentoml_secure.proofs.linking import require_backend
from bentoml_secure.proofs.proof import Limits
from bentoml_secure.proofs.sealing import OrderKey
from bentoml_secure.proofs.work import Executor
from bentoml_secure.serving.deployment import Deployment
from bentoml_secure.serving.prover import ProverCore
from bentoml_secure.serving.prover_work import SegmentWork
from bentoml_secure.serving.settings import (
    PROOF_MEMORY,
    ProverSettings,
)
from bentoml_secure.session.identity import Identity

_LEAST_SECONDS = 60.0
_PATIENCE = 20
"""How many times the estimate a proof may take: others use the machine as well."""


def open_work(
    deployment: Deployment,
    name: str,
    index: int,
    identity: Identity,
    settings: ProverSettings,
) -> SegmentWork:
    """Return what proves one segment, in this process.

    Args:
        deployment: With a proof set-up.
        name: Of the prover.
        index: Of its segment.
        identity: The process's, which is shown to the broker.
        settings: Of the prover.

    Raises:
        SecureError: An altered file, no key, or a proof that this machine has no
            memory for.
    """
    folder = deployment.require_proofs()
    backend = open_backend(folder.manifest.backend)
    # Nobody would verify what another version proves.
    require_backend(folder.manifest, backend)
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.is_sealed:
        # Before there is anything to dump.
        forbid_core_dumps()
        key = _fetch_key(deployment, folder, name, index, identity)
        opened = open_sealed_setup(folder.path, folder.manifest, index, key)
        proving_key = folder.proving_key(
            index, lambda _: (opened.circuit, opened.proving_key)
        )
        secret = order_secret(key)
    else:
        proving_key = folder.proving_key(index)
        secret = read_or_make_order_secret(order_key_file(settings, name))
    setup = folder.manifest.segments[index]
    seconds = estimate(setup.proving_key_bytes).most_cpu_seconds
    return SegmentWork(
        index=index,
        manifest=folder.manifest,
        order_key=OrderKey(secret),
        proving_key=proving_key,
        srs=lambda: folder.srs(index),
        backend=backend,
        limits=Limits(
            memory_bytes=setup.memory_bytes,
            seconds=_LEAST_SECONDS + _PATIENCE * seconds,
            threads=settings.threads,
            background=True,
        ),
    )


def order_key_file(settings: ProverSettings, name: str) -> Path:
    """Return where a prover keeps the order key of a set-up in plain."""
    return settings.folder / f"{name.lower()}.order.key"


def _fetch_key(
    deployment: Deployment,
    folder: ProofFolder,
    name: str,
    index: int,
    identity: Identity,
) -> SegmentKey:
    manifest = folder.manifest
    key_id = require_sealed_setup(folder.path, manifest, index)
    segment = manifest.segments[index].segment
    return fetch_segment_key(
        deployment.broker_url(name, folder.path),
        identity,
        lambda shown: deployment.judge_broker(shown, identity),
        ReleaseRequest(segment=segment, key_id=key_id),
        max_age_seconds=deployment.policy.max_age_seconds,
    ).key


def open_farm(
    core: ProverCore,
    work: SegmentWork,
    deployment: Deployment,
    module: str,
    name: str,
    settings: ProverSettings,
) -> Farm:
    """Return what works on a prover's queue: on this machine, or on a cluster.

    Args:
        core: Signs what comes of it.
        work: Proves.
        deployment: Whose prover it is.
        module: That the service is served from.
        name: Of the prover.
        settings: Of the prover.

    Raises:
        ConfigurationError: A proof takes more memory than there is.
        MissingDependencyError: A cluster is named, and its client is not installed.
    """
    needed = work.limits.memory_bytes
    if settings.cluster is not None:
        # An extra's: only for who names one.
        from bentoml_secure.serving.prover_cluster import cluster_executor

        executor: Executor = cluster_executor(
            deployment, module, name, settings.cluster
        )
        slots, there = settings.slots, settings.memory_bytes or needed * settings.slots
    else:
        executor, slots = Local(work), settings.slots
        # Provers of one host share it: what they take together must be there.
        share = available_memory() // max(len(deployment.provers), 1)
        there = settings.memory_bytes or max(share, min(needed, available_memory()))
    if needed > there:
        raise ConfigurationError(
            f"{name}: a proof takes about {needed >> 20} MiB, and there are "
            f"{there >> 20}.",
            remedy=f"Raise {PROOF_MEMORY}, use a larger machine, or split the model "
            "into more segments.",
        )
    budget = Budget(slots=slots, memory_bytes=there)
    return Farm(core.store, executor, budget, sign=core.sign)
