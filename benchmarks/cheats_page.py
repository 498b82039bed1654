"""The figures of cheats as a section of docs/consensus.md, between two marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cheats_deviation import EVERYWHERE
from bentoml_secure.errors import ConfigurationError

BEGIN = "<!-- written by python -m benchmarks.cheats --write -->"
END = "<!-- end of what it wrote -->"

WORDS: Mapping[str, str] = {
    "fp16": "weights rounded to float16",
    "bf16": "weights rounded to bfloat16",
    "int8": "matrices quantised to 8 bits",
    "int4": "matrices quantised to 4 bits",
    "one-weight": "0.01 more on one weight",
    "skipped-layer": "a residual block skipped",
    "scaled": "outputs times 1.01",
    "stale": "its first answer, again and again",
    "anothers": "the answer to the request before",
    "noise-4": "noise of 4 tolerances",
}
"""What each cheat is, for people."""


def write_section(path: Path, found: Mapping[str, Any]) -> None:
    """Write the figures into a page, in place of those that stand there.

    Args:
        path: The page, with both marks.
        found: As the command prints it.

    Raises:
        ConfigurationError: The page has no marks, or not in order.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigurationError(f"{path}: want the marks {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{section(found)}\n{END}{after}")


def section(found: Mapping[str, Any]) -> str:
    """Return the figures as text and tables."""
    environment = ", ".join(f"{k} {v}" for k, v in found["environment"].items())
    found = found["figures"]
    seconds = found["seconds_per_request"]
    return f"""Measured with {environment}.
A request took {1e3 * seconds:.0f} ms at the median, until its receipt was judged.

{_cheats(found["cheats"])}

{_honest(found["honest"])}

{_noise(found["noise"], found["tolerances"])}

{_deviations(found["deviations"])}
"""


def _cheats(runs: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            WORDS.get(run["cheat"], run["cheat"]),
            run["requests"],
            _share(run["detected"], run["requests"]),
            _share(run["named"], run["requests"]),
            run["silent"],
            run["wrong"],
            run["refused"],
        )
        for run in runs
    ]
    head = (
        "one replica cheats",
        "requests",
        "detected",
        "named",
        "silent",
        "wrong answers",
        "refused",
    )
    return _table(head, rows)


def _honest(runs: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            "; ".join(run["runtimes"]),
            run["requests"],
            run["accusations"],
            run["absences"],
            run["wrong"],
            f"{run['largest']:.1e}",
        )
        for run in runs
    ]
    head = (
        "nobody cheats, replicas 0, 1, 2 on",
        "requests",
        "accusations",
        "absences",
        "wrong answers",
        "furthest from the whole model",
    )
    return _table(head, rows)


def _noise(runs: Iterable[Mapping[str, Any]], tolerances: list[float]) -> str:
    rows = [
        (
            run["segment"],
            f"{tolerances[run['segment']]:.2e}",
            f"{run['caught']:.3f}",
            f"{run['missed']:.3f}",
            f"{run['served']:.1e}",
        )
        for run in runs
    ]
    head = (
        "noise in segment",
        "tolerance",
        "least caught, tolerances",
        "most missed, tolerances",
        "furthest answer meanwhile",
    )
    return _table(head, rows)


def _deviations(runs: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            "all four" if run["segment"] == EVERYWHERE else run["segment"],
            run["kind"],
            f"{run['largest']:.1e}",
            f"{1 - run['cosine']:.1e}",
        )
        for run in runs
    ]
    head = (
        "lie just within tolerance in segment",
        "kind",
        "largest change of an element",
        "1 - cosine",
    )
    return _table(head, rows)


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.1f} %)" if whole else "0"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *([str(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
