"""Scenarios: what one request must carry.

A scenario is a TOML table with a name. The caller asks for one by name and gets that
or a refusal; its digest stands in every receipt.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bentoml_secure.consensus.seating import ESCALATION_STEP
from bentoml_secure.digest import Digest, Scheme, digest_json
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.scenario.demands import Independence, Mode, Proving
from bentoml_secure.scenario.reading import (
    OTHERS,
    read_choice,
    read_counts,
    read_flag,
    read_independence,
    read_placement,
    read_share,
)

MAX_SCENARIO_BYTES = 64 * 1024

_BOUNDS: Mapping[str, tuple[int, int]] = {
    "replicas": (1, 64),
    "quorum": (1, 64),
    "deadline_ms": (1, 3_600_000),
    "grace_ms": (0, 60_000),
    "evidence_max_age_seconds": (1, 86_400),
    "spares": (0, 8),
    "escalation": (0, 4),
    "proof_deadline_seconds": (1, 86_400),
    "epoch_seconds": (1, 86_400),
}
# What a file may leave out, and what it then says.
_DEFAULTS: Mapping[str, Any] = {
    "sealed": True,
    "independence": "none",
    "placement": {},
    "spares": 0,
    "escalation": 0,
    "referee": False,
    "mode": "lock-step",
    "commit_reveal": False,
    "audit_rate": 0.0,
    "proof": "none",
    "proof_deadline_seconds": 600,
    "proof_wait": False,
    "serve_proven": False,
    "challenge_rate": 0.0,
    "epoch_seconds": 60,
    "commitments": "hmac-sha256",
}
_FLAGS = ("sealed", "referee", "commit_reveal", "proof_wait", "serve_proven")
_SHARES = ("audit_rate", "challenge_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What one request must carry.

    Attributes:
        name: The table's name.
        replicas: Committee size per segment, n.
        quorum: Votes that must agree; more than half of ``replicas``.
        deadline_ms: Per segment: no quorum by then is a refusal. Milliseconds.
        grace_ms: How long votes are still collected after a decision. Milliseconds.
        evidence_max_age_seconds: Evidence older than this serves no request.
        sealed: Whether tensors travel sealed between entry and runners.
        independence: What agreeing replicas must not share, or they count once.
        placement: Kinds of evidence (TEE classes) by segment, "0", "1" and so on, or
            "*" for the segments not named. Who shows another kind may not run that
            segment. A segment without an entry is open to every kind that the
            appraisal policy allows.
        spares: Replicas beyond the committee that may take the seats of those that
            are out, failed or slow. A skip for each stands in the receipt: the more
            there may be, the more an entry could choose.
        escalation: How often two more replicas are asked where no quorum agrees.
        referee: Whether the segment's referee decides where no quorum agrees after
            that, and says who was wrong. Its word alone is then believed.
        mode: Where replicas are compared.
        commit_reveal: Whether replicas commit to their answers before any shows one.
        audit_rate: Share of requests that the referees recompute after the answer.
        proof: Which requests are proven in zero knowledge: none, those that are
            challenged after their epoch was committed to, or every one.
        proof_deadline_seconds: After the answer, or after the challenge: a proof that
            is not there by then fails the receipt.
        proof_wait: Whether the answer waits for its proofs. Else it is provisional
            until they are there.
        serve_proven: Whether the answer is the proven output itself, in place of the
            one that the replicas agreed on.
        challenge_rate: Share of an epoch's requests that are challenged.
        epoch_seconds: How long requests are gathered before they are committed to.
        commitments: How bodies and tensors are committed to. BLAKE3 takes a third of
            the time; HMAC-SHA256 is of FIPS 198.
        digest: By which receipts and trust files name the scenario.
    """

    name: str
    replicas: int
    quorum: int
    deadline_ms: int
    grace_ms: int
    evidence_max_age_seconds: int
    sealed: bool = True
    independence: Independence = Independence.NONE
    placement: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    spares: int = 0
    escalation: int = 0
    referee: bool = False
    mode: Mode = Mode.LOCK_STEP
    commit_reveal: bool = False
    audit_rate: float = 0.0
    proof: Proving = Proving.NONE
    proof_deadline_seconds: int = 600
    proof_wait: bool = False
    serve_proven: bool = False
    challenge_rate: float = 0.0
    epoch_seconds: int = 60
    commitments: Scheme = Scheme.HMAC_SHA256
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # One spelling of a set, and one digest.
        placed = {key: tuple(sorted(kinds)) for key, kinds in self.placement.items()}
        object.__setattr__(self, "placement", placed)
        object.__setattr__(self, "digest", digest_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return the document whose digest receipts carry."""
        return {
            "name": self.name,
            **{name: getattr(self, name) for name in (*_BOUNDS, *_FLAGS, *_SHARES)},
            "independence": self.independence.value,
            "placement": {key: list(kinds) for key, kinds in self.placement.items()},
            "mode": self.mode.value,
            "proof": self.proof.value,
            "commitments": self.commitments.value,
        }

    @classmethod
    def from_json(cls, document: object) -> Scenario:
        """Parse a scenario's document; what has a default may be left out.

        Raises:
            ConfigurationError: A field is missing, unknown or out of range.
        """
        if not isinstance(document, dict) or not isinstance(document.get("name"), str):
            raise ConfigurationError("scenario: want a table with a name")
        name = document["name"]
        what = f"scenario {name!r:.60}"
        fields = {**_DEFAULTS, **document}
        del fields["name"]
        known = {*_BOUNDS, *_DEFAULTS}
        if fields.keys() != known:
            odd = sorted(fields.keys() ^ known)
            raise ConfigurationError(
                f"{what}: missing or unknown {', '.join(odd):.200}; want exactly "
                f"{', '.join(n for n in _BOUNDS if n not in _DEFAULTS)}, and where "
                f"wanted {', '.join(_DEFAULTS)}."
            )
        plain: dict[str, Any] = {
            **read_counts(fields, _BOUNDS, what=what),
            **{n: read_flag(fields[n], what=f"{what} {n}") for n in _FLAGS},
            **{n: read_share(fields[n], what=f"{what} {n}") for n in _SHARES},
        }
        scenario = cls(
            name=name,
            **plain,
            independence=read_independence(fields["independence"], what=what),
            placement=read_placement(fields["placement"], what=f"{what} placement"),
            mode=read_choice(fields["mode"], Mode, what=f"{what} mode"),
            proof=read_choice(fields["proof"], Proving, what=f"{what} proof"),
            commitments=read_choice(
                fields["commitments"], Scheme, what=f"{what} commitments"
            ),
        )
        _require_majority(scenario, what)
        _require_end_to_end(scenario, what)
        _require_proving(scenario, what)
        return scenario

    @property
    def most_replicas(self) -> int:
        """How many replicas of a segment may have a seat, escalations included."""
        return self.replicas + ESCALATION_STEP * self.escalation

    def kinds(self, segment: int) -> tuple[str, ...] | None:
        """Return the kinds that may run a segment; None where any may."""
        return self._placed(str(segment))

    def _placed(self, key: str) -> tuple[str, ...] | None:
        return self.placement.get(key, self.placement.get(OTHERS))

    def weaker_than(self, minimum: Scenario) -> list[str]:
        """Return the fields in which this scenario demands less than ``minimum``."""
        more = ("replicas", "quorum")
        weaker = [f for f in more if getattr(self, f) < getattr(minimum, f)]
        if self.evidence_max_age_seconds > minimum.evidence_max_age_seconds:
            weaker.append("evidence_max_age_seconds")
        if self.audit_rate < minimum.audit_rate:
            weaker.append("audit_rate")
        weaker += self._proves_less(minimum)
        for name in ("sealed", "commit_reveal", "proof_wait", "serve_proven"):
            if getattr(minimum, name) and not getattr(self, name):
                weaker.append(name)
        # What lets more of the choice, or a verdict, rest with one party.
        for name in ("spares", "escalation"):
            if getattr(self, name) > getattr(minimum, name):
                weaker.append(name)
        if self.referee and not minimum.referee:
            weaker.append("referee")
        if self.mode is not minimum.mode and self.mode is Mode.END_TO_END:
            weaker.append("mode")
        if self.independence.weaker_than(minimum.independence):
            weaker.append("independence")
        if self._places_wider_than(minimum):
            weaker.append("placement")
        return weaker

    def _proves_less(self, minimum: Scenario) -> list[str]:
        if self.proof.weaker_than(minimum.proof):
            return ["proof"]
        slower = []
        if minimum.proof is not Proving.NONE:
            slower.append("proof_deadline_seconds")
        rarer = False
        if self.proof is minimum.proof is Proving.CHALLENGE:
            slower.append("epoch_seconds")
            rarer = self.challenge_rate < minimum.challenge_rate
        weaker = [n for n in slower if getattr(self, n) > getattr(minimum, n)]
        return [*weaker, *(["challenge_rate"] if rarer else [])]

    def _places_wider_than(self, minimum: Scenario) -> bool:
        for key in {OTHERS, *self.placement, *minimum.placement}:
            own, least = self._placed(key), minimum._placed(key)
            if least is not None and (own is None or not set(own) <= set(least)):
                return True
        return False


def _require_majority(scenario: Scenario, what: str) -> None:
    if not scenario.replicas // 2 < scenario.quorum <= scenario.replicas:
        raise ConfigurationError(
            f"{what} quorum: got {scenario.quorum}, want more than "
            f"half of {scenario.replicas} replicas.",
            remedy="With n = 2f+1 replicas the quorum is f+1.",
        )


def _require_proving(scenario: Scenario, what: str) -> None:
    """Refuse what means nothing beside the proofs that are asked for."""
    for name, asked, want in (
        ("proof_wait", scenario.proof_wait, Proving.EVERY),
        ("serve_proven", scenario.serve_proven, Proving.EVERY),
        ("challenge_rate", scenario.challenge_rate > 0, Proving.CHALLENGE),
    ):
        if asked and scenario.proof is not want:
            raise ConfigurationError(
                f"{what} {name}: got it beside proof {scenario.proof.value!r}, want it "
                f"with proof {want.value!r} only.",
                remedy=f"Leave out {name}, or say proof = {want.value!r}.",
            )
    if scenario.proof is Proving.CHALLENGE and not scenario.challenge_rate:
        raise ConfigurationError(
            f"{what} challenge_rate: got 0 beside proof 'challenge', want a share.",
            remedy="Say which share of the requests is challenged.",
        )


def _require_end_to_end(scenario: Scenario, what: str) -> None:
    """Refuse what can only be had where every segment is compared."""
    if scenario.mode is Mode.LOCK_STEP:
        return
    for name, off in (
        ("spares", not scenario.spares),
        ("escalation", not scenario.escalation),
        ("commit_reveal", not scenario.commit_reveal),
        ("independence", scenario.independence is Independence.NONE),
    ):
        if not off:
            raise ConfigurationError(
                f"{what} {name}: got it beside mode {scenario.mode.value!r}, want it "
                f"with mode {Mode.LOCK_STEP.value!r} only.",
                remedy=f"Leave out {name}, or the mode.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenarios:
    """The scenarios of a service and the least that it serves."""

    minimum: str
    by_name: Mapping[str, Scenario]

    def select(self, name: str | None) -> Scenario:
        """Return the scenario asked for, or the minimum where none was.

        Raises:
            ConfigurationError: Unknown, or weaker than the service's minimum.
        """
        least = self.by_name[self.minimum]
        if name is None:
            return least
        if name not in self.by_name:
            raise ConfigurationError(
                f"scenario: got {name!r:.60}, want one of {', '.join(self.by_name)}."
            )
        chosen = self.by_name[name]
        if weaker := chosen.weaker_than(least):
            raise ConfigurationError(
                f"scenario {name!r:.60}: below the service's minimum "
                f"{self.minimum!r} in {', '.join(weaker)}."
            )
        return chosen

    def to_json(self) -> dict[str, Any]:
        """Return the document that enters the configuration digest."""
        return {
            "minimum": self.minimum,
            "scenarios": [s.to_json() for _, s in sorted(self.by_name.items())],
        }


def parse_scenarios(data: bytes) -> Scenarios:
    """Parse a scenarios file (TOML).

    Raises:
        ConfigurationError: Not TOML, an unknown key, no scenario, no such minimum.
    """
    if len(data) > MAX_SCENARIO_BYTES:
        raise ConfigurationError(
            f"scenarios: got {len(data)} bytes, want at most {MAX_SCENARIO_BYTES}"
        )
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        # Beside its own error: integers of thousands of digits, deep nesting.
        raise ConfigurationError(f"scenarios: not TOML: {error}") from error
    if document.pop("version", None) != 1:
        raise ConfigurationError("scenarios version: want 1")
    minimum = document.pop("minimum", None)
    for name, table in document.items():
        if not isinstance(table, dict) or "name" in table:
            raise ConfigurationError(f"scenarios: unknown key {name!r:.60}")
    by_name = {
        name: Scenario.from_json({"name": name, **table})
        for name, table in document.items()
    }
    if not isinstance(minimum, str) or minimum not in by_name:
        raise ConfigurationError(
            f"scenarios minimum: got {minimum!r:.60}, want the name of a scenario here"
        )
    return Scenarios(minimum=minimum, by_name=by_name)
