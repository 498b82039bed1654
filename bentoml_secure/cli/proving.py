"""``prove``: setting proofs up, and seeing how far they are."""

from __future__ import annotations

import click

from bentoml_secure.cli.proof_jobs import jobs
from bentoml_secure.cli.proof_set_up import setup
from bentoml_secure.cli.srs import srs


@click.group()
def prove() -> None:
    """Set up proofs of a plan's segments, and see how far they are."""


prove.add_command(jobs)
prove.add_command(setup)
prove.add_command(srs)
