"""Make the plan of services/encoder.py of the published weights.

    python -m examples.encoder.prepare

1. writes all-MiniLM-L6-v2 as an ONNX graph
2. splits it into four segments, compared with the whole on real sentences
3. puts the published tokenizer beside the plan
4. calibrates: measures how far honest runtimes lie apart on further sentences, permits
   them, and sets each segment's tolerance. Two minutes, without which a plan has the
   default tolerance: too narrow for this model on mixed runtimes
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

from bentoml_secure.errors import SecureError
from bentoml_secure.split import Plan, load_plan, split_onnx
from bentoml_secure.tensors import Array
from examples.diagnosis.commands import verdict_of
from examples.encoder.graph import build_graph
from examples.encoder.published import published_folder, read_weights
from examples.encoder.sentences import text
from services.wordpieces import WordPieces, read_tokenizer_file

SEGMENTS = 4
NAME = "all-MiniLM-L6-v2"
MODELS = Path("models")
PLAN, TOKENIZER, WHOLE = "encoder", "encoder-tokenizer.json", "encoder.onnx"
"""In the folder of models. The whole model is what answers are compared with."""

REPORT = "encoder-calibration"

_SAMPLES = ((0, 1, 2, 3), (4100,))
# Single sentences and longer texts, filled up to the longest of them.
_CALIBRATION = (*range(0, 64, 4), *range(10_000, 20_000, 125))


def prepare(models: Path) -> Plan:
    """Write the plan, the tokenizer and the whole model into a folder.

    Args:
        models: The folder; an earlier plan in it is replaced.

    Raises:
        SecureError: The published files are not there or not those; the folder is in
            use for something else.
    """
    published = published_folder()
    model = build_graph(read_weights(published))
    tokenizer = read_tokenizer_file(published / "tokenizer.json")
    models.mkdir(parents=True, exist_ok=True)
    onnx.save(model, models / WHOLE)
    (models / TOKENIZER).write_bytes(tokenizer)
    return split_onnx(
        models / WHOLE,
        models / PLAN,
        segments=SEGMENTS,
        samples=samples(models / TOKENIZER, _SAMPLES),
        name=NAME,
    )


def samples(
    tokenizer: Path, batches: Sequence[Sequence[int]]
) -> tuple[dict[str, Array], ...]:
    """Return model inputs of real sentences.

    Args:
        tokenizer: The tokenizer's file.
        batches: The numbers of each batch's texts.
    """
    pieces = WordPieces(tokenizer)
    return tuple(
        pieces.feed([text(number) for number in batch], truncate=False)
        for batch in batches
    )


def calibrate(models: Path, pythons: Sequence[Path] = ()) -> dict[str, Any]:
    """Measure honest runtimes on real sentences; write tolerances into the plan.

    Args:
        models: What ``prepare`` made; gets the report too.
        pythons: Of environments with other versions of ONNX Runtime.

    Returns:
        What ``bentoml-secure calibrate --json`` says.

    Raises:
        SecureError: A runtime that does not run.
        RuntimeError: A cheat would pass a tolerance that honest runtimes need.
    """
    batches = [(number,) for number in _CALIBRATION]
    feeds = samples(models / TOKENIZER, batches)
    longest = max(feed["input_ids"].shape[1] for feed in feeds)

    def filled(name: str) -> Array:
        rows = [feed[name] for feed in feeds]
        return np.concatenate(
            [np.pad(row, ((0, 0), (0, longest - row.shape[1]))) for row in rows]
        )

    with tempfile.TemporaryDirectory(prefix="encoder-") as work:
        file = Path(work) / "samples.npz"
        arrays: dict[str, Any] = {name: filled(name) for name in feeds[0]}
        np.savez(file, allow_pickle=False, **arrays)
        words: list[str | Path] = ["calibrate", models / PLAN, "--samples", file]
        words += ["--inputs", str(len(feeds)), "--report", models / REPORT]
        for python in pythons:
            words += ["--other-python", python]
        return verdict_of(*words)


@click.command()
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    default=MODELS,
    show_default=True,
    help="Folder that the plan and its companions go to.",
)
@click.option(
    "--other-python",
    "pythons",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="PYTHON",
    help="Interpreter of an environment with another version of ONNX Runtime, which"
    " replicas may be on as well; repeatable.",
)
@click.option(
    "--calibration/--no-calibration",
    "calibrates",
    default=True,
    help="Measure tolerances, or leave the default.",
)
def main(models: Path, pythons: tuple[Path, ...], calibrates: bool) -> None:
    """Make the plan of services/encoder.py of the published weights."""
    try:
        plan = prepare(models)
        if calibrates:
            click.echo("calibrating: some minutes", err=True)
            calibrate(models, pythons)
            plan = load_plan(models / PLAN)
    except (SecureError, RuntimeError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    click.echo(f"{plan.model_name}: {len(plan.segments)} segments in {models / PLAN}")
    for index, segment in enumerate(plan.segments):
        made = ", ".join(spec.name for spec in segment.outputs)
        click.echo(f"  {index}  tolerance {segment.tolerance:.2e} -> {made}")
    click.echo(f"plan {plan.digest}")


if __name__ == "__main__":
    main()
