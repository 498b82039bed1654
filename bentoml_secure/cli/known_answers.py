"""``trials``: known answers, by which replicas without a vote earn one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bentoml_secure.cli.outcome import own_files
from bentoml_secure.cli.parameters import FILE
from bentoml_secure.errors import ConfigurationError

if TYPE_CHECKING:
    from bentoml_secure.consensus.known_answers import KnownAnswers
    from bentoml_secure.split import Plan
    from bentoml_secure.split.runtime import Chain
    from bentoml_secure.split.samples import Sample


COUNTS = (8, 1024)
"""REQUIRED_TRIALS and MAX_ANSWERS, which are not imported for the sake of a help."""


@click.group()
def trials() -> None:
    """Make known answers to try replicas with."""


@trials.command()
@click.argument("plan_dir", type=FILE, metavar="PLAN_DIR")
@click.option(
    "--samples",
    type=FILE,
    multiple=True,
    required=True,
    metavar="FILE.npz",
    help="Inputs of the model by name, like those of real requests; repeatable.",
)
@click.option(
    "--inputs",
    "count",
    type=click.IntRange(*COUNTS),
    metavar="N",
    help="How many known answers, 8 to 1024.  [default: as many as the samples give]",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    show_default=True,
    help="Of the samples' first axis in one known answer, where the plan leaves its"
    " size free: as many as requests have.",
)
@click.option(
    "--out", type=FILE, required=True, metavar="FILE", help="Must be new; keep it safe."
)
def make(
    plan_dir: Path, samples: tuple[Path, ...], count: int | None, rows: int, out: Path
) -> None:
    """Run the segments of PLAN_DIR on samples and keep what they make.

    The entry is given the file in BENTOML_SECURE_TRIALS. It holds what passes between
    segments in the clear, and works only while replicas have not seen it.
    """
    from bentoml_secure.digest import digest_file_bytes
    from bentoml_secure.split import load_chain

    with own_files(str(plan_dir)):
        chain = load_chain(plan_dir)
    inputs = _inputs(chain.plan, samples, rows, count)
    with own_files("samples"):
        answers = _answers(chain, inputs)
        data = answers.to_bytes()
    _write(out, data)
    each = f"{len(inputs)} of each of {len(answers.segments)} segments"
    click.echo(f"known answers: {each}, {len(data):,} bytes in {out}")
    click.echo(f"plan {answers.plan}")
    click.echo(f"file {digest_file_bytes(data)}")


def _inputs(
    plan: Plan, files: Sequence[Path], rows: int, count: int | None
) -> list[Sample]:
    """Return different inputs of the model.

    Raises:
        ConfigurationError: The samples are not the plan's, or too few.
    """
    from bentoml_secure.consensus.known_answers import MAX_ANSWERS
    from bentoml_secure.consensus.reputation import REQUIRED_TRIALS
    from bentoml_secure.split import read_samples
    from bentoml_secure.tensors import encode, require

    different: dict[bytes, Sample] = {}
    for path in files:
        with own_files(str(path)):
            sample = read_samples(path)
            require(sample, plan.inputs)
            for part in islice(_parts(plan, sample, rows), MAX_ANSWERS):
                different.setdefault(encode(part), part)
    want = REQUIRED_TRIALS if count is None else count
    if len(different) < want:
        raise ConfigurationError(
            f"samples: got {len(different)} different inputs of the model, want {want}"
            " or more.",
            remedy="Give more --samples, or fewer --rows.",
        )
    return list(different.values())[: MAX_ANSWERS if count is None else count]


def _parts(plan: Plan, sample: Sample, rows: int) -> Iterator[Sample]:
    """Yield a sample cut along its first axis, if the plan lets that be of any size."""
    first = {spec.shape[0] if spec.shape else 0 for spec in plan.inputs}
    if len(first) != 1 or not isinstance(first.pop(), str):
        yield sample
        return
    length = len(sample[plan.inputs[0].name])
    for begin in range(0, length - rows + 1, rows):
        yield {name: array[begin : begin + rows] for name, array in sample.items()}


def _answers(chain: Chain, inputs: Sequence[Sample]) -> KnownAnswers:
    from bentoml_secure.consensus.known_answers import KnownAnswer, KnownAnswers

    runs = [chain.run_all(sample) for sample in inputs]
    return KnownAnswers(
        plan=chain.plan.digest,
        segments=tuple(
            tuple(
                KnownAnswer(
                    inputs={spec.name: made[spec.name] for spec in segment.inputs},
                    outputs={spec.name: made[spec.name] for spec in segment.outputs},
                )
                for made in runs
            )
            for segment in chain.plan.segments
        ),
    )


def _write(out: Path, data: bytes) -> None:
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(out, flags, 0o600), "wb") as stream:
            stream.write(data)
    except FileExistsError as error:
        raise ConfigurationError(f"{out}: exists; nothing is overwritten.") from error
    except OSError as error:
        raise ConfigurationError(
            f"{out}: cannot be written: {error.strerror}."
        ) from error
