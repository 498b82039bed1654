"""What one decorated class stands for: plan, scenarios, names, and how parts start.

Made at import, cheaply and alike in every process (it reads plan.json and the
scenarios file only). Keys, models, sockets and databases are made when a process
starts to serve its part.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from bentoml_secure.attestation.appraisal import AppraisalPolicy, parse_policy
from bentoml_secure.attestation.attesters import open_attester, open_gpu_attester
from bentoml_secure.attestation.evidence import AttestationResult
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.digest import SALT_BYTES, Digest, salted_hasher
from bentoml_secure.errors import AttestationError, ConfigurationError
from bentoml_secure.keys.release import fetch_segment_key, require_broker
from bentoml_secure.keys.sealed_proofs import require_sealed_setup
from bentoml_secure.proofs.backends import open_backend
from bentoml_secure.proofs.folder import ProofFolder
from bentoml_secure.scenario import (
    Configuration,
    Mode,
    Scenarios,
    Topology,
    parse_scenarios,
)
from bentoml_secure.serving.held import held_for
from bentoml_secure.serving.runner import RunnerCore, RunSegment
from bentoml_secure.serving.settings import (
    BROKER,
    Settings,
    from_environment,
    own_environment,
    read_runtime,
    read_settings,
)
from bentoml_secure.serving.weights import Weights, read_signed
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.judging import judge, require_same_deployment
from bentoml_secure.session.keys import Shown
from bentoml_secure.session.responders import Responder
from bentoml_secure.split.plan import DEFAULT_RULE, Plan
from bentoml_secure.split.runtime import LoadedSegment
from bentoml_secure.split.runtimes import DEFAULT, RuntimeChoice
from bentoml_secure.statements import utc_now


def find(path: str | Path, module: str) -> Path:
    """Return a file or folder named relative to the service's project.

    Looked for in the working folder, then beside the module that names it and in the
    folders above it: in a built Bento the project lies under ``src``.

    Raises:
        ConfigurationError: It is in none of them.
    """
    wanted = Path(path)
    if wanted.is_absolute():
        candidates = [wanted]
    else:
        file = getattr(sys.modules.get(module), "__file__", None)
        folders = [Path.cwd()]
        if file is not None:
            package = module.count(".") + 1
            folders += list(Path(file).resolve().parents)[:package]
        candidates = [folder / wanted for folder in folders]
    for candidate in candidates:
        if candidate.exists():
            return candidate.resolve()
    raise ConfigurationError(
        f"{path}: not found in {', '.join(str(c.parent) for c in candidates)}.",
        remedy="Make it, correct the path, or add it to include of bentofile.yaml.",
    )


def _read(what: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{what}: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One decorated class.

    Attributes:
        name: Of the entry service.
        weights: The plan's folder.
        replicas: Of each segment.
        referees: Whether each segment has one beside.
        scenarios: As offered.
        threads: ONNX Runtime's, per runner.
        in_process: Runners live in the entry's process: tests only.
        max_message_bytes: Cap on an exchange's body.
        proofs: The proof set-up; None where nothing is proven.
    """

    name: str
    weights: Weights
    replicas: int
    referees: bool
    scenarios: Scenarios
    threads: int
    in_process: bool
    max_message_bytes: int
    proofs: ProofFolder | None = None
    _loadable: set[tuple[int, RuntimeChoice]] = field(default_factory=set)

    @classmethod
    def read(
        cls,
        *,
        name: str,
        plan: str | Path,
        replicas: int,
        scenarios: str | Path,
        threads: int,
        in_process: bool,
        max_message_bytes: int,
        module: str,
        referees: bool = False,
        signer: str | Path | None = None,
        signature: str | Path | None = None,
        proofs: str | Path | None = None,
    ) -> Deployment:
        """Read plan.json, the scenarios file, and the manifest of a proof set-up.

        Raises:
            ConfigurationError: A file is not there or not in order.
            MalformedInputError: plan.json is not a plan.
            CheckFailedError: plan.json is not what the signer signed.
        """
        folder = find(plan, module)
        signed = None
        if signer is not None:
            where = None if signature is None else find(signature, module)
            signed = read_signed(folder, find(signer, module), where)
        elif signature is not None:
            raise ConfigurationError(
                "signature: got one, and no signer.",
                remedy="Name the only key that is accepted, with signer=.",
            )
        if not 1 <= replicas <= 64:
            raise ConfigurationError(f"replicas: got {replicas}, want 1 to 64")
        weights = Weights.read(folder, signed)
        return cls(
            name=name,
            weights=weights,
            replicas=replicas,
            referees=referees,
            scenarios=parse_scenarios(_read("scenarios", find(scenarios, module))),
            threads=threads,
            in_process=in_process,
            max_message_bytes=max_message_bytes,
            proofs=_read_proofs(proofs, module, weights.plan, in_process=in_process),
        )

    @property
    def folder(self) -> Path:
        """The plan's."""
        return self.weights.folder

    @property
    def plan(self) -> Plan:
        """As plan.json says."""
        return self.weights.plan

    @property
    def topology(self) -> Topology:
        """Which services it consists of."""
        return Topology(
            service=self.name,
            segments=len(self.plan.segments),
            replicas=self.replicas,
            referees=self.referees,
            provers=self.proofs is not None,
        )

    @property
    def runners(self) -> Mapping[str, int]:
        """The segment of each runner by name, referees included."""
        topology = self.topology
        return {
            name: segment
            for segment in range(topology.segments)
            for name in topology.runner_names(segment)
        }

    @property
    def provers(self) -> Mapping[str, int]:
        """The segment of each prover by name; none where nothing is proven."""
        topology = self.topology
        names = map(topology.prover_name, range(topology.segments))
        return {name: index for index, name in enumerate(names) if name is not None}

    @functools.cached_property
    def settings(self) -> Settings:
        """This process's settings."""
        return from_environment(self.name)

    @functools.cached_property
    def policy(self) -> AppraisalPolicy:
        """Who may be a runner."""
        return parse_policy(_read("policy", self.settings.policy))

    @property
    def evidence_seconds(self) -> int:
        """Age up to which evidence is of use to every scenario."""
        ages = [s.evidence_max_age_seconds for s in self.scenarios.by_name.values()]
        return min(self.policy.max_age_seconds, *ages)

    @functools.cached_property
    def configuration(self) -> Configuration:
        """What all parties of the deployment hold alike.

        Raises:
            MissingDependencyError: A scenario's commitments cannot be made here.
        """
        for scenario in self.scenarios.by_name.values():
            salted_hasher(scenario.commitments, bytes(SALT_BYTES))
        return Configuration(
            service=self.name,
            replicas=self.replicas,
            segments=len(self.plan.segments),
            referees=self.referees,
            scenarios=self.scenarios,
            policy=self.policy.to_json(),
            sealed=self.weights.sealed,
            signer=self.weights.signer,
            proofs=None if self.proofs is None else self.proofs.manifest.digest,
        )

    def identify(self, role: Role, service: str, segment: Digest | None) -> Identity:
        """Make this process's keys, with the attester that it was configured with."""
        environment = own_environment(os.environ, service)
        settings = read_settings(environment, service=service)
        return Identity(
            open_attester(settings.attester, environment, clock=utc_now),
            role=role,
            service=service,
            segment=segment,
            plan=self.plan.digest,
            config_digest=self.configuration.digest,
            gpu=open_gpu_attester(environment, clock=utc_now),
            folder=settings.endorsements,
            key_lifetime=settings.key_lifetime,
            evidence_age=timedelta(seconds=self.policy.max_age_seconds),
        )

    def identify_runner(self, name: str, segment: int) -> Identity:
        """Make the keys of one replica's process."""
        return self.identify(Role.RUNNER, name, self.plan.segments[segment].identity)

    def load(
        self, runner: str, segment: int, identity: Callable[[], Identity]
    ) -> LoadedSegment:
        """Load one segment; a sealed one with the key that the broker releases.

        Args:
            runner: Name of its service: settings may be its own.
            segment: Which, from 0.
            identity: Returns the runner's, which is shown to the broker.

        Raises:
            SecureError: No such segment, a runtime that the plan does not permit, an
                altered file, or no key.
        """
        weights, threads = self.weights, self.threads
        choice = self.runtime_of(runner)
        if not weights.sealed:
            return weights.load(segment, threads=threads, choice=choice)
        own = identity()
        released = fetch_segment_key(
            self.broker_url(runner),
            own,
            lambda shown: self.judge_broker(shown, own),
            weights.request(segment),
            max_age_seconds=self.policy.max_age_seconds,
        )
        return weights.open(segment, released.key, threads=threads, choice=choice)

    def runtime_of(self, runner: str) -> RuntimeChoice:
        """Return what a runner runs its segment on.

        Raises:
            ConfigurationError: Its setting names no runtime.
        """
        return read_runtime(own_environment(os.environ, runner))

    def broker_url(self, runner: str, sealed: Path | None = None) -> str:
        """Return the URL of the broker that a runner asks for its key.

        Args:
            runner: Name of its service.
            sealed: Folder of what the key opens; the plan's if left out.

        Raises:
            ConfigurationError: None is configured.
        """
        environment = own_environment(os.environ, runner)
        url = read_settings(environment, service=runner).broker
        if url is None:
            raise ConfigurationError(
                f"{runner}: what is in {sealed or self.folder} is sealed, and no broker"
                " is configured to release its keys.",
                remedy=f"Set {BROKER}=URL, see docs/sealed-models.md.",
            )
        return url

    def judge_broker(self, shown: Shown, own: Identity) -> AttestationResult:
        """Return what is accepted of a broker's evidence.

        Args:
            shown: By the broker.
            own: Of the process that judges.

        Raises:
            SecureError: No broker of this release, or evidence that is not acceptable.
        """
        require_broker(shown.document, own.keys.document)
        return judge(shown, self.policy, now=utc_now(), endorsements=own.endorsements)

    def runner(
        self,
        name: str,
        segment: int,
        run: RunSegment,
        identity: Identity | None = None,
    ) -> RunnerCore:
        """Make the runner of one replica.

        Args:
            name: Of its service.
            segment: Which segment, from 0.
            run: What runs the segment.
            identity: The process's, where it has shown one already.
        """
        entry, age = self.plan.segments[segment], self.policy.max_age_seconds
        identity = identity or self.identify_runner(name, segment)
        responder = Responder(
            identity,
            lambda shown: self.judge_entry(shown, identity),
            max_age_seconds=age,
            clock=utc_now,
        )
        return RunnerCore(
            entry,
            self.plan.digest,
            run,
            identity,
            responder,
            allows_plain=any(not s.sealed for s in self.scenarios.by_name.values()),
            held=held_for(self.scenarios),
        )

    def judge_entry(self, shown: Shown, own: Identity) -> AttestationResult:
        """Return what is accepted of the entry's evidence, by who serves it.

        Args:
            shown: By the caller.
            own: Of the process that judges.

        Raises:
            SecureError: Another deployment's, or evidence that is not acceptable.
        """
        # The configuration holds the policy: an entry that was started with another
        # one, by whoever owns its host, is not this deployment's.
        document = shown.document
        require_same_deployment(document, own.keys.document, role=Role.ENTRY)
        if document.service != self.name:
            raise AttestationError(
                f"entry service: got {document.service}, want {self.name}"
            )
        return judge(shown, self.policy, now=utc_now(), endorsements=own.endorsements)

    def require_rules(self) -> None:
        """Refuse to start an entry that cannot compare answers.

        Raises:
            UnknownKindError: A segment's rule is nobody's.
            ConfigurationError: Chains are to be compared, and segments have several
                rules: deviations are added up along them, so all are of one unit.
        """
        for segment in self.plan.segments:
            load_rule(segment.rule)
        modes = {scenario.mode for scenario in self.scenarios.by_name.values()}
        rules = {segment.rule for segment in self.plan.segments}
        if Mode.END_TO_END in modes and rules != {DEFAULT_RULE}:
            raise ConfigurationError(
                f"mode {Mode.END_TO_END.value!r}: got segments compared by "
                f"{', '.join(sorted(rules))}, want all by {DEFAULT_RULE}.",
                remedy=f"Use mode {Mode.LOCK_STEP.value!r}, or calibrate the plan "
                "anew with that rule.",
            )

    def require_settings(self, service: str) -> None:
        """Refuse to start a process whose settings are not in order.

        Raises:
            ConfigurationError: What they name is missing or not in order.
        """
        read_settings(own_environment(os.environ, service), service=service)

    def require_segment(self, index: int, runner: str | None = None) -> None:
        """Refuse to start a runner whose segment does not load; tried once.

        Args:
            index: Which segment, from 0.
            runner: Its name; on the runtime that it was told the segment is tried, on
                the plan's own if left out.

        Raises:
            SecureError: Wrong runtime, a missing or altered file, or no segment.
        """
        choice = DEFAULT if runner is None else self.runtime_of(runner)
        if (index, choice) not in self._loadable:
            if not self._loadable:
                self.weights.require_folder()
            self.weights.require_segment(index, choice=choice)
            self._loadable.add((index, choice))

    def require_proofs(self) -> ProofFolder:
        """Return the proof set-up.

        Raises:
            ConfigurationError: There is none.
        """
        if self.proofs is None:
            raise ConfigurationError(
                f"{self.name}: has no proof set-up.",
                remedy="Name one with proofs= of the service.",
            )
        return self.proofs

    def require_prover(self, name: str, index: int) -> None:
        """Refuse to start a prover whose set-up does not open, as far as that shows.

        Args:
            name: Of the prover.
            index: Of its segment.

        Raises:
            SecureError: An altered or missing file, no broker where the set-up is
                sealed, or a proof that this machine has no memory for.
        """
        folder = self.require_proofs()
        manifest = folder.manifest
        if folder.is_sealed:
            require_sealed_setup(folder.path, manifest, index)
            self.broker_url(name, folder.path)
            folder.verification_key(index)
        else:
            folder.proving_key(index)
        folder.srs(index)
        open_backend(manifest.backend)

    def require_urls(self, urls: Mapping[str, str | None]) -> None:
        """Refuse to start where BentoML would build runners inside the entry.

        Raises:
            ConfigurationError: A replica has no URL, and ``in_process`` was not asked.
        """
        missing = [name for name, url in urls.items() if not url]
        if missing and not self.in_process:
            raise ConfigurationError(
                f"{self.name}: no URL for {', '.join(missing):.300}; BentoML would "
                "build these segments inside the entry, which then sees all weights.",
                remedy=(
                    "Start with `bentoml serve`, or name each replica with --depends "
                    "NAME=URL; in tests ask for in_process=True."
                ),
            )


def refuse_workers(options: Mapping[str, object], who: str) -> None:
    """Refuse more than one worker: keys and replay windows live in one process.

    Raises:
        ConfigurationError: ``workers`` is anything but 1.
    """
    if options.get("workers", 1) != 1:
        raise ConfigurationError(
            f"{who} workers: got {options['workers']!r}, want 1.",
            remedy="Keys and sessions live in one process; scale by replicas.",
        )


def _read_proofs(
    proofs: str | Path | None, module: str, plan: Plan, *, in_process: bool
) -> ProofFolder | None:
    if proofs is None:
        return None
    if in_process:
        raise ConfigurationError(
            "proofs: got a proof set-up beside in_process=True.",
            remedy="Provers run in services of their own: leave out in_process.",
        )
    return ProofFolder.read(find(proofs, module), plan)
