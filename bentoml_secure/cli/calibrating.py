"""``calibrate``: tolerances that honest runtimes need and cheats do not pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bentoml_secure.cli.outcome import Outcome, State, own_files, plain, settle
from bentoml_secure.cli.parameters import FILE, as_json
from bentoml_secure.cli.splitting import progress

if TYPE_CHECKING:
    from bentoml_secure.cli.calibration import Found, Request

DEFAULT_MARGIN = 8.0
MIN_INPUTS = 64
MAX_INPUTS = 1 << 16


@click.command()
@click.argument("folder", type=FILE, metavar="PLAN")
@click.option(
    "--samples",
    type=FILE,
    metavar="FILE.npz",
    help="Inputs by name, rows along the batch or a first axis."
    "  [default: generated from the input types]",
)
@click.option(
    "--inputs",
    type=click.IntRange(MIN_INPUTS, MAX_INPUTS),
    default=MIN_INPUTS,
    show_default=True,
    help="How many inputs to compare on.",
)
@click.option("--rule", metavar="NAME", help="Rule of every segment.  [default: as is]")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help="Runtime to permit, such as torch or onnxruntime:BASIC; repeatable."
    "  [default: all that are installed]",
)
@click.option(
    "--other-python",
    "pythons",
    type=FILE,
    multiple=True,
    metavar="PATH",
    help="Interpreter of an environment with another ONNX Runtime; repeatable.",
)
@click.option(
    "--margin",
    type=click.FloatRange(min=1.0),
    default=DEFAULT_MARGIN,
    show_default=True,
    help="Tolerance, as a multiple of the largest honest distance.",
)
@click.option(
    "--report",
    type=FILE,
    metavar="DIR",
    help="Folder for report.json, report.md and plot.svg.",
)
@click.option("--dry-run", is_flag=True, help="Leave plan.json as it is.")
@as_json
def calibrate(
    folder: Path,
    samples: Path | None,
    inputs: int,
    rule: str | None,
    runtimes: tuple[str, ...],
    pythons: tuple[Path, ...],
    margin: float,
    report: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Measure how far honest runs of PLAN's segments differ, and write it there.

    Every segment runs on every runtime with several thread counts and batch sizes, and
    altered as cheats would. Refused where a cheat comes within the tolerance; the
    report is written all the same. PLAN is a plan's folder, not sealed yet.
    """
    from bentoml_secure.cli.calibration import Request
    from bentoml_secure.split import RuntimeChoice

    request = Request(
        folder=folder,
        samples=samples,
        inputs=inputs,
        rule=rule,
        runtimes=tuple(map(RuntimeChoice.parse, runtimes)),
        pythons=pythons,
        margin=margin,
    )
    settle(
        "calibration",
        lambda: _calibrate(request, report, dry_run=dry_run),
        as_json=as_json,
    )


def _calibrate(request: Request, report: Path | None, *, dry_run: bool) -> Outcome:
    from bentoml_secure.cli.calibration import measure, to_json, write_plan
    from bentoml_secure.cli.calibration_report import write_report

    with progress() as tell:
        found = measure(request, tell or _silent)
    if report is not None:
        write_report(report, found)
    found.require_apart()
    if not dry_run:
        with own_files(str(request.folder)):
            write_plan(request.folder, found.plan)
    return Outcome(
        state=State.ACCEPTED,
        kind="calibration",
        claims={**to_json(found), "written": not dry_run},
        summary=_lines(found, report, dry_run=dry_run),
    )


def _silent(_: str) -> None:
    """Take no notice."""


def _lines(found: Found, report: Path | None, *, dry_run: bool) -> list[str]:
    origin = "made up" if found.made_up else "given"
    lines = [f"{found.plan.model_name}: {found.inputs} inputs, {origin}"]
    lines += list(found.notes)
    for index, one in enumerate(found.segments):
        result = one.calibrated
        nearest: Any = result.nearest
        cheat = f"{nearest.name} at {nearest.smallest:.3g}" if nearest else "none"
        lines.append(
            f"  {index}  tolerance {one.before:.3g} -> {result.tolerance:.3g}"
            f" ({result.margin:g} x {result.spread.largest:.3g}, {len(one.runs)} runs),"
            f" false alarm <= {result.false_alarm:.3g}, nearest cheat {cheat}"
        )
        lines += [
            f"     {cheat.name}: {cheat.not_applicable or 'no effect on any input'}"
            for cheat in result.cheats
            if not cheat.distances
        ]
        if not result.tolerance:
            lines.append("     all honest runs were bit-equal: only equal bits agree")
    lines.append(f"plan {found.plan.digest}{' (not written)' if dry_run else ''}")
    if report is not None:
        lines.append(f"report in {plain(report)}")
    return lines
