"""The report of a calibration: report.json, report.md and plot.svg in a folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

from bentoml_secure.cli.calibration import (
    Found,
    SegmentFound,
    replace_file,
    to_json,
)
from bentoml_secure.cli.calibration_plot import draw
from bentoml_secure.cli.outcome import plain
from bentoml_secure.consensus.calibration import CONFIDENCE, Cheat, committee_bound
from bentoml_secure.errors import ConfigurationError

_COMMITTEES = (3, 5, 7)


def write_report(folder: Path, found: Found) -> None:
    """Write the three files.

    Raises:
        ConfigurationError: The folder cannot be made or written to.
    """
    document = json.dumps(to_json(found), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "report.json", document.encode())
        replace_file(folder / "plot.svg", draw(found).encode())
        replace_file(folder / "report.md", to_markdown(found).encode())
    except OSError as error:
        raise ConfigurationError(f"report: {error}") from error


def to_markdown(found: Found) -> str:
    """Return the report for people."""
    origin = "made up from the model's types" if found.made_up else "samples given"
    permitted = [f"{one.choice} {one.version}" for one in found.plan.runtime.permitted]
    lines = [
        f"# Calibration of {_cell(found.plan.model_name)}",
        "",
        f"{found.inputs} inputs, {origin}. Plan `{found.plan.digest}`.",
        f"Permitted beside the plan's own runtime: {', '.join(permitted) or 'none'}.",
        "",
        *(f"- {_cell(note)}" for note in found.notes),
        "",
        "![Distances](plot.svg)",
        "",
        "Blue: the largest distance of two honest runs, for each input. Others: the",
        "distance of a cheat to the nearest honest run. Dashed: the tolerance.",
        "",
        "| segment | rule | honest up to | tolerance | before | nearest cheat | gap |",
        "|---|---|---|---|---|---|---|",
        *(_overview(index, one) for index, one in enumerate(found.segments)),
    ]
    for index, one in enumerate(found.segments):
        lines += _section(index, one)
    return "\n".join([*lines, ""])


def _overview(index: int, one: SegmentFound) -> str:
    found = one.calibrated
    nearest, gap = "none", "-"
    if found.nearest is not None and found.nearest.smallest is not None:
        nearest = f"{found.nearest.name} {found.nearest.smallest:.3g}"
        if found.tolerance:
            gap = f"{found.nearest.smallest / found.tolerance:.1f} x tolerance"
    return (
        f"| {index} | {_cell(one.rule)} | {found.spread.largest:.3g} | "
        f"{found.tolerance:.3g} | {one.before:.3g} | {nearest} | {gap} |"
    )


def _section(index: int, one: SegmentFound) -> list[str]:
    found, spread = one.calibrated, one.calibrated.spread
    committees = ", ".join(
        f"{size}: {committee_bound(found.false_alarm, size):.3g}"
        for size in _COMMITTEES
    )
    return [
        "",
        f"## Segment {index}: {_cell(one.file)}",
        "",
        f"{len(spread.per_input)} inputs, {spread.pairs} pairs of {len(one.runs)} "
        f"runs; farthest apart: {_cell(spread.farthest[0])} and "
        f"{_cell(spread.farthest[1])}.",
        "",
        f"At {CONFIDENCE:.0%} confidence an input like these exceeds the largest "
        f"honest distance, {spread.largest:.3g}, with a probability of at most "
        f"{found.false_alarm:.3g}; in a committee whose pairs exceed independently, "
        f"{committees}. The tolerance is {found.margin:g} times that distance.",
        *_exactness(found.tolerance),
        "",
        "| cheat | inputs changed | smallest | median | verdict |",
        "|---|---|---|---|---|",
        *(_cheat_row(cheat, found.tolerance) for cheat in found.cheats),
        "",
        "Honest runs: " + "; ".join(map(_cell, one.runs)) + ".",
    ]


def _exactness(tolerance: float) -> list[str]:
    if tolerance:
        return []
    return [
        "",
        "**All honest runs were bit-equal: the tolerance is 0, and a replica on any",
        "other kind of processor may be accused. Calibrate there too, or name one.**",
    ]


def _cheat_row(cheat: Cheat, tolerance: float) -> str:
    if cheat.not_applicable:
        return f"| {cheat.name} | - | - | - | {_cell(cheat.not_applicable)} |"
    if not cheat.distances:
        return f"| {cheat.name} | 0 | - | - | no effect on any input |"
    ordered = sorted(cheat.distances)
    total = len(ordered) + cheat.unchanged
    verdict = "told apart" if ordered[0] > tolerance else "PASSES"
    return (
        f"| {cheat.name} | {len(ordered)} of {total} | {_number(ordered[0])} | "
        f"{_number(ordered[len(ordered) // 2])} | {verdict} |"
    )


def _number(distance: float) -> str:
    return f"{distance:.3g}" if math.isfinite(distance) else "not comparable"


def _cell(words: object) -> str:
    return plain(words).replace("|", "\\|").replace("<", "&lt;")
