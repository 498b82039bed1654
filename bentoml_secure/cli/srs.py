"""``prove srs``: structured reference strings, imported by hand and never fetched."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bentoml_secure.cli.outcome import own_files
from bentoml_secure.cli.parameters import FILE
from bentoml_secure.errors import ConfigurationError

if TYPE_CHECKING:
    from bentoml_secure.proofs.srs_folder import SrsFile

UNSAFE = "UNSAFE - WHOEVER READS srs.json CAN FORGE PROOFS"

_FOLDER = click.option(
    "--folder",
    type=FILE,
    required=True,
    metavar="DIR",
    help="Of the strings: one file for each number of rows.",
)


@click.group()
def srs() -> None:
    """Keep the structured reference strings that proofs are made with.

    Whoever knows the secret of one can forge proofs under it. Nothing is ever fetched.
    """


@srs.command("import")
@click.argument("file", type=FILE, metavar="FILE")
@_FOLDER
def import_(file: Path, folder: Path) -> None:
    """Copy FILE into a folder if it is one of the perpetual powers of tau.

    Its digest must be the published one for its number of rows. FILE stays as it is.
    """
    from bentoml_secure.proofs.srs_folder import SrsFolder

    _tell(SrsFolder(folder).import_file(file))


@srs.command()
@click.argument("logrows", type=click.IntRange(1, 20), metavar="LOGROWS")
@_FOLDER
@click.option(
    "--unsafe",
    is_flag=True,
    allow_from_autoenv=False,
    help="Required: the secret of such a string is known on this machine.",
)
def generate(logrows: int, folder: Path, unsafe: bool) -> None:
    """Make a string of 2**LOGROWS rows for tests and benchmarks."""
    if not unsafe:
        raise ConfigurationError(
            "srs: whoever generates a string can forge proofs under it.",
            remedy="Import a file of the perpetual powers of tau, or say --unsafe.",
        )
    from bentoml_secure.proofs.srs_folder import SrsFolder

    if logrows > 14 and sys.stderr.isatty():
        click.echo(f"generating 2**{logrows} rows", err=True)
    _tell(SrsFolder(folder).generate(logrows))


@srs.command()
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(folder: Path, as_json: bool) -> None:
    """List the strings of a folder, with the digest that trust files name."""
    from bentoml_secure.proofs.srs import verifier_digest, verifier_part
    from bentoml_secure.proofs.srs_folder import SrsFolder

    with own_files(str(folder)):
        files = SrsFolder(folder).files()
        digests = {
            file.logrows: verifier_digest(verifier_part(file.path)) for file in files
        }
    if as_json:
        listed = [
            {
                "logrows": file.logrows,
                "file": file.digest,
                "source": file.source,
                "unsafe": file.unsafe,
                "srs": digests[file.logrows],
            }
            for file in files
        ]
        click.echo(json.dumps({"files": listed}, sort_keys=True))
        return
    if not files:
        raise ConfigurationError(
            f"srs: {folder} has no file.",
            remedy=f"bentoml-secure prove srs import FILE --folder {folder}",
        )
    for file in files:
        _tell(file)
    for digest in sorted(set(digests.values())):
        click.echo(f"srs {digest}")


def _tell(file: SrsFile) -> None:
    click.echo(f"{file.logrows:>2}  {file.source}  {file.digest}")
    if file.unsafe:
        click.echo(UNSAFE)
