"""Deployments whose segments are proven: made, asked, and looked at from outside.

What a proof has come to is read where it is kept: in the entry's store of receipts and
orders, and in each prover's store of jobs.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime
import psutil

from bentoml_secure import SecureClient
from bentoml_secure.attestation.appraisal import AppraisalPolicy, parse_policy
from bentoml_secure.attestation.dev_root import POLICY, create_dev_root
from bentoml_secure.attestation.key_document import package_digest
from bentoml_secure.client import Answer
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import UnavailableError
from bentoml_secure.proofs.jobs.job import JobKey, JobStatus, State
from bentoml_secure.proofs.jobs.store import JobStore
from bentoml_secure.proofs.links import Link
from bentoml_secure.receipts.attachments import parse_attachment
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.proofs import PROOF, ProofRecord
from bentoml_secure.receipts.trust import write_trust
from bentoml_secure.scenario import Configuration, parse_scenarios
from bentoml_secure.serving.settings import AUDITORS
from bentoml_secure.signing import MAX_ENVELOPE_BYTES
from bentoml_secure.tensors import Array
from tests.harness import Project, Served, serve
from tests.proof_case import INPUT, OUTPUT, ProofCase, measurements, proof_case
from tests.service.deployments import eventually

HERE = Path(__file__).parent
SERVICE, TARGET = "Proven", "proven:Proven"
SECONDS = 300.0
"""For anything at all, on a machine that is busy; proofs take what is left of it."""
CHILD = "bentoml_secure.proofs.backends.ezkl_child"
PROVEN_FOLDER = Path("models") / "proofs"

_SEEDS = itertools.count(70_000)


def proven_project(
    folder: Path,
    *,
    segments: int = 2,
    replicas: int = 3,
    link: Link = Link.HASHED,
) -> tuple[Project, ProofCase]:
    """Make a project that serves the small network, and its proof set-up."""
    case = proof_case(folder / "owner", segments=segments, link=link)
    project = Project(
        folder=folder / "project",
        model=folder / "owner" / "plan.onnx",
        plan=folder / "project" / "models" / "network",
        dev_root=folder / "project" / "dev-root",
    )
    shutil.copytree(case.folder, project.plan)
    shutil.copytree(case.proofs, project.folder / PROVEN_FOLDER)
    create_dev_root(project.dev_root, now=datetime.now(UTC))
    for name, count in (("proven.py", "replicas=3"), ("proven.toml", "replicas = 3")):
        fewer = count.replace("3", str(replicas))
        text = (HERE / name).read_text().replace(count, fewer)
        if replicas < 2:
            text = text.replace("quorum = 2", "quorum = 1")
        (project.folder / name).write_text(text)
    return project, case


def configuration_of(
    project: Project, case: ProofCase, *, replicas: int = 3, sealed: bool = False
) -> Configuration:
    """Return the configuration that all parties of the deployment hold alike."""
    scenarios = parse_scenarios((project.folder / "proven.toml").read_bytes())
    return Configuration(
        service=SERVICE,
        replicas=replicas,
        segments=len(case.plan.segments),
        scenarios=scenarios,
        policy=policy_of(project).to_json(),
        sealed=sealed,
        proofs=case.manifest.digest,
    )


def policy_of(project: Project) -> AppraisalPolicy:
    """Return the policy of a project's development root."""
    return parse_policy((project.dev_root / POLICY).read_bytes())


def write_proven_trust(
    project: Project,
    case: ProofCase,
    configuration: Configuration,
    *,
    auditors: tuple[str, ...] = (),
) -> Path:
    """Write the trust file of callers who accept the deployment and its proofs."""
    by_name = configuration.scenarios.by_name
    text = write_trust(
        plan_digests=[case.plan.digest],
        config_digests=[configuration.digest],
        package_digests=[package_digest()],
        scenarios={name: scenario.digest for name, scenario in by_name.items()},
        policy=policy_of(project),
        minimum_quorum=min(2, configuration.replicas),
        manifest_signers=[case.manifest.signer_id],
        srs=[case.manifest.srs.digest],
        unsafe_srs=True,
        polycommit_links=case.manifest.link is Link.POLYCOMMIT,
        challenge_auditors=auditors,
    )
    path = project.folder / "trust.toml"
    path.write_text(text)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Proving:
    """A running deployment with provers.

    Attributes:
        entry: Its entry, and all other services beside.
        project: Whose plan it serves.
        case: The plan and its proof set-up.
        trust: Trust file that accepts it.
    """

    entry: Served
    project: Project
    case: ProofCase
    trust: Path

    def client(self, scenario: str) -> SecureClient:
        """Return a client that believes this deployment only."""
        return SecureClient(
            self.entry.url, self.trust, scenario=scenario, timeout=SECONDS
        )

    def ask(self, client: SecureClient) -> tuple[Answer, Array]:
        """Ask something new; return the answer, which is judged, and what was asked."""
        features = measurements(1, seed=next(_SEEDS))[INPUT]
        return client.call("score", {INPUT: features.tolist()}), features

    def expected(self, features: Array) -> Array:
        """Return what the whole model says, in floats."""
        session = onnxruntime.InferenceSession(
            self.project.model, providers=["CPUExecutionProvider"]
        )
        (scores,) = session.run([OUTPUT], {INPUT: features})
        return np.asarray(scores)

    def confirmed(self, client: SecureClient, answer: Answer) -> Answer:
        """Wait until everything that a receipt owes is there, and judge it again.

        An entry that is being started anew is asked again.
        """

        def look() -> Answer | None:
            with contextlib.suppress(UnavailableError):
                found = client.confirm(answer)
                return None if found.is_provisional else found
            return None

        return eventually(look, seconds=SECONDS, what="its proofs are there")

    @property
    def segments(self) -> range:
        """Indices of the plan's segments."""
        return range(len(self.case.plan.segments))

    def prover(self, segment: int) -> str:
        """Return the name of a segment's prover."""
        return f"{SERVICE}Prover{segment}"

    @property
    def state(self) -> Path:
        """Folder of what its processes keep."""
        return self.entry.home / "bentoml_secure"

    def process(self, name: str) -> psutil.Process:
        """Return a service's process, once it has one."""
        return eventually(
            lambda: self.entry.workers().get(name), seconds=SECONDS, what=f"{name} runs"
        )

    def children(self, name: str) -> list[psutil.Process]:
        """Return the processes in which a service proves or verifies now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [p for p in self.process(name).children() if CHILD in _words(p)]
        return []

    @contextlib.contextmanager
    def jobs(self, segment: int) -> Iterator[JobStore]:
        """Open the store of a prover's jobs, beside the prover."""
        name = self.prover(segment)
        url = f"sqlite:///{self.state / name.lower()}.jobs.sqlite"
        store = JobStore(url, queue=f"{name} {self.case.manifest.digest}")
        try:
            yield store
        finally:
            store.close()

    def job(self, receipt_id: str, segment: int, infer: int = 0) -> JobStatus | None:
        """Return how far a prover is with a proof; None where it knows of none."""
        key = JobKey(receipt_id, infer, segment)
        with self.jobs(segment) as store:
            return store.status([key]).get(key)

    def is_in(self, state: State, receipt_id: str, segment: int) -> bool:
        """Tell whether a proof is in a state at its prover."""
        found = self.job(receipt_id, segment)
        return found is not None and found.state is state

    def owed(self, receipt_id: str | None = None) -> int:
        """Return how many proofs are due: of all receipts, or held for one as well."""
        query, given = "SELECT COUNT(*) FROM orders WHERE ", tuple[str, ...]()
        if receipt_id is None:
            query += "deadline IS NOT NULL"
        else:
            query, given = f"{query} receipt_id = ?", (receipt_id,)
        file = self.state / f"{SERVICE.lower()}.sqlite"
        with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection:
            return int(connection.execute(query, given).fetchone()[0])

    def require_each_once(self, answer: Answer) -> None:
        """Require one proof of each segment of each ``infer``, and no order left."""
        count = len(self.segments)
        places = sorted(proven_places(answer.bundle))
        infers = {infer for infer, _ in places}
        assert places == [(i, s) for i in sorted(infers) for s in range(count)], places
        assert self.owed(answer.receipt_id) == 0


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def proven_places(bundle: Bundle) -> list[tuple[int, int]]:
    """Return infer and segment of every proof in a bundle, as they are attached."""
    said = [
        parse_attachment(
            parse_json(envelope.payload, what=PROOF, max_bytes=MAX_ENVELOPE_BYTES)
        )
        for envelope in bundle.attachments
    ]
    return [
        ProofRecord.from_attachment(attachment).place
        for attachment in said
        if attachment.kind == PROOF
    ]


@contextlib.contextmanager
def proving(
    folder: Path,
    *,
    segments: int = 2,
    replicas: int = 3,
    auditors: tuple[str, ...] = (),
    link: Link = Link.HASHED,
) -> Iterator[Proving]:
    """Run a deployment that proves, until the context ends.

    Args:
        folder: Of all that is made.
        segments: Of the plan, 1 to 3.
        replicas: Of each segment, 1 or 3.
        auditors: Key ids of those whose nonces it takes.
        link: How its proofs are linked.
    """
    project, case = proven_project(
        folder, segments=segments, replicas=replicas, link=link
    )
    configuration = configuration_of(project, case, replicas=replicas)
    trust = write_proven_trust(project, case, configuration, auditors=auditors)
    env = {AUDITORS: ",".join(auditors)} if auditors else {}
    home = folder / "home"
    with serve(TARGET, project, home, env=env, ready_seconds=SECONDS) as entry:
        yield Proving(entry=entry, project=project, case=case, trust=trust)
