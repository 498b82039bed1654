"""``inspect``: what a file says. Nothing is verified, and every output says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bentoml_secure.cli.outcome import claim_lines, own_files, plain
from bentoml_secure.cli.parameters import FILE, as_json, read, read_evidence
from bentoml_secure.cli.splitting import segment_line
from bentoml_secure.errors import MalformedInputError, VerificationError

if TYPE_CHECKING:
    from bentoml_secure.consensus.tally import Tally
    from bentoml_secure.receipts.receipt import SegmentRecord
    from bentoml_secure.split import Segment

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
            "permitted too": [
                f"{one.choice} {one.version}" for one in runtime.permitted
            ],
        }
    )
    for index, segment in enumerate(got.segments):
        click.echo(segment_line(index, segment))
        click.echo(f"     {segment.identity}, tolerance {_tolerance(segment)}")
    click.echo(f"plan {got.digest}")


def _tolerance(segment: Segment) -> str:
    record = segment.calibration
    if record is None:
        return f"{segment.tolerance:g} ({plain(segment.rule)}), not measured"
    return (
        f"{segment.tolerance:.3g} ({plain(segment.rule)}), {record.margin:g} x "
        f"{record.largest:.3g} over {record.inputs} inputs"
    )


def _tensor(spec: Any) -> str:
    return f"{spec.name} {spec.dtype}{list(spec.shape)}"


@inspect.command()
@click.argument("file", type=FILE, metavar="FILE")
@click.option("--kind", help="Such as tdx.  [default: each that the bytes fit]")
@as_json
def evidence(file: Path, kind: str | None, as_json: bool) -> None:
    """Show what evidence says: FILE holds a vendor's bytes, or their hex digits.

    No signature is looked at, so anyone can have written all of it; whether it is
    authentic and acceptable is for `verify evidence` to say.
    """
    described = _descriptions(file, kind)
    if as_json:
        document = {"verified": False, "descriptions": described}
        click.echo(json.dumps(document, sort_keys=True))
        return
    for name, fields in described.items():
        click.echo(plain(name))
        _show(fields)
    click.echo("NOT VERIFIED  see `bentoml-secure verify evidence`")


def _descriptions(file: Path, kind: str | None) -> dict[str, dict[str, Any]]:
    """Return what each kind reads in the bytes, if it can read them.

    Raises:
        MalformedInputError: None can.
    """
    from bentoml_secure.attestation.evidence import Evidence
    from bentoml_secure.attestation.tees import TEES, load_tee

    blob = read_evidence(file)
    described, refusals = {}, []
    for candidate in [kind] if kind else sorted(TEES):
        tee = load_tee(candidate)
        try:
            fields = tee.describe(Evidence(kind=candidate, blob=blob))
            described[candidate] = dict(fields)
        except (MalformedInputError, VerificationError) as error:
            refusals.append(f"{candidate}: {error}")
    if not described:
        raise MalformedInputError(
            f"{file}: no kind of evidence. {'; '.join(refusals)}",
            remedy="Name the kind with --kind to see only why it is not that one.",
        )
    return described


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
            line = _round_line(f"segment {index}", segment.tally, segment)
            click.echo(plain(f"  infer {infer.index}, {line}"))
        if infer.chains is not None:
            line = _round_line("chains", infer.chains.tally)
            click.echo(plain(f"  infer {infer.index}, {line}"))
    click.echo("NOT VERIFIED  see `bentoml-secure verify receipt`")


def _round_line(what: str, tally: Tally, record: SegmentRecord | None = None) -> str:
    count = f"{len(tally.clique)} of {len(tally.committee)} agree"
    served, notes = tally.medoid, []
    if record is not None:
        blind = [name for name, made in record.commitments.items() if made.blind]
        notes = [
            ("skipped", [skip.replica for skip in record.skips]),
            ("not blind", sorted(record.commitments.keys() - blind)),
        ]
        if record.referee is not None:
            served = f"{record.referee.replica}, the referee"
    notes += [
        ("dissent", list(tally.dissenters)),
        ("absent", [absence.replica for absence in tally.absent]),
        ("pending", list(tally.pending)),
    ]
    tail = "".join(f"; {word} {', '.join(names)}" for word, names in notes if names)
    return f"{what}: {count}, served {served}{tail}"


def _show(document: dict[str, Any]) -> None:
    click.echo("\n".join(claim_lines(document)))
