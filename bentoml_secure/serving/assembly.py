"""From a deployment to its running entry: peers, engine, desk, files."""

from __future__ import annotations

from collections.abc import Mapping

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.consensus.ledger import Ledger
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.backends import open_backend
from bentoml_secure.proofs.linking import require_backend
from bentoml_secure.receipts.keeping import ReceiptStore
from bentoml_secure.receipts.store import SqliteReceiptStore
from bentoml_secure.serving.channel import Channel, HttpChannel, LocalChannel
from bentoml_secure.serving.deployment import Deployment
from bentoml_secure.serving.engine import Engine
from bentoml_secure.serving.entry import Entry
from bentoml_secure.serving.peers import Peer
from bentoml_secure.serving.proof_desk import ProofDesk
from bentoml_secure.serving.proving import EntryProving
from bentoml_secure.serving.runner import RunnerCore
from bentoml_secure.serving.settings import REPUTATION, STORE
from bentoml_secure.serving.standing import Standing
from bentoml_secure.serving.trials import Examiner, Trials


def assemble_entry(
    deployment: Deployment, urls: Mapping[str, str], local: Mapping[str, RunnerCore]
) -> Entry:
    """Make the entry of this process.

    Args:
        deployment: Whose.
        urls: Of each runner and prover by name; of none that is local.
        local: Runners in this process by name.

    Raises:
        SecureError: A file or setting is missing or not in order.
    """
    identity = deployment.identify(Role.ENTRY, deployment.name, None)
    topology, plan = deployment.topology, deployment.plan

    def peer(name: str, index: int, channel: Channel, role: Role) -> Peer:
        """Return one other process of the deployment, as the entry knows it."""
        return Peer(
            name,
            index,
            plan.segments[index],
            channel,
            policy=deployment.policy,
            own=identity,
            max_age_seconds=deployment.evidence_seconds,
            role=role,
        )

    def over_http(name: str) -> HttpChannel:
        """Return how a process of its own is reached."""
        most = deployment.max_message_bytes
        return HttpChannel(urls[name], max_message_bytes=most)

    peers = {}
    for name, index in deployment.runners.items():
        channel = LocalChannel(local[name]) if name in local else over_http(name)
        peers[name] = peer(name, index, channel, Role.RUNNER)
    segments = range(topology.segments)
    deployment.require_rules()
    _make_folders(deployment)
    trials = None
    if (path := deployment.settings.trials) is not None:
        trials = Trials.read(path, plan)
    standing = Standing(
        Ledger(deployment.settings.reputation),
        [topology.replica_names(index) for index in segments],
        has_trials=trials is not None,
    )
    store = SqliteReceiptStore(deployment.settings.store)
    desk = None
    if deployment.proofs is not None:
        provers = []
        for name, index in deployment.provers.items():
            reached = over_http(name)
            provers.append((peer(name, index, reached, Role.PROVER), reached))
        desk = _desk(deployment, provers, store)
    engine = Engine(
        plan,
        [[peers[name] for name in topology.replica_names(i)] for i in segments],
        [peers[n] for i in segments if (n := topology.referee_name(i)) is not None],
        standing,
        proving=None if desk is None else EntryProving(desk),
    )
    return Entry(
        deployment.configuration,
        identity,
        engine,
        store,
        max_age_seconds=deployment.evidence_seconds,
        keep_salts=deployment.settings.salt_token is not None,
        examiner=_examiner(deployment, engine, standing, trials),
        desk=desk,
        auditors=deployment.settings.auditors,
    )


def _desk(
    deployment: Deployment,
    provers: list[tuple[Peer, HttpChannel]],
    store: ReceiptStore,
) -> ProofDesk:
    folder = deployment.proofs
    if folder is None:
        raise ConfigurationError("proofs: the deployment has no proof set-up")
    backend = open_backend(folder.manifest.backend)
    # What this entry attaches, callers verify with the manifest's version.
    require_backend(folder.manifest, backend)
    return ProofDesk(
        provers,
        folder.verification_keys(),
        folder.verification_keys_document(),
        backend,
        store,
    )


def _make_folders(deployment: Deployment) -> None:
    for variable, path in (
        (STORE, deployment.settings.store),
        (REPUTATION, deployment.settings.reputation),
    ):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"{path}: its folder cannot be made: {error}.",
                remedy=f"Name a file with {variable} in a folder that can be written.",
            ) from error


def _examiner(
    deployment: Deployment, engine: Engine, standing: Standing, trials: Trials | None
) -> Examiner | None:
    if trials is None:
        return None
    scenarios = deployment.scenarios
    scenario = scenarios.by_name[scenarios.minimum]
    return Examiner(
        standing,
        trials,
        lambda name, index, inputs: engine.examine(scenario, name, index, inputs),
        distance=lambda index, a, b: engine.lockstep.distances[index](a, b),
        tolerances=[segment.tolerance for segment in deployment.plan.segments],
    )
