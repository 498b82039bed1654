"""The section of docs/benchmarks.md on consensus, and its plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks import consensus

STRAGGLER_AIM = 1.2
OVERHEAD_AIM = 1.1
_COMMITTED = "_commit_reveal"


def straggler_table(figures: dict[str, Any]) -> str:
    """Return the table of requests with and without one late replica."""
    lines = [
        "| protocol | p50, p99 without, ms | p50, p99 with, ms | ratio of p99 | aim |",
        "|---|---|---|---|---|",
    ]
    for title, suffix in (("answers", ""), ("commitments, then answers", _COMMITTED)):
        none, late = (
            f"{figures[f'request_p50_ms_{who}{suffix}']:.1f}, "
            f"{figures[f'request_p99_ms_{who}{suffix}']:.1f}"
            for who in ("none", "late")
        )
        ratio = figures[f"straggler_p99_ratio{suffix}"]
        aim = "" if suffix else f"{STRAGGLER_AIM}"
        lines.append(f"| {title} | {none} | {late} | **{ratio:.2f}** | {aim} |")
    return "\n".join(lines)


def overhead_table(figures: dict[str, Any]) -> str:
    """Return the table of rounds over the slowest of the same asks."""
    lines = [
        "| boundary | who must agree | slowest ask, ms | round, ms | ratio | aim | "
        "round with commitments, ms | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in consensus.SIZES:
        for who, suffix in (("two of three", ""), ("all three", "_unanimous")):
            plain, committed = f"{size}{suffix}", f"{size}{suffix}{_COMMITTED}"
            aim = f"{OVERHEAD_AIM:.2f}" if plain == "1MiB" else ""
            lines.append(
                f"| {size} | {who} | {figures[f'slowest_ms_{plain}']:.1f} | "
                f"{figures[f'round_ms_{plain}']:.1f} | "
                f"**{figures[f'overhead_ratio_{plain}']:.2f}** | {aim} | "
                f"{figures[f'round_ms_{committed}']:.1f} | "
                f"{figures[f'overhead_ratio_{committed}']:.2f} |"
            )
    return "\n".join(lines)


def growth_table(figures: dict[str, Any]) -> str:
    """Return the table of how requests grow with replicas and with segments."""
    rows = [
        *((f"n_{n}", (1, n)) for n in consensus.COUNTS),
        *((f"segments_{s}", (s, 3)) for s in consensus.SEGMENTS),
    ]
    lines = [
        "| segments | replicas | request, ms | ratio | with commitments, ms | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, (segments, replicas) in rows:
        row = f"| {segments} | {replicas} | {figures[f'request_ms_{name}']:.1f} | "
        row += f"{figures[f'cost_{name}']:.2f} | "
        if (ms := figures.get(f"request_ms_{name}{_COMMITTED}")) is None:
            row += " | |"
        else:
            row += f"{ms:.1f} | {figures[f'cost_{name}{_COMMITTED}']:.2f} |"
        lines.append(row)
    return "\n".join(lines)


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw how the time of a request grows."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
    left.plot(
        consensus.COUNTS, [figures[f"cost_n_{n}"] for n in consensus.COUNTS], "o-"
    )
    left.set_xticks(consensus.COUNTS)
    left.set_xlabel("replicas, 1 segment")
    left.set_ylabel("time of a request / the first")
    for label, suffix in (("answers", ""), ("commitments first", _COMMITTED)):
        costs = [figures[f"cost_segments_{s}{suffix}"] for s in consensus.SEGMENTS]
        right.plot(consensus.SEGMENTS, costs, "o-", label=label)
    right.set_xticks(list(consensus.SEGMENTS))
    right.set_xlabel("segments, 3 replicas")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def section(found: dict[str, Any], image: str) -> str:
    """Return the section.

    Args:
        found: Of ``benchmarks.consensus.measure``.
        image: File name of the plot.
    """
    figures = found["figures"]
    return f"""## Consensus

`python -m benchmarks.consensus --json`, {found["environment"]["blocks"]} blocks of each
measurement, in turn with what it is compared with, against the same processes. A
segment is `y = 1.0001 x`, tensors travel sealed, and entry and replicas share
{found["environment"]["cpus"]} cores.

One of three replicas answers a second late. A quorum of two does not wait for it; its
ask is cancelled when the grace of 200 ms is over. p99 of requests of 64 KiB, receipts
included:

{straggler_table(figures)}

A round against the slowest of the same three asks without consensus. All three are
asked at once in both, with the same tensors and checks, so both have the same load on
the same cores, and what differs is the draw, the seats, the comparison, the record.
Where two of three must agree a round need not wait for the slowest; where all three
must, it does. With commitments replicas are asked twice, and nobody shows an answer
before two have committed:

{overhead_table(figures)}

The decision itself over three answers of 1 MiB that all differ within the tolerance
takes {figures["decide_ms_3x1MiB"]:.1f} ms: three distances. Of equal answers none
is measured.

Requests of 64 KiB, receipts included, by replicas and by segments, over the first of
each. More replicas are more work for the same cores:

{growth_table(figures)}

![Time of a request by replicas and segments]({image})

"""
