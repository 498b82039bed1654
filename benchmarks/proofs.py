"""What proofs cost: ``python -m benchmarks.proofs --json``.

    prove_cpu_vs_calibrated       CPU seconds of all segments' proofs of one request,
                                  over those with settings that ezkl calibrates itself
    segment_rss_vs_whole          largest segment's peak, over the whole model's
    proofs_per_cpu_minute_vs_raw  proofs as provers make them, over ezkl's calls in a
                                  loop in one process, with the same keys
    polycommit_cpu_vs_hashed      CPU seconds of all segments' proofs with boundaries
                                  committed to, over those with hashes
    latency_ratio_while_proving   median request with provers busy, over idle ones
    verify_receipt_ms             a receipt with all its proofs, offline; for both see
                                  ``proofs_service``

The model is the network of services/digits.py. Each is over one request of its test
set. Circuits, inputs and what is hidden, shown and fixed are the same in all that is
compared; so are the steps: witness, proof, verification.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import proofs_page, proofs_service
from benchmarks.proofs_chain import Cost, call, draw_salts, medians, prove_chain
from benchmarks.proofs_job import LIMITS
from benchmarks.proofs_models import Built, build, cases, first, say
from benchmarks.report import report
from bentoml_secure.proofs.backends.ezkl_child import element
from bentoml_secure.proofs.boundary import FixedTensor, activations_of, floats_of
from bentoml_secure.proofs.circuit import circuit_model
from bentoml_secure.proofs.folder import ProofFolder
from bentoml_secure.proofs.links import Link
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.split import load_chain, load_plan, read_file
from bentoml_secure.tensors import Array

MODEL = "digits"
SEGMENTS = 3
_CALIBRATED_ON = 4
_LOOPED = 2
_MAX_FILE_BYTES = 1 << 30


class Raw:
    """ezkl's own calls on the circuits of a set-up.

    Attributes:
        built: The set-up.
        folder: For its files.
    """

    def __init__(self, built: Built, folder: Path) -> None:
        self.built, self.folder = built, folder
        self._plan = load_plan(built.plan)
        self._set_up = ProofFolder.read(built.proofs, self._plan)
        chain = load_chain(built.plan)
        self._floats = [
            chain.run_all(_request(built, number)) for number in range(_CALIBRATED_ON)
        ]
        folder.mkdir()

    @property
    def manifest(self) -> Manifest:
        """Of the set-up."""
        return self._set_up.manifest

    def loop(self, index: int, repetitions: int) -> list[float]:
        """Return the CPU seconds of each proof of a segment, in one process."""
        own = self.folder / f"{index}-input.json"
        segment = self.manifest.segments[index]
        salts, scale = draw_salts(self.manifest), self.manifest.scale
        tensors = {
            tensor.name: np.asarray(self._floats[0][tensor.name])
            for tensor in segment.inputs
        }
        boundary = (*activations_of(tensors, segment.inputs, scale), *salts[index])
        given = [[element(value) for value in v] for v in (boundary, salts[index + 1])]
        own.write_text(json.dumps({"input_data": given}))
        key = self._set_up.proving_key(index)
        files = {"pk": str(key.key), "srs": str(key.srs)}
        for name, data in (
            ("circuit", key.circuit),
            ("settings", key.verification.settings),
            ("vk", key.verification.key),
        ):
            assert isinstance(data, bytes)
            file = self.folder / f"{index}-{name}"
            file.write_bytes(data)
            files[name] = str(file)
        told = call(
            "benchmarks.proofs_raw",
            {
                "task": "loop",
                "threads": LIMITS.threads,
                "files": files,
                "inputs": [str(own)] * repetitions,
            },
        )
        each: list[float] = told["cpu_seconds"]
        return each

    def calibrated(self, index: int, repetitions: int) -> dict[str, Any]:
        """Return what a segment costs under settings that ezkl calibrates.

        Salt is drawn from 0 to 1 here: as large as ours is, it would widen the range
        that is calibrated.
        """
        segment, own = self._plan.segments[index], self.manifest.segments[index]
        contents = {
            file.path: read_file(
                self.built.plan, file.path, file.digest, max_bytes=_MAX_FILE_BYTES
            )
            for file in segment.files
        }
        model = self.folder / f"{index}.onnx"
        model.write_bytes(
            circuit_model(
                segment, contents, own.inputs, own.outputs, self.manifest.salt
            )
        )
        random = np.random.default_rng(0)
        rows = [self._row(number, own.inputs, random) for number in range(len(self))]
        salts = [random.random(self.manifest.salt.elements).tolist() for _ in rows]
        samples = self.folder / f"{index}-samples.json"
        one = self.folder / f"{index}-sample.json"
        joined = [[value for row in each for value in row] for each in (rows, salts)]
        samples.write_text(json.dumps({"input_data": joined}))
        one.write_text(json.dumps({"input_data": [rows[0], salts[0]]}))
        told = call(
            "benchmarks.proofs_raw",
            {
                "task": "calibrated",
                "threads": LIMITS.threads,
                "model": str(model),
                "samples": str(samples),
                "srs": str(self.built.plan.parent / "srs"),
                "inputs": [str(one)] * repetitions,
            },
        )
        size = sum(tensor.size for tensor in own.outputs)
        made = floats_of(told["outputs"][0][:size], own.outputs, told["scale"])
        told["deviation"] = max(
            float(np.abs(values - self._floats[0][name]).max())
            for name, values in made.items()
        )
        return told

    def __len__(self) -> int:
        return len(self._floats)

    def _row(
        self, number: int, form: Sequence[FixedTensor], random: np.random.Generator
    ) -> list[float]:
        parts: list[NDArray[Any]] = [
            np.asarray(self._floats[number][tensor.name]).ravel() for tensor in form
        ]
        parts.append(random.random(self.manifest.salt.elements))
        return [float(value) for part in parts for value in part]


def _request(built: Built, number: int) -> dict[str, Array]:
    return {
        name: array[number : number + 1] for name, array in built.case.tests.items()
    }


def figures(
    ours: Sequence[Cost],
    committed: Sequence[Cost],
    whole: Sequence[Cost],
    raw: Sequence[float],
    calibrated: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the ratios, and what they are of."""
    cpu, linked = (
        sum(cost.cpu_seconds for cost in costs) for costs in (ours, committed)
    )
    theirs = sum(statistics.median(told["cpu_seconds"]) for told in calibrated)
    peak, whole_peak = (
        max(cost.peak_bytes for cost in costs) for costs in (ours, whole)
    )
    return {
        "prove_cpu_vs_calibrated": cpu / theirs,
        "segment_rss_vs_whole": peak / whole_peak,
        "proofs_per_cpu_minute_vs_raw": sum(raw) / cpu,
        "polycommit_cpu_vs_hashed": linked / cpu,
        "prove_cpu_s": cpu,
        "prove_cpu_s_polycommit": linked,
        "prove_cpu_s_calibrated": theirs,
        "prove_cpu_s_raw": sum(raw),
        "prove_cpu_s_whole": sum(cost.cpu_seconds for cost in whole),
        "peak_mib_segment": peak / (1 << 20),
        "peak_mib_whole": whole_peak / (1 << 20),
        "calibrated_logrows": [told["logrows"] for told in calibrated],
        "calibrated_scales": [told["scale"] for told in calibrated],
        "calibrated_deviation": max(told["deviation"] for told in calibrated),
    }


def measure(*, repetitions: int = 5) -> dict[str, Any]:
    """Return the JSON object of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="proofs-") as name:
        folder = Path(name)
        case = cases(folder)[MODEL]
        built = build(case, SEGMENTS, folder)
        request = first(case.tests, 1)
        raw = Raw(built, folder / "raw")
        rounds, looped = [], []
        for number in range(repetitions):
            # By turns: what the machine does besides changes within minutes.
            say(f"ours and ezkl's own calls, round {number + 1}")
            rounds.append(prove_chain(built, request))
            looped.append(
                [statistics.mean(raw.loop(i, _LOOPED)) for i in range(SEGMENTS)]
            )
        ours = medians(rounds)
        of_calls = [statistics.median(each) for each in zip(*looped, strict=True)]
        other = build(case, SEGMENTS, folder, Link.POLYCOMMIT)
        committed = prove_chain(other, request, repetitions)
        say("ezkl's own calibration")
        told = [raw.calibrated(index, repetitions) for index in range(SEGMENTS)]
        whole = prove_chain(build(case, 1, folder), request, repetitions)
        found = figures(ours, committed, whole, of_calls, told)
        found["accuracy_bound"] = case.accuracy
    say("requests while proofs are made")
    found |= proofs_service.measure()["figures"]
    return report(
        "proofs",
        found,
        "ezkl",
        "onnxruntime",
        repetitions=repetitions,
        threads=LIMITS.threads,
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="What proofs cost.")
    parser.add_argument("--json", action="store_true", help="what it prints anyway")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--write", type=Path, metavar="FILE", help="page to change")
    options = parser.parse_args()
    found = measure(repetitions=options.repetitions)
    print(json.dumps(found, indent=2))
    if options.write is not None:
        proofs_page.put(options.write, found)


if __name__ == "__main__":
    main()
