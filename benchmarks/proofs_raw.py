"""ezkl's own calls in one process of their own: what ours are compared with.

``python -m benchmarks.proofs_raw`` reads a JSON task from standard input and prints
what it measured:

    calibrated   settings as ezkl makes and calibrates them, with its defaults, then
                 proofs with those
    loop         proofs in a loop, with keys that are there

CPU seconds are of this process, user and system, of witness, proof and verification.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bentoml_secure.proofs.backends.ezkl_child import integer
from bentoml_secure.proofs.srs_folder import SrsFolder

Task = Mapping[str, Any]
_HASHED = "hashed/public"


def cpu_seconds(who: int = resource.RUSAGE_SELF) -> float:
    """Return the CPU seconds so far, user and system."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def prove_loop(
    ezkl: Any, folder: Path, files: Mapping[str, str], inputs: Sequence[str]
) -> dict[str, Any]:
    """Make a witness, prove and verify, for each input.

    Args:
        ezkl: The module.
        folder: For what is made.
        files: circuit, pk, vk, settings and srs.
        inputs: Files of ezkl's input form.
    """
    witness, proof = str(folder / "witness.json"), str(folder / "proof.json")
    each, outputs = [], []
    for file in inputs:
        before = cpu_seconds()
        made = ezkl.gen_witness(file, files["circuit"], witness)
        ezkl.prove(
            witness,
            files["circuit"],
            files["pk"],
            proof_path=proof,
            srs_path=files["srs"],
        )
        ezkl.verify(proof, files["settings"], files["vk"], srs_path=files["srs"])
        each.append(cpu_seconds() - before)
        outputs.append([integer(text) for text in made["outputs"][0]])
    return {"cpu_seconds": each, "outputs": outputs}


def loop(ezkl: Any, task: Task, folder: Path) -> dict[str, Any]:
    """Prove in a loop with keys that are there."""
    return prove_loop(ezkl, folder, task["files"], task["inputs"])


def calibrated(ezkl: Any, task: Task, folder: Path) -> dict[str, Any]:
    """Prove with parameters as ezkl finds them."""
    run = ezkl.PyRunArgs()
    # What is hidden, shown and fixed is the same; everything else is ezkl's choice.
    run.input_visibility = run.output_visibility = _HASHED
    run.param_visibility = "fixed"
    run.variables = [("batch_size", 1)]
    names = ("settings", "circuit", "vk", "pk")
    files = {name: str(folder / name) for name in names}
    before = cpu_seconds()
    ezkl.gen_settings(task["model"], files["settings"], py_run_args=run)
    ezkl.calibrate_settings(
        task["samples"], task["model"], files["settings"], target="resources"
    )
    calibration = cpu_seconds() - before
    settings = json.loads(Path(files["settings"]).read_bytes())
    arguments = settings["run_args"]
    strings, logrows = SrsFolder(Path(task["srs"])), arguments["logrows"]
    if not any(file.logrows == logrows for file in strings.files()):
        strings.generate(logrows)
    files["srs"] = str(strings.require(logrows).path)
    ezkl.compile_circuit(task["model"], files["circuit"], files["settings"])
    ezkl.setup(files["circuit"], files["vk"], files["pk"], srs_path=files["srs"])
    return {
        **prove_loop(ezkl, folder, files, task["inputs"]),
        "calibration_cpu_seconds": calibration,
        "logrows": logrows,
        "rows": settings["num_rows"],
        "scale": settings["model_output_scales"][0],
        "decomposition": [arguments["decomp_base"], arguments["decomp_legs"]],
        "proving_key_bytes": Path(files["pk"]).stat().st_size,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }


@contextmanager
def _quiet() -> Any:
    """Send what ezkl prints where errors go; standard output is for the figures."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def main() -> None:
    """Do the task that is on standard input."""
    task = json.load(sys.stdin)
    with tempfile.TemporaryDirectory(prefix="proofs-raw-") as name, _quiet():
        folder = Path(name)
        # Its cache is read back in set-ups; threads are read at the first use.
        os.environ["EZKL_REPO_PATH"] = name
        os.environ["RAYON_NUM_THREADS"] = str(task["threads"])
        import ezkl

        done = {"calibrated": calibrated, "loop": loop}[task["task"]](
            ezkl, task, folder
        )
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
