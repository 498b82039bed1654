"""The nouns of proving: parameters, boundaries, proofs, and what a backend does."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from bentoml_secure.digest import (
    Digest,
    canonical_json,
    digest_json,
    require_fields,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.proofs.field import is_commitment, parse_commitment, parse_hash
from bentoml_secure.proofs.links import HASHED, Ends
from bentoml_secure.signing import decode_base64

MAX_PROOF_BYTES = 1 << 20
"""The largest measured has 46 KB."""

FACTS = ("input", "salt", "output")
_BACKEND = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")

BoundaryValues = tuple[int, ...]
"""Activations at the circuit's scale, then the salt: one flat tensor of integers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """How a segment becomes a circuit.

    Attributes:
        scale: Activations and weights are integers over 2**scale.
        decomposition_base: Radix in which numbers are taken apart for range checks; a
            circuit has at least that many rows.
        decomposition_legs: Digits: magnitudes stay below base**legs.
        inner_columns: Columns that a dot product is laid out over.
        logrows: The circuit has 2**logrows rows.
        lookup_bound: Arguments of table look-ups lie within plus and minus this.
    """

    scale: int
    decomposition_base: int
    decomposition_legs: int
    inner_columns: int
    logrows: int
    lookup_bound: int

    def to_json(self) -> dict[str, int]:
        """Return the document of a manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a circuit needs, told by its settings before any key is made.

    Attributes:
        rows: Used, were it laid out in one block of columns.
        least_logrows: Below which it does not fit.
        input_scale: Of the boundary that goes in.
        output_scale: Of the boundary that comes out.
        proving_key_bytes: About how large its proving key will be.
        proving_seconds: About how many CPU seconds a proof will take.
    """

    rows: int
    least_logrows: int
    input_scale: int
    output_scale: int
    proving_key_bytes: int
    proving_seconds: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What a verified proof states, each a hash or a commitment; see ``links``.

    A hash is 64 hex digits, a commitment 128.

    Attributes:
        input: Of the boundary that went in, its salt included.
        salt: Of the salt of the boundary that came out, alone.
        output: Of the boundary that came out, its salt included.
    """

    input: str
    salt: str
    output: str

    def __post_init__(self) -> None:
        for name in FACTS:
            fact, what = getattr(self, name), f"proof {name}"
            if isinstance(fact, str) and is_commitment(fact):
                parse_commitment(fact, what=what)
            else:
                parse_hash(fact, what=what)

    @property
    def hashes(self) -> list[str]:
        """The proof's public instances, in order."""
        return [fact for fact in self.stated if not is_commitment(fact)]

    @property
    def commitments(self) -> list[str]:
        """The proof's first points, in order."""
        return [fact for fact in self.stated if is_commitment(fact)]

    @property
    def stated(self) -> tuple[str, str, str]:
        """All three, in order."""
        return self.input, self.salt, self.output

    def to_json(self) -> dict[str, str]:
        """Return the three by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: object, *, what: str) -> Facts:
        """Parse the three by name.

        Raises:
            MalformedInputError: One missing, unknown or of another form.
        """
        return cls(**require_fields(document, FACTS, what=what))


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentProof:
    """One segment's proof as it travels; nothing of it is verified.

    Attributes:
        backend: Which made it.
        facts: What it is claimed to show; the verifier puts exactly these to it.
        proof: The backend's bytes.
    """

    backend: str
    facts: Facts
    proof: bytes

    @property
    def digest(self) -> Digest:
        """By which statements name it."""
        return digest_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the document that attachments carry."""
        return {
            "backend": self.backend,
            "instances": self.facts.to_json(),
            "proof": base64.b64encode(self.proof).decode(),
        }

    @classmethod
    def from_json(cls, document: object, *, what: str = "proof") -> SegmentProof:
        """Parse a proof from outside.

        Raises:
            MalformedInputError: A field missing, unknown or of another form; too long;
                empty; an instance that is no canonical field element.
        """
        got = require_fields(document, ("backend", "instances", "proof"), what=what)
        backend = got["backend"]
        if not isinstance(backend, str) or not _BACKEND.fullmatch(backend):
            raise MalformedInputError(f"{what} backend: got {backend!r:.60}")
        facts = Facts.from_json(got["instances"], what=f"{what} instances")
        proof = decode_base64(got["proof"], what=what, max_bytes=MAX_PROOF_BYTES)
        if not proof:
            raise MalformedInputError(f"{what}: it is empty")
        return cls(backend=backend, facts=facts, proof=proof)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationKey:
    """What verifies one segment's proofs, as the manifest pins it.

    Attributes:
        settings: Of the circuit, the backend's bytes.
        key: The backend's bytes.
    """

    settings: bytes
    key: bytes


Contents = bytes | Path | int
"""A file for a backend: its bytes, where it is, or an open descriptor of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvingKey:
    """What proves one segment. It holds the weights: it is as secret as they are.

    Attributes:
        circuit: Compiled.
        key: The proving key.
        verification: That verifies what this proves.
        srs: File of the structured reference string, of just the circuit's logrows.
    """

    circuit: Contents
    key: Contents
    verification: VerificationKey
    srs: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one job may take.

    Attributes:
        memory_bytes: Of its data; more ends it.
        seconds: Until it is killed.
        threads: That it computes with.
        background: Whether it takes only time that nobody else wants.
    """

    memory_bytes: int
    seconds: float
    threads: int = 1
    background: bool = False


class ProofBackend(Protocol):
    """A proof system. Every method blocks, in a process of its own.

    All raise:
        MissingDependencyError: The backend's package is not installed.
        UnavailableError: The process was killed, by its limits or otherwise.
    """

    name: str
    version: str

    def measure(
        self,
        model: bytes,
        parameters: Parameters,
        limits: Limits,
        ends: Ends = HASHED,
    ) -> tuple[bytes, Rows]:
        """Return a circuit's settings, and what it needs.

        Raises:
            ConfigurationError: The model is not one that the backend can prove.
        """
        ...

    def require_settings(self, settings: bytes, ends: Ends = HASHED) -> Rows:
        """Refuse settings under which a proof would not show what it should.

        Raises:
            MalformedInputError: Not settings of this backend.
            ProofError: Weights are not bound to the verification key, or input or
                output are not stated as they should be.
        """
        ...

    def compile(self, model: bytes, settings: bytes, limits: Limits) -> bytes:
        """Return the circuit of a model."""
        ...

    def set_up(self, circuit: bytes, srs: Path, key: Path, limits: Limits) -> bytes:
        """Write the proving key to ``key`` and return the verification key."""
        ...

    def execute(
        self,
        circuit: Contents,
        inputs: Sequence[tuple[BoundaryValues, BoundaryValues]],
        limits: Limits,
        *,
        settings: bytes | None = None,
    ) -> list[BoundaryValues]:
        """Return the boundary that comes out, for each boundary and next salt.

        Args:
            circuit: Compiled.
            inputs: Boundaries and next salts.
            limits: Of this job.
            settings: Of the circuit: with them, what is looked up outside of its
                tables is refused as well. No proof of that can be made.

        Raises:
            MalformedInputError: A value out of the circuit's range.
        """
        ...

    def lookups(
        self,
        circuit: Contents,
        inputs: Sequence[tuple[BoundaryValues, BoundaryValues]],
        limits: Limits,
    ) -> int:
        """Return the largest magnitude that is looked up, 0 without look-ups.

        Raises:
            MalformedInputError: A value out of the circuit's range.
        """
        ...

    def prove(
        self,
        key: ProvingKey,
        boundary: BoundaryValues,
        salt: BoundaryValues,
        limits: Limits,
        executed: Callable[[BoundaryValues], None],
    ) -> SegmentProof:
        """Prove one run and verify the proof.

        Args:
            key: Of the segment.
            boundary: That goes in, its salt included.
            salt: Of the boundary that comes out.
            limits: Of this job.
            executed: Told the boundary that comes out, long before the proof is there.

        Raises:
            MalformedInputError: A value out of the circuit's range.
            ProofError: What was proven does not verify: another SRS, or a damaged key.
        """
        ...

    def verify(
        self,
        proofs: Sequence[tuple[SegmentProof, VerificationKey]],
        srs: bytes,
        limits: Limits,
    ) -> None:
        """Return if every proof verifies; one process for all.

        Args:
            proofs: Each with the key that the manifest pins for it.
            srs: The verifier's part, ``srs.VERIFIER_BYTES``.
            limits: Of this job.

        Raises:
            ProofError: One does not, with which and why.
        """
        ...

    def hash(self, values: Sequence[BoundaryValues], limits: Limits) -> list[str]:
        """Return the hash of each, as circuits compute it."""
        ...


def settings_facts(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a settings document without what changes from run to run.

    That is when it was made, the order of what ezkl takes from hashed sets (which range
    check has which column: another order is another key, of the same relation), and how
    many rows it counted, by one more or less for the same reason. Keys are made under
    the settings as published, and show whether those were enough.
    """
    facts = {name: v for name, v in settings.items() if name not in _COUNTED}
    for name in _UNORDERED:
        if isinstance(facts.get(name), list):
            facts[name] = sorted(facts[name], key=canonical_json)
    einsums = facts.get("einsum_params")
    if isinstance(einsums, dict) and isinstance(einsums.get("equations"), list):
        equations = sorted(einsums["equations"], key=canonical_json)
        facts["einsum_params"] = {**einsums, "equations": equations}
    return facts


_COUNTED = ("timestamp", "num_rows", "total_assignments")
_UNORDERED = ("required_range_checks", "required_lookups")
