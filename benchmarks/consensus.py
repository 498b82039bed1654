"""What consensus costs: ``python -m benchmarks.consensus --json``.

straggler_p99_ratio   p99 of requests while one of three replicas answers a second late,
over that of none; blocks of each in turn
overhead_ratio        a round of three replicas, of which two must agree, over the
slowest of the same three asks without consensus: all three are asked at once in both,
so that the load is the same and only the protocol is counted. Rounds and asks in turn,
medians; each waits until late votes are in
overhead_ratio_unanimous   likewise where all three must agree, so that both wait for
the slowest
decide_ms_3x1MiB      the decision alone: three answers of 1 MiB, all different
cost_n_<n>            a request through n replicas over one through 1
cost_segments_<s>     a request through s segments, three replicas each, over one

``..._commit_reveal`` are the same with commitments before answers, over the same
baselines without. Replicas are processes, tensors are sealed, everything shares one
machine; a segment is ``y = 1.0001 x``, so nearly all of the time is the hop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hop_model import write_plan
from benchmarks.report import report
from benchmarks.serving import Server, serve
from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.consensus.quorum import Member, Vote, decide
from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.digest import Digest

SIZES = {"64KiB": 64 << 10, "1MiB": 1 << 20}
COUNTS = (1, 3, 5, 7)
SEGMENTS = range(1, 7)
COST_SIZE = SIZES["64KiB"]
_PROTOCOLS = {"": "n3", "_commit_reveal": "n3-committed"}
DEADLINE_MS = 5000
_WARM_SECONDS = 1.0
_HELD_SECONDS = DEADLINE_MS / 1000 + 3.0
"""A late replica holds what it committed to for nobody so long, and only so much."""


def scenarios() -> str:
    """Return a scenarios file: n replicas, all of them, and with commitments."""
    text = 'version = 1\nminimum = "n1"\n'
    for name, count, quorum, committed in (
        *((f"n{n}", n, n // 2 + 1, False) for n in COUNTS),
        ("n3-all", 3, 3, False),
        ("n3-committed", 3, 2, True),
        ("n3-all-committed", 3, 3, True),
    ):
        text += f"""
[{name}]
replicas = {count}
quorum = {quorum}
commit_reveal = {str(committed).lower()}
deadline_ms = {DEADLINE_MS}
grace_ms = 200
evidence_max_age_seconds = 300
"""
    return text


@contextmanager
def served(folder: Path, *, segments: int, replicas: int) -> Iterator[Server]:
    """Serve a chain of so many segments with so many replicas of each."""
    own = folder / f"{segments}x{replicas}"
    write_plan(own / "plan", segments)
    # A scenario never asks for more replicas than there are.
    tables = scenarios().split("\n[")
    kept = [
        t for t in tables[1:] if int(t.split("replicas = ")[1].split()[0]) <= replicas
    ]
    (own / "scenarios.toml").write_text("\n[".join([tables[0], *kept]))
    variables = {
        "CONSENSUS_PLAN": str(own / "plan"),
        "CONSENSUS_REPLICAS": str(replicas),
        "CONSENSUS_SCENARIOS": str(own / "scenarios.toml"),
        "CONSENSUS_SWITCH": str(folder / "late"),
        "BENTOML_SECURE_DEV_ROOT": str(folder / "root"),
    }
    print(f"{segments} segments of {replicas} replicas", file=sys.stderr)
    with serve("benchmarks.consensus_service:Measured", variables) as server:
        wait_until_whole(server, segments, replicas)
        yield server


def wait_until_whole(server: Server, segments: int, replicas: int) -> None:
    """Wait until every replica is attested: ready is it with a quorum already."""
    want, ends = segments * replicas, time.monotonic() + 60
    while _attested(server) < want:
        if time.monotonic() > ends:
            raise SystemExit(f"not all {want} replicas are attested")
        time.sleep(0.2)
    time.sleep(_WARM_SECONDS)


def _attested(server: Server) -> int:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:  # noqa: S310
        text = answer.read().decode()
    lines = [n for n in text.splitlines() if n.startswith("bentoml_secure_attested{")]
    return sum(line.endswith(" 1.0") for line in lines)


def requests(
    server: Server, scenario: str, count: int, *, segments: int = 1
) -> list[float]:
    """Return the milliseconds of requests."""
    spec = {
        "scenario": scenario,
        "segments": segments,
        "nbytes": COST_SIZE,
        "count": count,
    }
    times: list[float] = server.call("requests", spec, scenario=scenario)["ms"]
    return times


def straggling(server: Server, switch: Path, blocks: int) -> dict[str, float]:
    """Return p50 and p99 of requests with and without one late replica."""
    found: dict[str, float] = {}
    for suffix, scenario in _PROTOCOLS.items():
        times: dict[str, list[float]] = {"none": [], "late": []}
        for _ in range(blocks):
            switch.unlink(missing_ok=True)
            times["none"] += requests(server, scenario, 60)
            switch.touch()
            times["late"] += requests(server, scenario, 60)
        switch.unlink()
        time.sleep(_HELD_SECONDS if suffix else _WARM_SECONDS)
        for who, each in times.items():
            found[f"request_p50_ms_{who}{suffix}"] = statistics.median(each)
            found[f"request_p99_ms_{who}{suffix}"] = quantile(each, 0.99)
        late, none = (
            found[f"request_p99_ms_{who}{suffix}"] for who in ("late", "none")
        )
        found[f"straggler_p99_ratio{suffix}"] = late / none
    return found


def quantile(times: list[float], share: float) -> float:
    """Return the time within which such a share of requests ended."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def overhead(server: Server, rounds: int) -> dict[str, float]:
    """Return rounds over the slowest of the same asks without consensus."""
    found = {}
    for size, nbytes in SIZES.items():
        count = rounds if size == "64KiB" else rounds // 2
        for suffix, scenario in {
            **_PROTOCOLS,
            "_unanimous": "n3-all",
            "_unanimous_commit_reveal": "n3-all-committed",
        }.items():
            spec = {"scenario": scenario, "nbytes": nbytes, "count": count}
            times = server.call("rounds", spec, scenario=scenario)
            single = statistics.median(times["single"])
            agreed = statistics.median(times["agreed"])
            found[f"round_ms_{size}{suffix}"] = agreed
            found[f"slowest_ms_{size}{suffix}"] = single
            found[f"overhead_ratio_{size}{suffix}"] = agreed / single
    for suffix in ("", "_commit_reveal", "_unanimous", "_unanimous_commit_reveal"):
        found[f"overhead_ratio{suffix}"] = found[f"overhead_ratio_1MiB{suffix}"]
    return found


def decide_ms(times: int = 20) -> float:
    """Return the median time of a decision over three different answers of 1 MiB."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(SIZES["1MiB"] // 4, dtype=np.float32)
    answers = {
        name: {"x1": x * np.float32(1 + index * 1e-6)}
        for index, name in enumerate("abc")
    }
    votes = [
        Vote(replica=name, commitments=(("x1", Digest(f"{index:064x}")),))
        for index, name in enumerate(answers)
    ]
    distance = load_rule("within_tolerance").distance
    taken = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        tally = decide(
            [Member(replica=name) for name in answers],
            votes,
            [],
            quorum=2,
            tolerance=2e-5,
            distances=lambda a, b: distance(answers[a], answers[b]),
        )
        taken.append(time.perf_counter() - begun)
        assert (tally.accepted, len(tally.groups)) == (True, 3)
    return statistics.median(taken[1:]) * 1e3


def cost_of_replicas(server: Server, blocks: int) -> dict[str, float]:
    """Return what requests through n replicas cost."""
    names = {f"n_{n}": f"n{n}" for n in COUNTS}
    runs: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(blocks):
        for name, scenario in names.items():
            runs[name] += requests(server, scenario, 25)
    return _costs(runs, "n_1")


def cost_of_segments(server: Server, blocks: int) -> dict[str, float]:
    """Return what requests through so many segments of three replicas cost."""
    runs: dict[str, list[float]] = {}
    for _ in range(blocks):
        for segments in SEGMENTS:
            for suffix, scenario in _PROTOCOLS.items():
                of = runs.setdefault(f"segments_{segments}{suffix}", [])
                of += requests(server, scenario, 15, segments=segments)
    return _costs(runs, "segments_1")


def _costs(runs: Mapping[str, list[float]], one: str) -> dict[str, float]:
    medians = {name: statistics.median(times) for name, times in runs.items()}
    found = {f"request_ms_{name}": median for name, median in medians.items()}
    return found | {f"cost_{name}": m / medians[one] for name, m in medians.items()}


def measure(*, blocks: int = 5) -> dict[str, Any]:
    """Return the JSON object of this benchmark.

    Args:
        blocks: How often each measurement is repeated, in turn with what it is
            compared with.
    """
    found: dict[str, Any] = {"decide_ms_3x1MiB": decide_ms()}
    with tempfile.TemporaryDirectory(prefix="consensus-") as name:
        folder = Path(name)
        create_dev_root(folder / "root", now=datetime.now(UTC))
        with served(folder, segments=1, replicas=3) as server:
            found |= straggling(server, folder / "late", blocks)
            found |= overhead(server, 30 * blocks)
        with served(folder, segments=1, replicas=max(COUNTS)) as server:
            found |= cost_of_replicas(server, blocks)
        with served(folder, segments=max(SEGMENTS), replicas=3) as server:
            found |= cost_of_segments(server, blocks)
    return report("consensus", found, "bentoml", "onnxruntime", blocks=blocks)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="What consensus costs.")
    parser.add_argument("--json", action="store_true", help="what it prints anyway")
    parser.add_argument("--blocks", type=int, default=5)
    options = parser.parse_args()
    print(json.dumps(measure(blocks=options.blocks), indent=2))


if __name__ == "__main__":
    main()
