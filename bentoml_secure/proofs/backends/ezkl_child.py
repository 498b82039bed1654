"""What runs ezkl: the child of ``ezkl.py``, one task, then it ends.

The bindings take paths, hold the interpreter's lock, raise ``RuntimeError`` on bad
input and panic past ``Exception``: ``child.serve`` tells all of it as an error.

Source: github.com/zkonduit/ezkl, src/bindings/python.rs, for ezkl 23.0.5.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from bentoml_secure.proofs.field import FIELD_MODULUS, parse_hash

_HASHED = "hashed/public"
_INSTANCES = 3

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
    run.input_visibility = run.output_visibility = _HASHED
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
) -> tuple[list[int], int]:
    """Return what comes out, and the largest magnitude of a look-up's argument."""
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
    return [integer(text) for text in witness["outputs"][0]], looked_up


def _execute(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    for boundary, salt in arguments["inputs"]:
        made, looked_up = _witness(paths, boundary, salt, arguments["lookup_bound"])
        tell({"executed": made, "looked_up": looked_up})


def _prove(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    import ezkl

    made, _ = _witness(
        paths, arguments["boundary"], arguments["salt"], arguments["lookup_bound"]
    )
    tell({"executed": made})
    ezkl.prove(
        paths["witness"],
        paths["circuit"],
        paths["pk"],
        proof_path=_emptied(paths["proof"]),
        srs_path=paths["srs"],
    )
    proof = json.loads(Path(paths["proof"]).read_bytes())
    instances = _flat(proof["instances"])
    values = (arguments["boundary"], arguments["salt"], made)
    # A proof under another SRS or of a damaged key is made all the same.
    if instances != _hashes(values):
        raise ProofError("the proof's instances are not the hashes of what was proven")
    _verify_one(paths, "settings", "vk", "srs", instances, proof["proof"])
    tell({"proved": {"instances": instances, "proof": bytes(proof["proof"]).hex()}})


def _flat(instances: Any) -> list[str]:
    if len(instances) != 1 or len(instances[0]) != _INSTANCES:
        raise ProofError("instances: want one column of three")
    return [parse_hash(text, what="instance") for text in instances[0]]


def _hashes(values: Iterable[Sequence[int]]) -> list[str]:
    import ezkl

    return [ezkl.poseidon_hash([element(v) for v in each])[0] for each in values]


def _hash(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    tell({"hashes": _hashes(arguments["values"])})


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
