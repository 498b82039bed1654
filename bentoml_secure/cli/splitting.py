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
TICK_SECONDS = 0.2

_WIPE = "\r\x1b[K"


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
    from bentoml_secure.split import read_samples, split_onnx

    started = time.monotonic()
    with own_files(str(samples)):
        inputs = None if samples is None else read_samples(samples)
    with own_files(str(model)), _warnings_shown(), progress() as tell:
        plan = split_onnx(
            model,
            out,
            segments=None if cuts else segments,
            cuts=cuts or None,
            tolerance=tolerance,
            runtime=runtime,
            samples=inputs,
            progress=tell,
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
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for warning in caught:
                click.echo(f"warning: {plain(warning.message)}", err=True)


class _Ticker:
    """Shows on a terminal what runs, and for how long."""

    def __init__(self) -> None:
        self._doing = "starting"
        self._done = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def tell(self, doing: str) -> None:
        """Say what runs now."""
        self._doing = doing

    def start(self) -> None:
        """Begin to show it."""
        self._thread.start()

    def stop(self) -> None:
        """Wipe the line: what follows starts at its beginning."""
        self._done.set()
        self._thread.join()
        click.echo(_WIPE, nl=False, err=True)

    def _tick(self) -> None:
        while not self._done.wait(TICK_SECONDS):
            elapsed = time.monotonic() - self._started
            line = f"{_WIPE}{plain(self._doing)} ... {elapsed:.0f} s"
            click.echo(line, nl=False, err=True)


@contextmanager
def progress() -> Iterator[Callable[[str], None] | None]:
    """Show progress on a terminal, and only there."""
    if not sys.stderr.isatty():
        yield None
        return
    ticker = _Ticker()
    ticker.start()
    try:
        yield ticker.tell
    finally:
        ticker.stop()
