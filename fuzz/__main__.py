"""Run targets under atheris: ``python -m fuzz [TARGET [OPTION ...]]``."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fuzz

SECONDS = 20
TARGETS = sorted(
    module.name
    for module in pkgutil.iter_modules(fuzz.__path__, "")
    if module.name[0] != "_"
)


def run(name: str, options: list[str]) -> None:
    """Fuzz one target in this process, from its seeds; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["bentoml_secure"]):
        target = importlib.import_module(f"fuzz.{name}")
    with tempfile.TemporaryDirectory() as corpus:
        for seed in target.seeds():
            (Path(corpus) / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
        options = options or [f"-max_total_time={SECONDS}"]
        atheris.Setup([name, *options, corpus], target.one)
        atheris.Fuzz()


def run_all() -> int:
    """Fuzz each target in a process of its own; return how many found a fault."""
    commands = ([sys.executable, "-m", "fuzz", name] for name in TARGETS)
    return sum(
        subprocess.run(command, check=False).returncode != 0 for command in commands
    )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(run_all())
    run(sys.argv[1], sys.argv[2:])
