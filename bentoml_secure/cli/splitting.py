"""``split``: cut an ONNX model into segments."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bentoml_secure.cli.outcome import own_files, plain
from bentoml_secure.cli.parameters import FILE

if TYPE_CHECKING:
    from bentoml_secure.split import Plan, Segment

DEFAULT_TOLERANCE = 2e-5


@click.command()
@click.argument("model", type=FILE, metavar="MODEL.onnx")
@click.option("--segments", type=click.IntRange(1, 256), help="How many segments.")
@click.option(
    "--out", type=FILE, required=True, metavar="DIR", help="Folder of the plan."
)
@click.option(
    "--cut",
    "cuts",
    multiple=True,
    metavar="TENSOR",
    help="Cut right after the node that makes TENSOR; repeatable. Names every cut:"
    " --segments may then be left out.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0.0),
    default=DEFAULT_TOLERANCE,
    show_default=True,
    help="Largest distance between two honest replicas, max|a-b| / rms.",
)
@click.option(
    "--runtime",
    metavar="SPEC",
    help="ONNX Runtime versions that may serve the plan, such as '>=1.30,<1.33'."
    "  [default: the installed minor version]",
)
@click.option(
    "--samples",
    type=FILE,
    metavar="FILE.npz",
    help="Inputs by name, to compare the segments with the whole model on."
    "  [default: generated from the input types]",
)
def split(
    model: Path,
    segments: int | None,
    out: Path,
    cuts: tuple[str, ...],
    tolerance: float,
    runtime: str | None,
    samples: Path | None,
) -> None:
    """Cut MODEL.onnx into segments that run one after the other.

    Each chosen cut is tried on sample inputs and is bit-equal to the whole model. A
    cut that you name is taken as it is, with a warning where it is not equal.
    """
    if not cuts and segments is None:
        raise click.UsageError("want --segments N, or a --cut TENSOR for every cut")
    if cuts and segments not in (None, len(cuts) + 1):
        raise click.UsageError(
            f"{len(cuts)} cuts make {len(cuts) + 1} segments, want {segments}"
        )
    from bentoml_secure.split import split_onnx
    from bentoml_secure.split.samples import read_samples

    started = time.monotonic()
    with own_files(str(model)), _warnings_shown(), _progress(f"splitting {model}"):
        plan = split_onnx(
            model,
            out,
            segments=None if cuts else segments,
            cuts=cuts or None,
            tolerance=tolerance,
            runtime=runtime,
            samples=None if samples is None else read_samples(samples),
        )
    _print_plan(plan, out, time.monotonic() - started)


def _print_plan(plan: Plan, out: Path, seconds: float) -> None:
    click.echo(f"{plain(plan.model_name)}: {len(plan.segments)} segments in {out}")
    for index, segment in enumerate(plan.segments):
        click.echo(segment_line(index, segment, size=_bytes_of(out, segment)))
    click.echo(f"plan {plan.digest}")
    click.echo(f"{seconds:.1f} s", err=True)


def segment_line(index: int, segment: Segment, *, size: str = "") -> str:
    """Return a segment on one line: its file, what it reads and what it makes."""
    reads = ", ".join(spec.name for spec in segment.inputs)
    makes = ", ".join(spec.name for spec in segment.outputs)
    return plain(f"  {index}  {segment.file}{size}  {reads or '-'} -> {makes or '-'}")


def _bytes_of(folder: Path, segment: Segment) -> str:
    total = sum((folder / file.path).stat().st_size for file in segment.files)
    return f" ({total:,} bytes)"


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Print warnings as lines for people, without the place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield
        finally:
            for warning in caught:
                click.echo(f"warning: {plain(warning.message)}", err=True)


@contextmanager
def _progress(label: str, tick_seconds: float = 0.5) -> Iterator[None]:
    """Show on a terminal, and only there, that something still runs."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    ticker = threading.Thread(
        target=_tick, args=(label, tick_seconds, done.wait), daemon=True
    )
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()


def _tick(label: str, seconds: float, wait: Callable[[float], bool]) -> None:
    started = time.monotonic()
    while not wait(seconds):
        elapsed = time.monotonic() - started
        click.echo(f"\r{plain(label)} ... {elapsed:.0f} s", nl=False, err=True)
    # Wipe the line: what follows starts at its beginning.
    click.echo("\r\x1b[K", nl=False, err=True)
