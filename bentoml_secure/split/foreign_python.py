"""Another environment's ONNX Runtime, asked by way of files.

The interpreter is the caller's choice and runs with the caller's rights: name only one
that you would run yourself. What it writes back is parsed like anything from outside.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from bentoml_secure.digest import parse_json
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split import foreign_script
from bentoml_secure.split.files import read_bytes
from bentoml_secure.split.runtime_onnx import OPTIONS
from bentoml_secure.split.runtimes import GraphLevel
from bentoml_secure.tensors import MAX_TOTAL_BYTES, Array, decode, encode

PROBE_SECONDS = 60.0
RUN_SECONDS = 1800.0
_MAX_ANSWER_BYTES = 4096
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TMPDIR")

Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRun:
    """One pass over all feeds.

    Attributes:
        graph_level: How far the graph may be rewritten.
        threads: For one operation.
        feeds: The segment's inputs, one set after the other.
    """

    graph_level: GraphLevel
    threads: int
    feeds: tuple[Tensors, ...]


class ForeignPython:
    """A Python interpreter, 3.10 or newer, whose environment has onnxruntime and numpy.

    Args:
        path: Of the interpreter.

    Raises:
        ConfigurationError: It does not start, or has no onnxruntime.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        said = self._call([], seconds=PROBE_SECONDS)
        try:
            found = parse_json(said, what=str(path), max_bytes=_MAX_ANSWER_BYTES)
            version = Version(found["onnxruntime"])
        except (MalformedInputError, InvalidVersion, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path}: got {said[:100]!r}, want the version of its onnxruntime"
            ) from error
        self.version = version

    def run(
        self, model: bytes, outputs: Sequence[str], runs: Sequence[ForeignRun]
    ) -> list[list[dict[str, Array]]]:
        """Run a model there.

        Args:
            model: The ONNX file, all weights inside.
            outputs: Names of what to return.
            runs: What to do.

        Returns:
            For each run, for each of its feeds: the outputs by name.

        Raises:
            ConfigurationError: It fails there, or takes too long.
            MalformedInputError: It writes something else than was asked.
        """
        with tempfile.TemporaryDirectory(prefix="bentoml-secure-") as name:
            folder = Path(name)
            (folder / "model.onnx").write_bytes(model)
            entries = [
                _write_run(folder, number, run) for number, run in enumerate(runs)
            ]
            job = json.dumps({"outputs": list(outputs), "runs": entries})
            (folder / "job.json").write_text(job, "utf-8")
            self._call([str(folder)], seconds=RUN_SECONDS)
            return [
                [_read(folder, file, outputs) for file in entry["made"]]
                for entry in entries
            ]

    def _call(self, arguments: list[str], *, seconds: float) -> bytes:
        # -I: neither this process's folder nor its PYTHON* variables reach it.
        command = [str(self.path), "-I", str(foreign_script.__file__), *arguments]
        kept = {k: os.environ[k] for k in _KEPT_VARIABLES if k in os.environ}
        try:
            done = subprocess.run(
                command,
                env=kept,
                capture_output=True,
                timeout=seconds,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigurationError(f"{self.path}: {error}") from error
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ConfigurationError(
                f"{self.path}: ended with {done.returncode}: {' '.join(last):.300}",
                remedy="It must be a Python with onnxruntime and numpy installed.",
            )
        return done.stdout


def _write_run(folder: Path, number: int, run: ForeignRun) -> dict[str, Any]:
    feeds = [f"feed-{number}-{at}" for at in range(len(run.feeds))]
    for file, tensors in zip(feeds, run.feeds, strict=True):
        (folder / file).write_bytes(encode(tensors))
    return {
        "level": OPTIONS[run.graph_level],
        "threads": run.threads,
        "feeds": feeds,
        "made": [f"made-{number}-{at}" for at in range(len(run.feeds))],
    }


def _read(folder: Path, file: str, outputs: Sequence[str]) -> dict[str, Array]:
    made = decode(read_bytes(folder, file, max_bytes=MAX_TOTAL_BYTES))
    if made.keys() != set(outputs):
        raise MalformedInputError(
            f"{file}: got {sorted(made)!r:.200}, want {sorted(outputs)!r:.200}"
        )
    return made
