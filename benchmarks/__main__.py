"""Runs every benchmark and writes docs/benchmarks.md: ``python -m benchmarks``."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks import (
    consensus,
    consensus_page,
    hop,
    profile,
    proofs,
    proofs_page,
    session,
)

DOCS = Path(__file__).resolve().parents[1] / "docs"
CONSENSUS_PLOT = "benchmarks-consensus.svg"
AIMS = {"256B": 0.9, "64KiB": 1.0, "1MiB": 1.1, "16MiB": 1.0}
RPS_AIM = 1.1
SEALED_AIMS = {"1MiB": 1.15, "16MiB": 1.4}


def hop_table(figures: dict[str, Any]) -> str:
    """Return the table of hops."""
    lines = [
        "| boundary | BentoML, ms | ours, 1 replica, ms | ratio | aim | "
        "ours, 3 replicas, ms | ratio | floor, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in hop.SIZES:
        native = min(figures[f"hop_ms_{v}_{size}"] for v in hop.NATIVE)
        lines.append(
            f"| {size} | {native:.2f} | {figures[f'hop_ms_secure_1_{size}']:.2f} | "
            f"**{figures[f'p50_ratio_{size}']:.2f}** | {AIMS[size]} | "
            f"{figures[f'hop_ms_secure_3_{size}']:.2f} | "
            f"{figures[f'p50_ratio_3_{size}']:.2f} | "
            f"{figures[f'hop_ms_floor_{size}']:.3f} |"
        )
    return "\n".join(lines)


def throughput_table(figures: dict[str, Any]) -> str:
    """Return the table of requests per second at concurrency 16."""
    lines = [
        "| boundary | BentoML | ours, 1 replica | ratio | ours, 3 replicas | ratio |",
        "|---|---|---|---|---|---|",
    ]
    n = hop.CONCURRENT
    for size in hop.SIZES:
        native = max(figures[f"rps_{v}_{n}_{size}"] for v in hop.NATIVE)
        lines.append(
            f"| {size} | {native:.0f} | {figures[f'rps_secure_1_{n}_{size}']:.0f} | "
            f"{figures[f'rps_ratio_{n}_{size}']:.2f} | "
            f"{figures[f'rps_secure_3_{n}_{size}']:.0f} | "
            f"{figures[f'rps_ratio_3_{n}_{size}']:.2f} |"
        )
    return "\n".join(lines)


def profile_table(found: dict[str, dict[str, float]]) -> str:
    """Return the table of where the time goes."""
    sizes = list(found)
    parts = list(found[sizes[0]])
    lines = [
        "| ms per request | " + " | ".join(sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for part in parts:
        cells = " | ".join(f"{found[size].get(part, 0.0):.3f}" for size in sizes)
        lines.append(f"| {part} | {cells} |")
    return "\n".join(lines)


def sealing_table(figures: dict[str, Any]) -> str:
    """Return the table of requests with and without sealing."""
    lines = [
        "| boundary | unsealed, ms | sealed, ms | ratio | aim | AES-256-GCM, ms |",
        "|---|---|---|---|---|---|",
    ]
    for size in session.SIZES:
        lines.append(
            f"| {size} | {figures[f'request_ms_plain_{size}']:.1f} | "
            f"{figures[f'request_ms_sealed_{size}']:.1f} | "
            f"**{figures[f'sealed_over_plain_{size}']:.2f}** | "
            f"{SEALED_AIMS[size]} | {figures[f'aes_gcm_ms_{size}']:.1f} |"
        )
    return "\n".join(lines)


def evidence_table(figures: dict[str, Any]) -> str:
    """Return the table of what evidence costs by kind."""
    lines = ["| kind | verify, ms | handshake, ms |", "|---|---|---|"]
    kinds = {name.partition("_ms_")[2] for name in figures if "_ms_" in name}
    for kind in sorted(kinds):
        verify = figures.get(f"verify_ms_{kind}")
        handshake = figures.get(f"handshake_ms_{kind}")
        if verify is None and handshake is None:
            continue
        cells = (f"{ms:.1f}" if ms is not None else "" for ms in (verify, handshake))
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw the ratios against the aims."""
    sizes = list(hop.SIZES)
    figure, axes = plt.subplots(figsize=(7, 3.2))
    positions = range(len(sizes))
    ours = [figures[f"p50_ratio_{size}"] for size in sizes]
    three = [figures[f"p50_ratio_3_{size}"] for size in sizes]
    axes.bar([p - 0.2 for p in positions], ours, 0.4, label="1 replica")
    axes.bar([p + 0.2 for p in positions], three, 0.4, label="3 replicas")
    axes.plot(positions, [AIMS[s] for s in sizes], "k_", ms=40, label="aim, 1 replica")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set_xticks(list(positions), sizes)
    axes.set_ylabel("time per hop / BentoML's")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def session_page(found: dict[str, Any]) -> str:
    """Return the section on sessions."""
    figures = found["figures"]
    return f"""## Sealing, evidence, rotation

`python -m benchmarks.session --json`, median over
{found["environment"]["repetitions"]} repetitions. The chain of above with one replica,
unsealed and sealed in the same run: every tensor goes through AES-256-GCM at both ends
of every hop, in chunks while it travels. Beside it what AES-256-GCM alone takes for
those bytes.

{sealing_table(figures)}

Verifying one piece of evidence, and a whole handshake with such evidence on both ends,
both in one process. Evidence is of development roots, in the real formats; a TPM is a
software TPM, whose quotes take most of its handshake. None of it is on a request's
path: sessions are made half-way through the age of the evidence.

{evidence_table(figures)}

Under constant load through three replicas, evidence good for
{session.MAX_AGE_SECONDS} s and keys for {session.KEY_LIFETIME_SECONDS} s:
{figures["rotation_requests"]} requests, {figures["rotation_errors"]} failed.

"""


def page(
    hops: dict[str, Any],
    profiled: dict[str, Any],
    sessions: dict[str, Any],
    agreed: dict[str, Any],
    proven: dict[str, Any],
) -> str:
    """Return docs/benchmarks.md."""
    figures, environment = hops["figures"], hops["environment"]
    agreement = consensus_page.section(agreed, CONSENSUS_PLOT)
    described = ", ".join(f"{k} {v}" for k, v in environment.items())
    return f"""# Benchmarks

Written by `make bench` on {datetime.now(UTC):%Y-%m-%d}. {described}.

## A verified hop against BentoML's own

`python -m benchmarks.hop --json`. The same two segments (`y = 1.0001 x` in ONNX
Runtime, one thread) behind plain `bentoml.depends` and behind
`bentoml_secure.service`, timed with the same code inside the entry's process, each
variant against a fresh server in every repetition, median over
{environment["repetitions"]} repetitions. Tensors are unsealed here, as BentoML's
are. Ours includes hashing both tensors, a signed
and verified statement per hop, the decision, and the receipt, signed and stored. Time
per hop is the median time of a request divided by its two segments; BentoML's is the
faster of its async and sync call, with `max_requests` and `max_age` raised (without
that its shared session closes under load). One machine, clients and servers on the
same cores.

{hop_table(figures)}

![Time per hop as a ratio](benchmarks-hop.svg)

Three replicas are three times the work on the same cores; on hosts of their own only
the slowest of the quorum counts. Runners have BentoML's access log, tracing and
per-path metrics switched off for our route, which have their own metrics.

Requests per second at concurrency {hop.CONCURRENT} (aim at 64 KiB with one replica:
{RPS_AIM}):

{throughput_table(figures)}

At concurrency 32, {figures["requests_32"]} requests of 64 KiB through three replicas:
{figures["errors_32"]} errors, {figures["rps_secure_3_32_64KiB"]:.0f} requests per
second.

{session_page(sessions)}{agreement}{proofs_page.section(proven)}## Where the time goes

`python -m benchmarks.profile --json`: the same chain with the runners in the entry's
process, so without HTTP; two segments, one replica, both ends of every hop counted.

{profile_table(profiled["figures"])}

What the table of hops has beyond this is HTTP: uvicorn, its parser in Python (h11),
BentoML's timeout middleware, two kernel sockets, and the switch between processes. At
1 MiB and above SHA-256 over both tensors at both ends is the largest part.
"""


def main() -> None:
    """Run all, write the page and the plot, print the JSON."""
    hops, profiled, sessions = hop.measure(), profile.measure(), session.measure()
    agreed, proven = consensus.measure(), proofs.measure()
    plot(hops["figures"], DOCS / "benchmarks-hop.svg")
    consensus_page.plot(agreed["figures"], DOCS / CONSENSUS_PLOT)
    (DOCS / "benchmarks.md").write_text(page(hops, profiled, sessions, agreed, proven))
    json.dump([hops, profiled, sessions, agreed, proven], sys.stdout, indent=2)


if __name__ == "__main__":
    main()
