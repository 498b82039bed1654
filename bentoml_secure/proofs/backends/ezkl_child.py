"""What runs ezkl: the child of ``ezkl.py``, one task, then it ends.

The bindings take paths, hold the interpreter's lock, raise ``RuntimeError`` on bad
input and panic past ``Exception``: ``child.serve`` tells all of it as an error.

Source: github.com/zkonduit/ezkl, src/bindings/python.rs, for ezkl 23.0.5.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    ProofError,
    SecureError,
)
from bentoml_secure.proofs.backends.child import Tell, serve
from bentoml_secure.proofs.field import COMMITMENT_BYTES, FIELD_MODULUS, parse_hash

Arguments = Mapping[str, Any]
Paths = Mapping[str, str]


def element(value: int) -> str:
    """Return a signed integer as ezkl spells a field element: little-endian hex."""
    return (value % FIELD_MODULUS).to_bytes(32, "little").hex()


def integer(text: str) -> int:
    """Return the signed integer of a field element."""
    value = int.from_bytes(bytes.fromhex(text), "little")
    return value if value <= FIELD_MODULUS // 2 else value - FIELD_MODULUS


@contextmanager
def _refusing(kind: type[SecureError], what: str) -> Any:
    try:
        yield
    except SecureError:
        raise
    except RuntimeError as error:
        raise kind(f"{what}: {error}") from error


def _measure(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    import ezkl

    run = ezkl.PyRunArgs()
    run.input_visibility = arguments["input"]
    run.output_visibility = arguments["output"]
    # In the verification key: other weights are another key.
    run.param_visibility = "fixed"
    run.input_scale = run.param_scale = arguments["scale"]
    # Or outputs come at another scale than the next segment takes.
    run.scale_rebase_multiplier = 1
    run.decomp_base = arguments["decomposition_base"]
    run.decomp_legs = arguments["decomposition_legs"]
    run.num_inner_cols = arguments["inner_columns"]
    run.logrows = arguments["logrows"]
    run.lookup_range = (-arguments["lookup_bound"], arguments["lookup_bound"])
    run.variables = [("batch_size", 1)]
    with _refusing(ConfigurationError, "the segment is not one that ezkl proves"):
        ezkl.gen_settings(paths["model"], paths["settings"], py_run_args=run)


def _compile(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    import ezkl

    with _refusing(ConfigurationError, "the segment does not compile"):
        ezkl.compile_circuit(paths["model"], paths["circuit"], paths["settings"])


def _set_up(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    import ezkl

    with _refusing(ConfigurationError, "set-up"):
        ezkl.setup(paths["circuit"], paths["vk"], paths["pk"], srs_path=paths["srs"])


def _witness(
    paths: Paths, boundary: Sequence[int], salt: Sequence[int], bound: int | None
) -> tuple[Mapping[str, Any], int]:
    """Return the witness, and the largest magnitude of a look-up's argument."""
    import ezkl

    data = [[element(v) for v in values] for values in (boundary, salt)]
    _rewrite(paths["input"], json.dumps({"input_data": data}).encode())
    with _refusing(MalformedInputError, "a value out of the circuit's range"):
        witness = ezkl.gen_witness(
            paths["input"], paths["circuit"], _emptied(paths["witness"])
        )
    # Extra and missing inputs pass unnoticed otherwise.
    if witness["inputs"] != data or len(witness["outputs"]) != 1:
        raise MalformedInputError("witness: its inputs are not those that were given")
    looked_up = max(witness["max_lookup_inputs"], -witness["min_lookup_inputs"])
    # A witness is made all the same, and a prover of it does not end.
    if bound is not None and looked_up > bound:
        raise MalformedInputError(
            # Not which: reasons lie in job stores and logs, as they are.
            "a value out of the circuit's range: one is looked up beyond its table, "
            f"which ends at {bound}"
        )
    return witness, looked_up


def _came_out(witness: Mapping[str, Any]) -> list[int]:
    return [integer(text) for text in witness["outputs"][0]]


def _execute(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    for boundary, salt in arguments["inputs"]:
        made, looked_up = _witness(paths, boundary, salt, arguments["lookup_bound"])
        tell({"executed": _came_out(made), "looked_up": looked_up})


def _prove(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    import ezkl

    witness, _ = _witness(
        paths, arguments["boundary"], arguments["salt"], arguments["lookup_bound"]
    )
    tell({"executed": _came_out(witness)})
    ezkl.prove(
        paths["witness"],
        paths["circuit"],
        paths["pk"],
        proof_path=_emptied(paths["proof"]),
        srs_path=paths["srs"],
    )
    proof = json.loads(Path(paths["proof"]).read_bytes())
    made, hashes = bytes(proof["proof"]), _hashes(witness)
    if proof["instances"] != [hashes]:
        raise ProofError("the proof's instances are not the hashes of what was proven")
    # A proof under another SRS or of a damaged key is made all the same.
    _verify_one(paths, "settings", "vk", "srs", hashes, proof["proof"])
    facts = _facts(arguments["committed"], hashes, made)
    tell({"proved": {"facts": facts, "proof": made.hex()}})


def _hashes(witness: Mapping[str, Any]) -> list[str]:
    """Return the hashes of what goes in and out, of what is hashed."""
    sides = (witness["processed_inputs"], witness["processed_outputs"])
    return [
        parse_hash(text, what="hash")
        for side in sides
        for text in (side and side["poseidon_hash"]) or ()
    ]


def _facts(committed: Sequence[bool], hashes: list[str], proof: bytes) -> list[str]:
    """Return what the proof states, in order: its instances, and its first points."""
    if len(hashes) != committed.count(False):
        raise ProofError(f"the proof has {len(hashes)} instances, of {committed}")
    of_hashes, starts = iter(hashes), iter(range(0, len(proof), COMMITMENT_BYTES))
    return [
        proof[(start := next(starts)) : start + COMMITMENT_BYTES].hex()
        if each
        else next(of_hashes)
        for each in committed
    ]


def _hash(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    import ezkl

    hashes = [
        ezkl.poseidon_hash([element(value) for value in values])[0]
        for values in arguments["values"]
    ]
    tell({"hashes": hashes})


def _verify(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    for index, given in enumerate(arguments["proofs"]):
        try:
            _verify_one(
                paths,
                f"settings{given['key']}",
                f"vk{given['key']}",
                "srs",
                given["instances"],
                list(bytes.fromhex(given["proof"])),
            )
        except ProofError as error:
            raise ProofError(f"proof {index}: {error}") from error


def _verify_one(
    paths: Paths,
    settings: str,
    vk: str,
    srs: str,
    instances: list[str],
    proof: list[int],
) -> None:
    import ezkl

    # Only what the proof covers: what else ezkl writes beside it is not.
    document = {
        "protocol": None,
        "instances": [instances],
        "proof": proof,
        "hex_proof": None,
        "split": None,
        "pretty_public_inputs": None,
        "timestamp": None,
        "version": None,
    }
    _rewrite(paths["checked"], json.dumps(document).encode())
    with _refusing(ProofError, "does not verify"):
        accepted = ezkl.verify(
            paths["checked"], paths[settings], paths[vk], srs_path=paths[srs]
        )
        if accepted is not True:
            raise ProofError(f"does not verify: ezkl says {accepted!r}")


def _generate(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    import ezkl

    ezkl.gen_srs(paths["srs"], arguments["logrows"])


def _emptied(path: str) -> str:
    # Memory files are opened without being cut.
    os.truncate(path, 0)
    return path


def _rewrite(path: str, data: bytes) -> None:
    _emptied(path)
    with open(path, "r+b") as stream:
        stream.write(data)


_TASKS: Mapping[str, Callable[[Arguments, Paths, Tell], None]] = {
    "measure": _measure,
    "compile": _compile,
    "set up": _set_up,
    "execute": _execute,
    "prove": _prove,
    "verify": _verify,
    "hash": _hash,
    "generate": _generate,
}

if __name__ == "__main__":
    serve(_TASKS)
