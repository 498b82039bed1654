"""What committing before revealing costs: ``python -m benchmarks.commit_reveal``.

request_ms_<mode>_<size>   time of a request with three sealed replicas of each segment
committed_over_<size>      the same with commitments, over without
hop_ms_more_<size>         the difference, for one segment: a round trip, a signature
and its verification on each side, and commitments made before bytes go out

The same server code, a fresh server each, in turn; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import hop
from benchmarks.hop_model import SEGMENTS
from benchmarks.report import report
from benchmarks.serving import serve

SIZES = ("256B", "1MiB", "16MiB")
REQUESTS = {"256B": 200, "1MiB": 40, "16MiB": 8}
MODES = {"answered": "", "committed": "commit_reveal = true\n"}


def request_ms(folder: Path, mode: str) -> dict[str, float]:
    """Return the median time of a request by size, against a fresh server."""
    scenarios = hop.scenarios(3, sealed=True) + MODES[mode]
    (folder / "scenarios-3.toml").write_text(scenarios)
    identifier, variables = hop.environment("secure_3", folder)
    found = {}
    with serve(identifier, variables) as server:
        for size in SIZES:
            spec = {
                "nbytes": hop.SIZES[size],
                "requests": REQUESTS[size],
                "concurrency": 1,
            }
            result = server.call("bench", {"spec": spec})
            if result["errors"]:
                raise SystemExit(f"{mode} {size}: {result['first_error']}")
            found[size] = float(result["p50_ms"])
    return found


def figures(runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Return medians, ratios and differences."""
    found = {}
    for size in SIZES:
        answered, committed = (
            statistics.median(run[size] for run in runs[mode]) for mode in MODES
        )
        found[f"request_ms_answered_{size}"] = answered
        found[f"request_ms_committed_{size}"] = committed
        found[f"committed_over_{size}"] = committed / answered
        found[f"hop_ms_more_{size}"] = (committed - answered) / SEGMENTS
    return found


def measure(*, repetitions: int = 5) -> dict[str, Any]:
    """Return the JSON object of this benchmark."""
    runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory(prefix="commit-") as name:
        folder = Path(name)
        hop.prepare(folder)
        for repetition in range(repetitions):
            for mode in MODES:
                print(f"repetition {repetition + 1}: {mode}", file=sys.stderr)
                runs[mode].append(request_ms(folder, mode))
    return report(
        "commit_reveal",
        figures(runs),
        "bentoml",
        "onnxruntime",
        repetitions=repetitions,
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="What commitments cost.")
    parser.add_argument("--json", action="store_true", help="what it prints anyway")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(json.dumps(measure(repetitions=options.repetitions), indent=2))


if __name__ == "__main__":
    main()
