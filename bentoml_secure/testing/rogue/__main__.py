"""Command line of the rogue host; see the package."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import click

from bentoml_secure.testing.rogue.host import run


@click.command()
@click.argument("target", metavar="MODULE:CLASS")
@click.option("--port", type=int, required=True, help="Of control.")
@click.option(
    "--marker",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder that the pickles make where they are loaded.",
)
def main(target: str, port: int, marker: Path) -> None:
    """Host all replicas of a deployment, each of which may do anything. FAKE."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(target, port, marker))


main()
