"""``prove``: what a model's owner does before segments are proven."""

from __future__ import annotations

import click

from bentoml_secure.cli.proof_set_up import setup
from bentoml_secure.cli.srs import srs


@click.group()
def prove() -> None:
    """Set up proofs of a plan's segments."""


prove.add_command(setup)
prove.add_command(srs)
