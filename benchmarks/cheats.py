"""Cheats against the encoder, and honest replicas on mixed runtimes.

    python -m benchmarks.cheats --json --requests 200 --honest 5000

cheats       each cheat, done by one of twelve replicas at a time, in each seat in turn:
             how often its receipt names exactly that replica, and what was served
honest       three replicas of each segment on different runtimes, nobody cheating: how
             often somebody is named all the same
noise        the least noise that is named, segment by segment
deviations   what lies just below it do to an embedding

Every answer is that of real services, its receipt judged by the client, and compared
with the whole model in this process. The other ONNX Runtime comes from pip's index.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

from benchmarks.cheats_asking import Questioner
from benchmarks.cheats_deviation import deviations
from benchmarks.cheats_environments import make_environment
from benchmarks.cheats_page import write_section
from benchmarks.cheats_runs import find_noise, run_cheat, run_honest
from benchmarks.cheats_stage import (
    Host,
    Seat,
    Stage,
    make_stage,
    serve_cheating,
    serve_mixed,
)
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.split.runtimes import RuntimeChoice
from bentoml_secure.testing.cheats import CHEATS
from examples.encoder.prepare import calibrate, prepare

OTHER_ONNXRUNTIME = "1.23.2"
"""What the second replica of every segment runs on while nobody cheats."""

THIRD = ("torch", "onnxruntime:BASIC")
"""What the third replica of every segment runs on, by round of the honest run."""

_TIMED = 20


def say(words: str) -> None:
    """Tell how far it is, apart from the figures."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def measure_cheats(
    stage: Stage, cheats: Sequence[str], requests: int
) -> dict[str, Any]:
    """Serve once; try each cheat, then ever less noise.

    Args:
        stage: Where.
        cheats: By name.
        requests: That count, of each.
    """
    with serve_cheating(stage) as url, Questioner(url, stage) as questioner:
        questioner.ask_until_whole()
        taken = [questioner.ask().seconds for _ in range(_TIMED)]
        runs = []
        for cheat in cheats:
            runs.append(run_cheat(stage, questioner, cheat, requests).to_json())
            say(f"{runs[-1]}")
        noise = []
        for segment in range(len(stage.plan.segments)):
            noise.append(find_noise(stage, questioner, segment).to_json())
            say(f"{noise[-1]}")
    return {
        "seconds_per_request": statistics.median(taken),
        "cheats": runs,
        "noise": noise,
    }


def measure_honest(stage: Stage, python: Path, requests: int) -> list[dict[str, Any]]:
    """Serve replicas on mixed runtimes, twice; count who is accused.

    Args:
        stage: Where.
        python: Of the environment with the other ONNX Runtime.
        requests: In all.
    """
    own = Path(sys.executable)
    runs = []
    for number, third in enumerate(THIRD):
        row = (
            Host(python=own, runtime="onnxruntime", version=version("onnxruntime")),
            Host(python=python, runtime="onnxruntime", version=OTHER_ONNXRUNTIME),
            Host(python=own, runtime=third, version=version(third.partition(":")[0])),
        )
        require_permitted(stage, row)
        hosts: Mapping[Seat, Host] = {seat: row[seat.replica] for seat in stage.seats}
        say(f"starting replicas on {', '.join(map(str, row))}")
        with (
            serve_mixed(stage, hosts, f"mixed-{number}") as url,
            Questioner(url, stage) as questioner,
        ):
            questioner.ask_until_whole()
            names = tuple(map(str, row))
            share = requests // len(THIRD)
            runs.append(run_honest(stage, questioner, names, share, say).to_json())
        say(f"{runs[-1]}")
    return runs


def require_permitted(stage: Stage, hosts: Sequence[Host]) -> None:
    """Refuse to start replicas on what the plan does not permit.

    Raises:
        ConfigurationError: The plan does not permit one of them.
    """
    for host in hosts:
        choice = RuntimeChoice.parse(host.runtime)
        if not stage.plan.runtime.permits(choice, Version(host.version)):
            raise ConfigurationError(
                f"{host}: the plan does not permit it.",
                remedy="Make the plan with `python -m examples.encoder.prepare`.",
            )


def environment() -> dict[str, str]:
    """Return what the figures depend on."""
    packages = ("bentoml", "onnxruntime", "torch", "numpy")
    return {
        "Python": platform.python_version(),
        **{name: version(name) for name in packages},
        "CPUs": str(os.cpu_count()),
        "machine": platform.machine(),
    }


def measure(
    folder: Path, models: Path | None, cheats: Sequence[str], requests: int, honest: int
) -> dict[str, Any]:
    """Return all figures.

    Args:
        folder: To serve from.
        models: What ``examples.encoder.prepare`` made; made anew if left out.
        cheats: Which are tried.
        requests: That count, of each cheat.
        honest: Requests while nobody cheats; none if 0.
    """
    python = None
    if honest:
        say(f"making an environment with onnxruntime {OTHER_ONNXRUNTIME}")
        python = make_environment(folder / "other", OTHER_ONNXRUNTIME)
    if models is None:
        say("making the plan, calibrating")
        models = folder / "models"
        prepare(models)
        calibrate(models, () if python is None else (python,))
    stage = make_stage(folder / "stage", models)
    found = measure_cheats(stage, cheats, requests)
    found["honest"] = [] if python is None else measure_honest(stage, python, honest)
    say("following lies within tolerance")
    found["deviations"] = [one.to_json() for one in deviations(stage)]
    found["tolerances"] = [segment.tolerance for segment in stage.plan.segments]
    found["plan"] = stage.plan.digest
    return {"name": "cheats", "figures": found, "environment": environment()}


def main() -> None:
    """Run all; print the figures, and write the page."""
    # As by the keyboard: what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the figures")
    parser.add_argument("--requests", type=int, default=200, help="of each cheat")
    parser.add_argument("--honest", type=int, default=5000, help="with nobody cheating")
    parser.add_argument("--cheats", nargs="+", default=list(CHEATS), metavar="CHEAT")
    parser.add_argument("--models", type=Path, help="of examples.encoder.prepare")
    parser.add_argument("--write", type=Path, help="page that gets the tables")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cheats-") as folder:
        found = measure(
            Path(folder), given.models, given.cheats, given.requests, given.honest
        )
    if given.write:
        write_section(given.write, found)
    if given.json or not given.write:
        json.dump(found, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
