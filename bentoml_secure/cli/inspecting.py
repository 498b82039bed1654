"""``inspect``: what a file says. Nothing is verified, and every output says so."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bentoml_secure.cli.outcome import (
    SIMULATED,
    claim_lines,
    own_files,
    plain,
)
from bentoml_secure.cli.parameters import FILE, read
from bentoml_secure.cli.splitting import segment_line

MAX_PLAN_BYTES = 8 << 20


@click.group()
def inspect() -> None:
    """Show what a plan, evidence or receipt says, without judging it."""


@inspect.command()
@click.argument("file", type=FILE, metavar="FILE")
def plan(file: Path) -> None:
    """Show a split plan: FILE is a plan.json, or the folder that it is in."""
    from bentoml_secure.split import PLAN_FILE, parse_plan

    path = file / PLAN_FILE if file.is_dir() else file
    with own_files(str(path)):
        got = parse_plan(read(path, what="plan", max_bytes=MAX_PLAN_BYTES))
    runtime = got.runtime
    _show(
        {
            "model": got.model_name,
            "model digest": got.model_digest,
            "runtime": f"{runtime.name} {runtime.version}, {runtime.graph_level}",
            "inputs": [_tensor(spec) for spec in got.inputs],
            "outputs": [_tensor(spec) for spec in got.outputs],
        }
    )
    for index, segment in enumerate(got.segments):
        click.echo(segment_line(index, segment))
        click.echo(f"     {segment.identity}, tolerance {segment.tolerance:g}")
    click.echo(f"plan {got.digest}")


def _tensor(spec: Any) -> str:
    return f"{spec.name} {spec.dtype}{list(spec.shape)}"


@inspect.command()
@click.argument("file", type=FILE, metavar="FILE")
@click.option("--kind", help="Such as simulated.  [default: each that is known]")
def evidence(file: Path, kind: str | None) -> None:
    """Show the claims of evidence whose signatures hold, now and under any root.

    Whether they are acceptable is a policy's to say: `verify evidence`.
    """
    from bentoml_secure.attestation.tees import TEES, load_tee
    from bentoml_secure.cli.verifying import read_evidence
    from bentoml_secure.errors import SecureError, VerificationError

    kinds = [kind] if kind else sorted(TEES)
    failures = []
    for candidate in kinds:
        given = read_evidence(candidate, file)
        try:
            claims = load_tee(candidate).verify(given, (), now=datetime.now(UTC))
        except SecureError as error:
            failures.append(f"{candidate}: {error}")
            continue
        _show(claims.to_json())
        if claims.simulated:
            click.echo(SIMULATED)
        click.echo("NOT APPRAISED  no policy was asked whether this is acceptable")
        return
    raise VerificationError(f"{file}: no kind of evidence. {'; '.join(failures)}")


@inspect.command()
@click.argument("file", type=FILE, metavar="FILE")
def receipt(file: Path) -> None:
    """Show what the receipt in a bundle says; nobody vouches for it."""
    from bentoml_secure.receipts.bundle import MAX_BUNDLE_BYTES, parse_bundle
    from bentoml_secure.receipts.receipt import parse_receipt

    bundle = parse_bundle(read(file, what="receipt", max_bytes=MAX_BUNDLE_BYTES))
    got = parse_receipt(bundle.receipt)
    _show(
        {
            "receipt": got.receipt_id,
            "digest": bundle.receipt.payload_digest,
            "service": f"{got.service} {got.api}, status {got.status}",
            "scenario": f"{got.scenario_name} {got.scenario_digest}",
            "plan": got.plan_digest,
            "configuration": got.config_digest,
            "nonce": f"{got.client_nonce}, drawn by {got.nonce_drawn_by}",
            "issued at": got.issued_at,
            "parties": [
                {party.role: party.name, "evidence": party.evidence}
                for party in got.parties
            ],
            "must follow": [
                f"{required.kind} by {required.deadline}"
                for required in got.attachments
            ],
            "attached": len(bundle.attachments),
        }
    )
    for infer in got.infers:
        for index, segment in enumerate(infer.segments):
            click.echo(plain(_round_line(infer.index, index, segment.tally)))
    click.echo("NOT VERIFIED  see `bentoml-secure verify receipt`")


def _round_line(infer: int, segment: int, tally: Any) -> str:
    count = f"{len(tally.clique)} of {len(tally.committee)} agree"
    notes = [
        ("dissent", tally.dissenters),
        ("absent", [absence.replica for absence in tally.absent]),
        ("pending", tally.pending),
    ]
    tail = "".join(f"; {word} {', '.join(names)}" for word, names in notes if names)
    return f"  infer {infer}, segment {segment}: {count}, served {tally.medoid}{tail}"


def _show(document: dict[str, Any]) -> None:
    click.echo("\n".join(claim_lines(document)))
