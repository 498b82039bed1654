"""What a verified hop costs against BentoML's own: ``python -m benchmarks.hop --json``.

Variants of the same chain, each against a fresh server in every repetition,
timed inside the entry's process with the same code:

    native_async, native_sync   plain BentoML, ``bentoml.depends``
    secure_1, secure_3          ours: statements, consensus, receipt signed and stored
    blake3_1                    the same, one replica, committed to with BLAKE3
    floor                       ONNX Runtime in one process

Tensors go unsealed, as BentoML's do; ``benchmarks.session`` has the price of sealing.
A hop is a request divided by its segments. Ratios are against the faster of BentoML's
two calls, medians over the repetitions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.hop_model import SEGMENTS, write_plan
from benchmarks.report import report
from benchmarks.serving import serve
from bentoml_secure.attestation.dev_root import create_dev_root

SIZES = {"256B": 256, "64KiB": 64 << 10, "1MiB": 1 << 20, "16MiB": 16 << 20}
REQUESTS = {"256B": 200, "64KiB": 150, "1MiB": 40, "16MiB": 8}
CONCURRENT = 16
VARIANTS = ("native_async", "native_sync", "secure_1", "secure_3", "blake3_1", "floor")
NATIVE = ("native_async", "native_sync")


def scenarios(
    replicas: int,
    *,
    sealed: bool = False,
    max_age: int = 300,
    commitments: str = "hmac-sha256",
) -> str:
    """Return a scenarios file.

    Args:
        replicas: Of each segment.
        sealed: Unsealed as BentoML's own hop; see ``benchmarks.session``.
        max_age: Of evidence, seconds.
        commitments: What bodies and tensors are committed to with.
    """
    return f"""version = 1
minimum = "bench"
[bench]
replicas = {replicas}
quorum = {replicas // 2 + 1}
sealed = {str(sealed).lower()}
deadline_ms = 60000
grace_ms = 5000
evidence_max_age_seconds = {max_age}
commitments = "{commitments}"
"""


def environment(variant: str, folder: Path) -> tuple[str, dict[str, str]]:
    """Return what to serve for a variant, and its environment."""
    plan = {"HOP_PLAN": str(folder / "plan")}
    if not variant.startswith(("secure", "blake3")):
        call = {"floor": "local"}.get(variant, variant.partition("_")[2])
        return "benchmarks.hop_native:NativeEntry", {**plan, "HOP_CALL": call}
    named, _, replicas = variant.partition("_")
    scenario = {"secure": replicas}.get(named, named)
    return "benchmarks.hop_secure:Secure", {
        **plan,
        "HOP_REPLICAS": replicas,
        "HOP_SCENARIOS": str(folder / f"scenarios-{scenario}.toml"),
        "BENTOML_SECURE_DEV_ROOT": str(folder / "root"),
    }


def prepare(folder: Path) -> None:
    """Write plan, scenarios and development root."""
    write_plan(folder / "plan")
    create_dev_root(folder / "root", now=datetime.now(UTC))
    for replicas in (1, 3):
        (folder / f"scenarios-{replicas}.toml").write_text(scenarios(replicas))
    text = scenarios(1, commitments="blake3-keyed")
    (folder / "scenarios-blake3.toml").write_text(text)


def run_variant(variant: str, folder: Path, sizes: list[str]) -> dict[str, Any]:
    """Time one variant against a fresh server."""
    identifier, variables = environment(variant, folder)
    results: dict[str, Any] = {}
    with serve(identifier, variables) as server:
        for size in sizes:
            for concurrency in (1, CONCURRENT):
                spec = {
                    "nbytes": SIZES[size],
                    "requests": max(REQUESTS[size], concurrency),
                    "concurrency": concurrency,
                }
                results[f"{size}/{concurrency}"] = server.call("bench", {"spec": spec})
    return results


def run_soak(folder: Path) -> dict[str, Any]:
    """Run 5,000 requests at concurrency 32 through three replicas."""
    identifier, variables = environment("secure_3", folder)
    spec = {"nbytes": SIZES["64KiB"], "requests": 5000, "concurrency": 32}
    with serve(identifier, variables) as server:
        result: dict[str, Any] = server.call("bench", {"spec": spec})
    return result


def figures(runs: dict[str, list[dict[str, Any]]], sizes: list[str]) -> dict[str, Any]:
    """Return medians and ratios."""

    def median(variant: str, key: str, field: str) -> float:
        return float(statistics.median(run[key][field] for run in runs[variant]))

    out: dict[str, Any] = {}
    for size in sizes:
        one, many = f"{size}/1", f"{size}/{CONCURRENT}"
        for variant in runs:
            out[f"hop_ms_{variant}_{size}"] = median(variant, one, "p50_ms") / SEGMENTS
            out[f"rps_{variant}_{CONCURRENT}_{size}"] = median(variant, many, "rps")
        native = min(out[f"hop_ms_{v}_{size}"] for v in NATIVE)
        native_rps = max(out[f"rps_{v}_{CONCURRENT}_{size}"] for v in NATIVE)
        for replicas, suffix in ((1, ""), (3, "_3")):
            hop = out[f"hop_ms_secure_{replicas}_{size}"]
            rps = out[f"rps_secure_{replicas}_{CONCURRENT}_{size}"]
            out[f"p50_ratio{suffix}_{size}"] = hop / native
            out[f"rps_ratio{suffix}_{CONCURRENT}_{size}"] = rps / native_rps
        out[f"blake3_p50_ratio_{size}"] = out[f"hop_ms_blake3_1_{size}"] / native
    if "64KiB" in sizes:
        out[f"rps_ratio_{CONCURRENT}"] = out[f"rps_ratio_{CONCURRENT}_64KiB"]
    out["errors"] = {
        variant: sum(r["errors"] for run in several for r in run.values())
        for variant, several in runs.items()
    }
    return out


def measure(
    *, repetitions: int = 5, sizes: list[str] | None = None, soak: bool = True
) -> dict[str, Any]:
    """Return the JSON object of this benchmark."""
    sizes = sizes or list(SIZES)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="hop-") as name:
        folder = Path(name)
        prepare(folder)
        for repetition in range(repetitions):
            for variant in VARIANTS:
                print(f"repetition {repetition + 1}: {variant}", file=sys.stderr)
                runs[variant].append(run_variant(variant, folder, sizes))
        found = figures(runs, sizes)
        if soak:
            result = run_soak(folder)
            found["errors_32"] = result["errors"]
            found["requests_32"] = result["requests"]
            found["rps_secure_3_32_64KiB"] = result["rps"]
    return report("hop", found, "bentoml", "onnxruntime", repetitions=repetitions)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="What a verified hop costs.")
    parser.add_argument("--json", action="store_true", help="what it prints anyway")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--no-soak", action="store_true")
    options = parser.parse_args()
    found = measure(
        repetitions=options.repetitions, sizes=options.sizes, soak=not options.no_soak
    )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
