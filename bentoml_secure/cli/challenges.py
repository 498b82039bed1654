"""``auditor``: nonces for a deployment's challenges, and receipts challenged later."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bentoml_secure.cli.outcome import own_files
from bentoml_secure.cli.parameters import FILE, read, read_private_key

if TYPE_CHECKING:
    from bentoml_secure.client.auditing import AnsweredRoot

_URL = click.argument("url", metavar="URL")
_TRUST = click.option(
    "--trust", type=FILE, required=True, metavar="FILE", help="Whom to believe, TOML."
)
_KEY = click.option(
    "--key",
    type=FILE,
    required=True,
    metavar="PEM",
    help="The auditor's Ed25519 private key, without a passphrase.",
)


@click.group()
def auditor() -> None:
    """Draw challenges of a deployment that one does not run."""


@auditor.command("id")
@_KEY
def identifier(key: Path) -> None:
    """Print the id under which deployments and trust files list this auditor."""
    click.echo(read_private_key(key).public.key_id)


@auditor.command()
@_URL
@_TRUST
@_KEY
@click.option(
    "--seen",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Which roots were signed, so that no second one of an epoch is; made if new.",
)
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Look once, and end.")
def watch(
    url: str, trust: Path, key: Path, seen: Path, every: float, once: bool
) -> None:
    """Sign a nonce over each epoch's root that the service at URL shows.

    One line for each; ends when it is interrupted. An epoch waits for its auditors for
    a minute at most.
    """
    from bentoml_secure.client.auditing import ChallengeAuditor
    from bentoml_secure.errors import UnavailableError

    signing = read_private_key(key)
    with (
        own_files(str(seen)),
        ChallengeAuditor(url, trust, signing, seen=seen) as client,
    ):
        while True:
            try:
                for answered in client.answer_roots():
                    click.echo(_line(answered))
            except UnavailableError as error:
                if once:
                    raise
                click.echo(f"{error}", err=True)
            if once:
                return
            time.sleep(every)


def _line(answered: AnsweredRoot) -> str:
    if answered.refusal:
        return f"refused  {answered.root}  {answered.refusal}"
    return f"signed   {answered.root}"


@auditor.command()
@_URL
@click.argument("bundle", type=FILE, metavar="BUNDLE")
@_TRUST
@_KEY
def challenge(url: str, bundle: Path, trust: Path, key: Path) -> None:
    """Have the receipt in BUNDLE proven that no draw has challenged.

    The service at URL holds what it takes for a day. The proofs come into the receipt's
    bundle there, under /bsec/v1/receipts/; `verify receipt` counts them.
    """
    from bentoml_secure.client.auditing import ChallengeAuditor
    from bentoml_secure.receipts.bundle import MAX_BUNDLE_BYTES, parse_bundle

    data = read(bundle, what="bundle", max_bytes=MAX_BUNDLE_BYTES)
    receipt = parse_bundle(data).receipt
    with ChallengeAuditor(url, trust, read_private_key(key)) as client:
        click.echo(f"{client.challenge(receipt)} proofs are owed")
