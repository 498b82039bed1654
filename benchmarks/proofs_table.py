"""The table of docs/proofs.md: ``python -m benchmarks.proofs_table --write FILE``.

Each model is set up whole and in segments, one request of the test set is proven and
verified, and the test set is run through the circuits. Then each is served, and asked
one critical request. The table in the file, between its two marks, is replaced; nothing
in it is typed by hand.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.proofs_chain import Cost, prove_chain, verify_chain
from benchmarks.proofs_models import Built, Tested, build, cases, first, run_tests
from benchmarks.proofs_service import Asked, ask_proven, serving
from benchmarks.report import report

SEGMENTS = (1, 2, 3)
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"

HEAD = (
    "| model | segments | rows | 2^k rows | proving keys, MB | verification keys, KB "
    "| prove, CPU s | longest, s | peak, MiB | proofs, bytes | verify, ms "
    "| largest deviation | same label | answer, ms | proven after, s | receipt, ms |"
)


def row(
    built: Built,
    costs: Sequence[Cost],
    verify_seconds: float,
    tested: Tested,
    asked: Asked,
) -> str:
    """Return one line of the table.

    Args:
        built: The set-up.
        costs: Of each segment's proof.
        verify_seconds: Of all of them.
        tested: How the circuits do on the test set.
        asked: What a request came to that was served.
    """
    segments = built.made.manifest.segments
    keys = [
        (built.proofs / str(index) / "vk").stat().st_size
        for index in range(len(segments))
    ]
    cells = (
        built.case.name,
        len(segments),
        _each([f"{segment.rows:,}" for segment in segments]),
        _each([str(segment.parameters.logrows) for segment in segments]),
        _each([f"{segment.proving_key_bytes / 1e6:.0f}" for segment in segments]),
        _each([f"{size / 1e3:.0f}" for size in keys]),
        f"{_each([f'{cost.cpu_seconds:.1f}' for cost in costs])}"
        f" = {sum(cost.cpu_seconds for cost in costs):.1f}",
        f"{max(cost.wall_seconds for cost in costs):.1f}",
        f"{max(cost.peak_bytes for cost in costs) / (1 << 20):.0f}",
        f"{sum(len(cost.proof.proof) for cost in costs):,}",
        f"{verify_seconds * 1e3:.0f}",
        f"{max(tested.measured.largest.values()):.2g}",
        f"{tested.same_labels:.1%} of {tested.requests}",
        f"{asked.answer_ms:.0f}",
        f"{asked.proven_seconds:.1f}",
        f"{asked.verify_ms:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _each(parts: Sequence[str]) -> str:
    return " + ".join(parts)


def table(rows: Sequence[str]) -> str:
    """Return the whole table."""
    columns = HEAD.count("|") - 1
    return "\n".join([HEAD, "|---" * columns + "|", *rows])


def write(file: Path, text: str) -> None:
    """Put a text between a file's two marks.

    Raises:
        ValueError: The file has no such marks.
    """
    page = file.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file}: has no {BEGIN} and {END}")
    file.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def measure(
    models: Sequence[str], segments: Sequence[int], tests: int | None
) -> list[str]:
    """Return the table's lines.

    Args:
        models: By name.
        segments: Into how many each is split.
        tests: Inputs of the test set; all where left out.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="proofs-table-") as name:
        folder = Path(name)
        known = cases(folder)
        for model in models:
            for count in segments:
                built = build(known[model], count, folder)
                costs = prove_chain(built, first(built.case.tests, 1))
                took = verify_chain(built, [cost.proof for cost in costs])
                tested = run_tests(built, tests)
                own = folder / f"{model}-{count}-served"
                own.mkdir()
                with serving(built, own) as server:
                    asked = ask_proven(server, built, own)
                rows.append(row(built, costs, took, tested, asked))
    return rows


def main() -> None:
    """Measure, print, and write into a page where one is given."""
    parser = argparse.ArgumentParser(description="The table of proofs.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="page to change")
    parser.add_argument("--models", nargs="+", default=["diagnosis", "digits"])
    parser.add_argument("--segments", nargs="+", type=int, default=list(SEGMENTS))
    parser.add_argument("--tests", type=int, help="test inputs; all by default")
    options = parser.parse_args()
    rows = measure(options.models, options.segments, options.tests)
    environment = report("proofs_table", {}, "ezkl", "onnxruntime")["environment"]
    said = ", ".join(f"{name} {value}" for name, value in environment.items())
    text = f"{table(rows)}\n\nMeasured with {said}; one thread a proof."
    print(text)
    if options.write is not None:
        write(options.write, text)


if __name__ == "__main__":
    main()
