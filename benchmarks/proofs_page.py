"""The section of docs/benchmarks.md on proofs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HEADING = "## Proofs\n"
AIMS = {
    "prove_cpu_vs_calibrated": "at most 0.5",
    "segment_rss_vs_whole": "at most 0.6",
    "proofs_per_cpu_minute_vs_raw": "at least 1.0",
    "polycommit_cpu_vs_hashed": "-",
    "latency_ratio_while_proving": "at most 1.1",
}
_MEANING = {
    "prove_cpu_vs_calibrated": "CPU seconds of a request's proofs, over those with "
    "settings that ezkl calibrates itself",
    "segment_rss_vs_whole": "largest segment's peak memory, over the whole model's",
    "proofs_per_cpu_minute_vs_raw": "proofs a CPU minute as provers make them, over "
    "ezkl's own calls in a loop",
    "polycommit_cpu_vs_hashed": "CPU seconds of a request's proofs that are linked by "
    "commitments, over those linked by hashes",
    "latency_ratio_while_proving": "median request with the provers busy, over idle",
}


def put(file: Path, found: dict[str, Any]) -> None:
    """Replace the section in docs/benchmarks.md, or put it before the last one.

    Args:
        file: The page.
        found: By ``benchmarks.proofs``.
    """
    page = file.read_text()
    before, _, rest = page.partition(_HEADING)
    if rest:
        after = rest[rest.index("\n## ") + 1 :]
    else:
        at = page.rindex("\n## ") + 1
        before, after = page[:at], page[at:]
    file.write_text(before + section(found) + after)


def section(found: dict[str, Any]) -> str:
    """Return the section, with what ``benchmarks.proofs`` found."""
    figures = found["figures"]
    rows = [
        f"| `{name}` | {meaning} | **{figures[name]:.2f}** | {AIMS[name]} |"
        for name, meaning in _MEANING.items()
    ]
    table = "\n".join(["| figure | what | | aim |", "|---|---|---|---|", *rows])
    return f"""## Proofs

`python -m benchmarks.proofs --json`: the digits network of services/digits.py in three
segments, all on one machine. Proofs of one request take {figures["prove_cpu_s"]:.1f}
CPU seconds, {figures["prove_cpu_s_calibrated"]:.1f} with calibrated settings,
{figures["prove_cpu_s_whole"]:.1f} for the whole model at once,
{figures["prove_cpu_s_polycommit"]:.1f} with segments linked by commitments; the
largest segment peaks at {figures["peak_mib_segment"]:.0f} MiB, the whole model at
{figures["peak_mib_whole"]:.0f}. A median request took
{figures["request_p50_ms_idle"]:.1f} ms with the provers idle and
{figures["request_p50_ms_proving"]:.1f} ms with all three busy (p99:
{figures["request_p99_ms_idle"]:.1f} and {figures["request_p99_ms_proving"]:.1f} ms). A
receipt with all of its proofs is verified offline, opened, in
{figures["verify_receipt_ms"]:.0f} ms. More in [proofs.md](proofs.md).

{table}

"""
