"""Make the plan of services/encoder.py of the published weights.

    python -m examples.encoder.prepare

1. writes all-MiniLM-L6-v2 as an ONNX graph
2. splits it into four segments, compared with the whole on real sentences
3. puts the published tokenizer beside the plan
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import onnx

from bentoml_secure.errors import SecureError
from bentoml_secure.split import Plan, split_onnx
from bentoml_secure.tensors import Array
from examples.encoder.graph import build_graph
from examples.encoder.published import published_folder, read_weights
from examples.encoder.sentences import text
from services.wordpieces import WordPieces, read_tokenizer_file

SEGMENTS = 4
NAME = "all-MiniLM-L6-v2"
MODELS = Path("models")
PLAN, TOKENIZER, WHOLE = "encoder", "encoder-tokenizer.json", "encoder.onnx"
"""In the folder of models. The whole model is what answers are compared with."""

_SAMPLES = ((0, 1, 2, 3), (4100,))


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


@click.command()
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    default=MODELS,
    show_default=True,
    help="Folder that the plan and its companions go to.",
)
def main(models: Path) -> None:
    """Make the plan of services/encoder.py of the published weights."""
    try:
        plan = prepare(models)
    except SecureError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    click.echo(f"{plan.model_name}: {len(plan.segments)} segments in {models / PLAN}")
    for index, segment in enumerate(plan.segments):
        made = ", ".join(spec.name for spec in segment.outputs)
        click.echo(f"  {index}  {segment.file} -> {made}")
    click.echo(f"plan {plan.digest}")


if __name__ == "__main__":
    main()
