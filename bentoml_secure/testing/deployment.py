"""A whole deployment in memory: plan, scenario, configuration, entry, runners.

Keys, key documents and evidence are real (of kind ``simulated``, under a root made
here), so what is built on them passes or fails the real verifiers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.dev_chain import make_root
from bentoml_secure.attestation.evidence import Evidence, EvidenceRecord
from bentoml_secure.attestation.key_document import KeyDocument, Role, report_data
from bentoml_secure.attestation.tees.simulated import KIND, VENDOR, SimulatedAttester
from bentoml_secure.digest import (
    Digest,
    digest_bytes,
    digest_file_bytes,
    digest_json,
)
from bentoml_secure.receipts.receipt import Party
from bentoml_secure.receipts.trust import Trust, parse_trust, write_trust
from bentoml_secure.scenario import (
    Configuration,
    Independence,
    Scenario,
    Scenarios,
    prover_name,
    referee_name,
    runner_name,
)
from bentoml_secure.session.identity import Keys
from bentoml_secure.session.suites import HpkeKeys
from bentoml_secure.signing import SigningKey
from bentoml_secure.split.plan import Plan, Runtime, Segment, SegmentFile
from bentoml_secure.statements import format_time
from bentoml_secure.tensors import TensorSpec

if TYPE_CHECKING:
    from bentoml_secure.testing.proof_set_up import ProofSetUp

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
EVIDENCE_AGE = timedelta(seconds=10)
SERVICE = "D"
TOLERANCE = 2e-5

_FEATURES = 4


def key_of(name: str) -> Ed25519PrivateKey:
    """Return the key that follows from a name: anyone can make it."""
    seed = hashlib.sha256(f"bentoml-secure testing key {name}".encode()).digest()
    return Ed25519PrivateKey.from_private_bytes(seed)


def make_plan(segments: int, *, provable: bool = False) -> Plan:
    """Return a plan of ``segments`` parts, the first input read by every one.

    Its tensors are ``x``, ``t1``, ``t2``, ... and ``y``; ``t1`` is an output too where
    there is more than one segment. Its files exist nowhere.

    Args:
        segments: How many.
        provable: Each reads what the one before it made and nothing else, and ``y`` is
            the only output; so all that honest replicas do is to hand ``x`` on.
    """

    def spec(name: str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("batch", _FEATURES))

    names = ["x", *(f"t{index}" for index in range(1, segments)), "y"]
    parts = []
    for index in range(segments):
        file = f"segment-{index}.onnx"
        digest = digest_file_bytes(file.encode())
        reads = dict.fromkeys([names[index]] if provable else [names[index], "x"])
        parts.append(
            Segment(
                file=file,
                files=(SegmentFile(path=file, digest=digest),),
                inputs=tuple(map(spec, reads)),
                outputs=(spec(names[index + 1]),),
                tolerance=TOLERANCE,
            )
        )
    outputs = ("t1", "y") if segments > 1 and not provable else ("y",)
    return Plan(
        model_name="testing",
        model_digest=digest_json(["testing", segments]),
        inputs=(spec("x"),),
        outputs=tuple(map(spec, outputs)),
        runtime=Runtime(version=">=1.20,<2"),
        segments=tuple(parts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """An entry or a runner: its key, its document, what makes its evidence.

    Only a process that answers handshakes has HPKE keys: they are random, and with
    them its document.
    """

    signing: SigningKey
    document: KeyDocument
    attest: Callable[[bytes], Evidence]
    hpke: HpkeKeys | None = None

    @property
    def keys(self) -> Keys:
        """As a handshake takes them."""
        return Keys(self.signing, self.hpke, self.document, self.document.digest)

    @property
    def name(self) -> str:
        """Of the service."""
        return self.document.service

    def party(
        self, nonce: bytes, nonce_issued_at: datetime
    ) -> tuple[Party, EvidenceRecord]:
        """Return fresh evidence over a nonce, and the party as a receipt names it."""
        evidence = self.attest(report_data(nonce, self.document))
        record = EvidenceRecord(evidence=evidence)
        party = Party(
            name=self.name,
            role=self.document.role.value,
            key_document=self.document.digest,
            evidence=record.digest,
            evidence_nonce=nonce.hex(),
            nonce_issued_at=format_time(nonce_issued_at),
        )
        return party, record


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A deployment, and the trust file of a caller who accepts it.

    Attributes:
        plan: Of ``make_plan``.
        scenario: The only one.
        configuration: That all parties hold.
        entry: The entry service.
        runners: By segment, then replica.
        referees: By segment; empty where there are none.
        policy: Accepts simulated evidence under the deployment's root.
        trust_file: TOML that accepts exactly this deployment.
        trust: The same, parsed.
        now: When requests come.
        platforms: Platform id by process name; ``simulated-<name>`` where left out.
        provers: By segment; empty where nothing is proven.
        set_up: Of the proofs, where there are any.
    """

    plan: Plan
    scenario: Scenario
    configuration: Configuration
    entry: Process
    runners: tuple[tuple[Process, ...], ...]
    policy: AppraisalPolicy
    trust_file: str
    trust: Trust
    now: datetime
    platforms: Mapping[str, str]
    referees: tuple[Process, ...] = ()
    provers: tuple[Process, ...] = ()
    set_up: ProofSetUp | None = None

    @property
    def config_digest(self) -> Digest:
        """Of the configuration."""
        return self.configuration.digest

    def voice(self, name: str) -> str:
        """Return a replica's voice, as an honest entry takes it from evidence."""
        if self.scenario.independence is Independence.NONE:
            return name
        if self.scenario.independence is Independence.VENDOR:
            return f"vendor {VENDOR}"
        return f"platform {self.platforms.get(name, f'simulated-{name}')}"

    @property
    def processes(self) -> tuple[Process, ...]:
        """The entry, then the runners, then the referees, each name once."""
        runners = (runner for row in (*self.runners, self.referees) for runner in row)
        return tuple({p.name: p for p in (self.entry, *runners)}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What all processes of a deployment stand on."""

    plan: Plan
    scenario: Scenario
    package: Digest
    root: bytes
    policy: AppraisalPolicy
    config_digest: Digest
    now: datetime
    platforms: Mapping[str, str]
    recorded: Mapping[str, Evidence]
    set_up: ProofSetUp | None

    def process(
        self,
        name: str,
        role: Role,
        segment: Digest | None,
        hpke: HpkeKeys | None = None,
    ) -> Process:
        signing = SigningKey(key_of(name))
        document = KeyDocument(
            role=role,
            service=name,
            segment=segment,
            plan=self.plan.digest,
            package=self.package,
            config_digest=self.config_digest,
            hpke=() if hpke is None else hpke.public,
            ed25519=signing.public.raw.hex(),
            platform=KIND,
            boot_id=hashlib.sha256(name.encode()).hexdigest()[:32],
            not_after=self.now + timedelta(days=7),
        )
        return Process(
            signing=signing, document=document, attest=self._attest(name), hpke=hpke
        )

    def _attest(self, name: str) -> Callable[[bytes], Evidence]:
        if name in self.recorded:
            return lambda _: self.recorded[name]
        return SimulatedAttester(
            key_of("root"),
            self.root,
            platform_id=self.platforms.get(name, f"simulated-{name}"),
            measurement=self.package.partition(":")[2],
            clock=lambda: self.now - EVIDENCE_AGE,
        ).attest

    def trust_file(self) -> str:
        return write_trust(
            plan_digests=[self.plan.digest],
            config_digests=[self.config_digest],
            package_digests=[self.package],
            scenarios={self.scenario.name: self.scenario.digest},
            policy=self.policy,
            minimum_quorum=self.scenario.quorum,
            **({} if self.set_up is None else self.set_up.trusted()),
        )


def _policy(
    root: bytes, package: Digest, kinds: Mapping[str, Mapping[str, Any]]
) -> AppraisalPolicy:
    return AppraisalPolicy.from_table(
        {
            "version": 1,
            "max_age_seconds": 300,
            "allow": [KIND, *kinds],
            **kinds,
            KIND: {
                "roots": [digest_bytes(root)],
                "measurement": [package.partition(":")[2]],
            },
        }
    )


def build_deployment(
    *,
    segments: int = 2,
    replicas: int = 3,
    quorum: int = 2,
    now: datetime = NOW,
    platforms: Mapping[str, str] | None = None,
    package: Digest | None = None,
    root: bytes | None = None,
    recorded: Mapping[str, Evidence] | None = None,
    independence: Independence = Independence.NONE,
    sessions: bool = False,
    audit_rate: float | None = None,
    committee: int | None = None,
    terms: Mapping[str, Any] | None = None,
    kinds: Mapping[str, Mapping[str, Any]] | None = None,
    set_up: ProofSetUp | None = None,
) -> Deployment:
    """Make a deployment of ``segments`` times ``replicas`` runners.

    Args:
        segments: Of the plan.
        replicas: Of each segment.
        quorum: Of the scenario.
        now: When requests come; evidence is a little older.
        platforms: Platform id by process name; ``simulated-<name>`` where left out.
        package: Digest that all key documents name; a made-up one by default.
        root: DER of the root of ``key_of("root")``; a new one by default.
        recorded: Evidence by process name, instead of fresh evidence.
        independence: Of the scenario.
        sessions: The entry answers handshakes.
        audit_rate: Of the scenario; each segment then has a referee.
        committee: Seats of the scenario; by default every replica has one.
        terms: Further fields of the scenario.
        kinds: Tables of the policy for further kinds that it allows.
        set_up: Of the proofs of ``make_plan(segments, provable=True)``: each segment
            then has a prover.
    """
    root = root or make_root(key_of("root"), now=now - timedelta(days=30))
    package = package or digest_json("a release")
    policy = _policy(root, package, kinds or {})
    scenario = Scenario(
        name="general",
        replicas=committee or replicas,
        quorum=quorum,
        deadline_ms=5000,
        grace_ms=200,
        evidence_max_age_seconds=300,
        independence=independence,
        audit_rate=audit_rate or 0.0,
        **(terms or {}),
    )
    configuration = Configuration(
        service=SERVICE,
        replicas=replicas,
        segments=segments,
        scenarios=Scenarios(minimum="general", by_name={"general": scenario}),
        policy=policy.to_json(),
        referees=audit_rate is not None,
        proofs=None if set_up is None else set_up.manifest.digest,
    )
    ground = _Ground(
        plan=make_plan(segments, provable=set_up is not None),
        scenario=scenario,
        package=package,
        root=root,
        policy=policy,
        config_digest=configuration.digest,
        now=now,
        platforms=platforms or {},
        recorded=recorded or {},
        set_up=set_up,
    )
    trust_file = ground.trust_file()
    return Deployment(
        plan=ground.plan,
        scenario=scenario,
        configuration=configuration,
        entry=ground.process(
            SERVICE, Role.ENTRY, None, HpkeKeys.generate() if sessions else None
        ),
        runners=tuple(
            tuple(
                ground.process(
                    runner_name(SERVICE, index, replica),
                    Role.RUNNER,
                    segment.identity,
                )
                for replica in range(replicas)
            )
            for index, segment in enumerate(ground.plan.segments)
        ),
        referees=tuple(
            ground.process(referee_name(SERVICE, index), Role.RUNNER, segment.identity)
            for index, segment in enumerate(ground.plan.segments)
            if configuration.referees
        ),
        provers=tuple(
            ground.process(prover_name(SERVICE, index), Role.PROVER, segment.identity)
            for index, segment in enumerate(ground.plan.segments)
            if set_up is not None
        ),
        set_up=set_up,
        policy=policy,
        trust_file=trust_file,
        trust=parse_trust(trust_file.encode()),
        now=now,
        platforms=platforms or {},
    )
