"""``verify vk``: a set-up's verification keys, made anew from the plan."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bentoml_secure.cli.outcome import (
    Outcome,
    State,
    own_files,
    plain,
    settle,
)
from bentoml_secure.cli.parameters import FILE, as_json
from bentoml_secure.errors import Finding

if TYPE_CHECKING:
    from bentoml_secure.proofs.folder import ProofFolder
    from bentoml_secure.proofs.proof import Limits
    from bentoml_secure.split import Plan

KIND = "verification keys"
_SECONDS = 24 * 3600.0


@click.command("vk")
@click.argument("proofs_dir", type=FILE, metavar="PROOFS_DIR")
@click.option(
    "--plan",
    "plan_dir",
    type=FILE,
    required=True,
    metavar="DIR",
    help="The plan whose segments are proven, not sealed.",
)
@click.option(
    "--signer",
    metavar="KEY_ID",
    help="Whose manifest it must be: sha256:<hex>, as in trust files."
    "  [default: anyone's]",
)
@click.option(
    "--srs-folder",
    "srs_dir",
    type=FILE,
    metavar="DIR",
    help="Your own structured reference strings.  [default: those of the set-up]",
)
@as_json
def vk(
    proofs_dir: Path,
    plan_dir: Path,
    signer: str | None,
    srs_dir: Path | None,
    as_json: bool,
) -> None:
    """Make the verification keys of a proof set-up anew, and compare.

    The manifest's signature is verified; then circuits, settings and keys are made
    from the plan's files. It takes as long as the set-up took.
    """
    from bentoml_secure.split import load_plan

    with own_files(str(plan_dir)):
        plan = load_plan(plan_dir)

    def judge() -> Outcome:
        """Return the verdict on the set-up."""
        from bentoml_secure.proofs.folder import ProofFolder

        folder = ProofFolder.read(proofs_dir, plan)
        findings = _signer_findings(folder, signer)
        findings += _rebuilt(folder, plan, plan_dir, srs_dir)
        return Outcome(
            state=State.REJECTED if findings else State.ACCEPTED,
            kind=KIND,
            findings=findings,
            claims=_claims(folder),
        )

    settle(KIND, judge, as_json=as_json)


def _signer_findings(folder: ProofFolder, signer: str | None) -> list[Finding]:
    got = folder.manifest.signer_id
    if signer is None or signer == got:
        return []
    return [Finding("manifest signer", got, signer)]


def _rebuilt(
    folder: ProofFolder, plan: Plan, plan_dir: Path, srs_dir: Path | None
) -> list[Finding]:
    from bentoml_secure.proofs.backends import open_backend
    from bentoml_secure.proofs.rebuilding import rebuild
    from bentoml_secure.proofs.srs_folder import SrsFolder

    return rebuild(
        folder,
        plan,
        plan_dir,
        backend=open_backend(folder.manifest.backend),
        limits=_limits(),
        srs_folder=None if srs_dir is None else SrsFolder(srs_dir),
        progress=_tell,
    )


def _limits() -> Limits:
    from bentoml_secure.proofs.admission import available_memory
    from bentoml_secure.proofs.proof import Limits

    return Limits(
        memory_bytes=available_memory(),
        seconds=_SECONDS,
        threads=len(os.sched_getaffinity(0)),
    )


def _claims(folder: ProofFolder) -> dict[str, object]:
    manifest = folder.manifest
    return {
        "manifest": manifest.digest,
        "plan": manifest.plan,
        "signer": manifest.signer_id,
        "srs": manifest.srs.digest,
        "srs_source": manifest.srs.source,
        "unsafe_srs": manifest.srs.unsafe,
        "links": str(manifest.link),
        "accuracy": manifest.accuracy.to_json(),
        "segments": [segment.key for segment in manifest.segments],
    }


def _tell(doing: str) -> None:
    if sys.stderr.isatty():
        click.echo(plain(doing), err=True)
