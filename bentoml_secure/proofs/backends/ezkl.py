"""ezkl: Halo2 circuits of ONNX graphs, KZG commitments over BN254.

Each call is one child process (``ezkl_child``). A boundary enters as one tensor of
field elements, beside the salt of the next, and leaves as one. What goes in and what
comes out is hashed in the circuit with Poseidon, the hashes are the proof's instances;
or it is committed to, and the commitments are the proof's first points (``links``).

Source: github.com/zkonduit/ezkl; ezkl 23.0.5.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bentoml_secure.digest import parse_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    MissingDependencyError,
    ProofError,
)
from bentoml_secure.proofs.backends.one_shot import Event, Task, run
from bentoml_secure.proofs.field import is_commitment
from bentoml_secure.proofs.links import HASHED, SPARE_ROWS, Ends, Link
from bentoml_secure.proofs.manifest_fields import MAX_LOGROWS, whole
from bentoml_secure.proofs.proof import (
    BoundaryValues,
    Contents,
    Facts,
    Limits,
    Parameters,
    ProvingKey,
    Rows,
    SegmentProof,
    VerificationKey,
)

_CHILD = "bentoml_secure.proofs.backends.ezkl_child"
MAX_SETTINGS_BYTES = 1 << 20
_BLINDING_ROWS = 6
_FIELD_BYTES = 32
_MOST_INNER_OF_DEGREE_8 = 4
_SECONDS_PER_BYTE = 0.05e-6
# Of each argument that a look-up is in the right table.
_SECONDS_PER_ROW = 2e-5
# As ezkl is asked, and as it says it in settings.
_ASKED = {Link.HASHED: "hashed/public", Link.POLYCOMMIT: "polycommit"}
_SAID = {
    Link.HASHED: {"Hashed": {"hash_is_public": True, "outlets": []}},
    Link.POLYCOMMIT: "KZGCommit",
}


class Ezkl:
    """The backend.

    Raises:
        MissingDependencyError: The package is not installed.
    """

    name = "ezkl"

    def __init__(self) -> None:
        try:
            self.version = version("ezkl")
        except PackageNotFoundError as error:
            raise MissingDependencyError(
                "proofs: ezkl is not installed.",
                remedy="pip install 'bentoml-secure[proofs]'",
            ) from error

    def measure(
        self,
        model: bytes,
        parameters: Parameters,
        limits: Limits,
        ends: Ends = HASHED,
    ) -> tuple[bytes, Rows]:
        """Return a circuit's settings, and what it needs."""
        sides = {"input": _ASKED[ends.input], "output": _ASKED[ends.output]}
        made = run(
            Task(
                module=_CHILD,
                name="measure",
                arguments={**parameters.to_json(), **sides},
                files={"model": model},
                outputs=("settings",),
            ),
            limits,
        )
        settings = _settled(made["settings"])
        return settings, read_rows(settings)

    def require_settings(self, settings: bytes, ends: Ends = HASHED) -> Rows:
        """Refuse settings under which a proof would not show what it should."""
        return require_settings(settings, ends)

    def compile(self, model: bytes, settings: bytes, limits: Limits) -> bytes:
        """Return the circuit of a model."""
        files = {"model": model, "settings": settings}
        task = Task(
            module=_CHILD,
            name="compile",
            arguments={},
            files=files,
            outputs=("circuit",),
        )
        return run(task, limits)["circuit"]

    def set_up(self, circuit: bytes, srs: Path, key: Path, limits: Limits) -> bytes:
        """Write the proving key to ``key`` and return the verification key."""
        task = Task(
            module=_CHILD,
            name="set up",
            arguments={},
            files={"circuit": circuit, "srs": srs, "pk": key},
            outputs=("vk",),
        )
        return run(task, limits)["vk"]

    def generate_srs(self, logrows: int, path: Path, limits: Limits) -> None:
        """Write a structured reference string whose secret this machine has known."""
        run(
            Task(
                module=_CHILD,
                name="generate",
                arguments={"logrows": logrows},
                files={"srs": path},
            ),
            limits,
        )

    def execute(
        self,
        circuit: Contents,
        inputs: Sequence[tuple[BoundaryValues, BoundaryValues]],
        limits: Limits,
        *,
        settings: bytes | None = None,
    ) -> list[BoundaryValues]:
        """Return the boundary that comes out, for each boundary and next salt."""
        made: list[BoundaryValues] = []
        bound = None if settings is None else _lookup_bound(settings)
        _execute(
            circuit,
            inputs,
            limits,
            bound,
            lambda event: made.append(tuple(event["executed"])),
        )
        return made

    def lookups(
        self,
        circuit: Contents,
        inputs: Sequence[tuple[BoundaryValues, BoundaryValues]],
        limits: Limits,
    ) -> int:
        """Return the largest magnitude that is looked up, 0 without look-ups."""
        made: list[int] = []
        _execute(
            circuit, inputs, limits, None, lambda event: made.append(event["looked_up"])
        )
        return max(made, default=0)

    def prove(
        self,
        key: ProvingKey,
        boundary: BoundaryValues,
        salt: BoundaryValues,
        limits: Limits,
        executed: Callable[[BoundaryValues], None],
    ) -> SegmentProof:
        """Prove one run and verify the proof."""
        proved: list[Mapping[str, Any]] = []

        def said(event: Event) -> None:
            """Take one event of the child."""
            if "executed" in event:
                executed(tuple(event["executed"]))
            else:
                proved.append(event["proved"])

        run(
            Task(
                module=_CHILD,
                name="prove",
                is_secret=True,
                arguments={
                    "boundary": boundary,
                    "salt": salt,
                    "lookup_bound": _lookup_bound(key.verification.settings),
                    "committed": _committed(key.verification.settings),
                },
                files={
                    "circuit": key.circuit,
                    "pk": key.key,
                    "vk": key.verification.key,
                    "settings": key.verification.settings,
                    "srs": key.srs,
                },
                outputs=("input", "witness", "proof", "checked"),
            ),
            limits,
            said,
        )
        if len(proved) != 1:
            raise ProofError("prove: the child made no proof")
        return SegmentProof(
            backend=self.name,
            facts=Facts(*proved[0]["facts"]),
            proof=bytes.fromhex(proved[0]["proof"]),
        )

    def verify(
        self,
        proofs: Sequence[tuple[SegmentProof, VerificationKey]],
        srs: bytes,
        limits: Limits,
    ) -> None:
        """Return if every proof verifies; one process for all."""
        files: dict[str, Contents] = {"srs": verifier_file(srs)}
        # Each key once: a thousand proofs must not need as many files.
        keys: dict[VerificationKey, int] = {}
        committed: list[list[bool]] = []
        given = []
        for number, (proof, key) in enumerate(proofs):
            index = keys.setdefault(key, len(keys))
            if index == len(committed):
                committed.append(_committed(key.settings))
                files[f"settings{index}"], files[f"vk{index}"] = key.settings, key.key
            _require_facts(proof, committed[index], what=f"proof {number}")
            given.append(
                {
                    "instances": proof.facts.hashes,
                    "proof": proof.proof.hex(),
                    "key": index,
                }
            )
        if given:
            task = Task(
                module=_CHILD,
                name="verify",
                arguments={"proofs": given},
                files=files,
                outputs=("checked",),
            )
            run(task, limits)

    def hash(self, values: Sequence[BoundaryValues], limits: Limits) -> list[str]:
        """Return the Poseidon hash of each, as circuits compute it."""
        told: list[str] = []
        run(
            Task(
                module=_CHILD,
                name="hash",
                is_secret=True,
                arguments={"values": values},
                files={},
            ),
            limits,
            lambda event: told.extend(event["hashes"]),
        )
        return told


def _execute(
    circuit: Contents,
    inputs: Sequence[tuple[BoundaryValues, BoundaryValues]],
    limits: Limits,
    lookup_bound: int | None,
    said: Callable[[Event], None],
) -> None:
    task = Task(
        module=_CHILD,
        name="execute",
        is_secret=True,
        arguments={"inputs": inputs, "lookup_bound": lookup_bound},
        files={"circuit": circuit},
        outputs=("input", "witness"),
    )
    run(task, limits, said)


def _committed(settings: bytes) -> list[bool]:
    """Return of each fact whether it is a commitment: input, salt, output."""
    run_args = json.loads(settings)["run_args"]
    said = _SAID[Link.POLYCOMMIT]
    of_input = run_args["input_visibility"] == said
    return [of_input, of_input, run_args["output_visibility"] == said]


def _require_facts(proof: SegmentProof, committed: list[bool], *, what: str) -> None:
    """Refuse facts of another kind than the circuit states, or that it does not.

    Instances are put to the proof as claimed. Its commitments stand in the proof, and
    are what it is verified of: those that are claimed have to be these.
    """
    if [is_commitment(fact) for fact in proof.facts.stated] != committed:
        raise ProofError(
            f"{what}: does not state hashes and commitments as its circuit"
        )
    points = bytes.fromhex("".join(proof.facts.commitments))
    if proof.proof[: len(points)] != points:
        raise ProofError(f"{what}: begins with other commitments than it claims")


def _lookup_bound(settings: bytes) -> int:
    # Of our own settings: plus and minus the same.
    return int(json.loads(settings)["run_args"]["lookup_range"][1])


def verifier_file(verifier: bytes) -> bytes:
    """Return a whole SRS file of one row, from the part that verifiers need.

    Args:
        verifier: G1, G2 and s times G2, as ``srs.verifier_part`` has them.

    Source: halo2_proofs, ParamsKZG::write_custom; the points of G1 are followed by the
    same in Lagrange's basis, which for one row is the same point.
    """
    g1, rest = verifier[:64], verifier[64:]
    return bytes(4) + g1 + g1 + rest


def _settled(settings: bytes) -> bytes:
    """Return settings as every run gives them: no time, sets and names in order."""
    document = json.loads(settings)
    document["timestamp"] = 0
    for name in ("required_lookups", "required_range_checks"):
        document[name].sort(key=json.dumps)
    return json.dumps(document, sort_keys=True).encode()


def read_rows(settings: bytes) -> Rows:
    """Read what a circuit needs from its settings.

    Raises:
        ConfigurationError: The model's input or output is not one tensor and its salt.
    """
    document = json.loads(settings)
    inputs, outputs = document["model_input_scales"], document["model_output_scales"]
    if len(inputs) != 2 or len(set(inputs)) != 1 or len(outputs) != 1:
        raise ConfigurationError(
            f"circuit: got inputs at scales {inputs} and outputs at {outputs}, want a "
            "boundary and a salt at one scale, and one boundary."
        )
    ranges = [high - low + 1 for low, high in document["required_range_checks"]]
    # What does not fit into one block of columns goes on in the next, but hashes.
    sizes = document["module_sizes"]
    committed = [size + SPARE_ROWS for size in sizes["polycommit"]]
    rows = max([sizes["poseidon"][0], *ranges, *committed]) + _BLINDING_ROWS
    return Rows(
        rows=document["num_rows"],
        least_logrows=max(rows - 1, 1).bit_length(),
        input_scale=inputs[0],
        output_scale=outputs[0],
        proving_key_bytes=(size := _proving_key_bytes(document)),
        proving_seconds=_proving_seconds(document, size),
    )


def _parallel(settings: Mapping[str, Any]) -> int:
    """Return how many columns lie side by side in each part of a circuit."""
    run_args = settings["run_args"]
    inner, rows = run_args["num_inner_cols"], 1 << run_args["logrows"]
    blocks = -(-settings["total_assignments"] // (inner * (rows - _BLINDING_ROWS)))
    return int(inner * max(blocks, 1))


def _tables(settings: Mapping[str, Any]) -> int:
    """Return how many columns all tables of look-ups take."""
    run_args = settings["run_args"]
    low, high = run_args["lookup_range"]
    each = -(-(high - low + 1) // (1 << run_args["logrows"]))
    return int(len(settings["required_lookups"]) * each)


def _proving_key_bytes(settings: Mapping[str, Any]) -> int:
    """Return about how large a circuit's proving key will be.

    It holds every fixed and permuted column as values, as coefficients and extended to
    the degree of the quotient, and three extended selectors. How many columns there are
    is fitted to keys of small circuits, made by ezkl 23.0.5.
    """
    run_args = settings["run_args"]
    parallel = _parallel(settings)
    sizes = settings["module_sizes"]
    hashing = 17 if sizes["poseidon"][0] else 0
    columns = hashing + len(sizes["polycommit"]) + 6.3 * parallel
    columns += 2 * _tables(settings)
    columns += len(settings["required_lookups"]) * parallel
    # The degree of the constraints grows with both.
    small = run_args["num_inner_cols"] <= _MOST_INNER_OF_DEGREE_8
    extension = max(8 if small else 16, 1 << _tables(settings).bit_length())
    rows = 1 << run_args["logrows"]
    return int(_FIELD_BYTES * rows * (columns * (2 + extension) + 3 * extension))


def _proving_seconds(settings: Mapping[str, Any], proving_key_bytes: int) -> float:
    """Return about how many CPU seconds a proof takes; fitted, see above."""
    arguments = _tables(settings) * _parallel(settings)
    rows = 1 << settings["run_args"]["logrows"]
    looked_up = float(_SECONDS_PER_ROW * arguments * rows)
    return _SECONDS_PER_BYTE * proving_key_bytes + looked_up


def require_settings(settings: bytes, ends: Ends = HASHED) -> Rows:
    """Refuse settings under which a proof would not show what it should.

    They come from a signed manifest; this is against an owner's mistake.

    Raises:
        MalformedInputError: Not settings of ezkl.
        ProofError: Weights are not bound to the verification key, or input or output
            are not stated as they should be.
    """
    document = parse_json(settings, what="settings", max_bytes=MAX_SETTINGS_BYTES)
    try:
        run_args = document["run_args"]
        bound = {
            name: run_args[f"{name}_visibility"]
            for name in ("input", "param", "output")
        }
        # Before anything is as large as it says.
        whole(run_args["logrows"], "settings logrows", 1, MAX_LOGROWS)
        rows = read_rows(settings)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise MalformedInputError(
            f"settings: not those of a circuit: {error}"
        ) from error
    wanted = {
        "input": _SAID[ends.input],
        "param": "Fixed",
        "output": _SAID[ends.output],
    }
    for name, want in wanted.items():
        if bound[name] != want:
            raise ProofError(
                f"settings {name}_visibility: got {bound[name]!r:.80}, want {want!r}"
            )
    return rows
