"""``reputation``: what an entry's ledger holds of its replicas, and starting anew."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bentoml_secure.cli.outcome import own_files, plain
from bentoml_secure.cli.parameters import FILE, as_json
from bentoml_secure.errors import ConfigurationError

if TYPE_CHECKING:
    from bentoml_secure.consensus.accounts import Account, Dissent
    from bentoml_secure.consensus.ledger import Ledger

REPUTATION = "BENTOML_SECURE_REPUTATION"
SUFFIX = ".reputation.sqlite"
SHOWN_DISSENTS = 3

_STORE = click.option(
    "--store",
    type=FILE,
    metavar="FILE",
    help=f"The entry's ledger.  [default: ${REPUTATION}, or the only one of this user]",
)


@click.group()
def reputation() -> None:
    """Show what replicas' past answers count for, and forget them."""


@reputation.command("list")
@_STORE
@as_json
def list_accounts(store: Path | None, as_json: bool) -> None:
    """List every replica: weight, vote, counts of rounds, its latest dissents.

    The entry may run meanwhile; what it knows is written within a second.
    """
    with _opened(store) as (path, ledger):
        accounts = sorted(
            ledger.accounts().values(), key=lambda a: (a.segment, a.replica)
        )
        dissents = {a.replica: ledger.dissents(a.replica) for a in accounts}
    if as_json:
        listed = [_to_json(a, dissents[a.replica]) for a in accounts]
        click.echo(json.dumps({"store": str(path), "replicas": listed}))
        return
    for account in accounts:
        for line in _lines(account, dissents[account.replica]):
            click.echo(plain(line))


@reputation.command()
@click.argument("replica", required=False, metavar="[REPLICA]")
@click.option("--all", "everybody", is_flag=True, help="Every replica of the ledger.")
@_STORE
def reset(replica: str | None, everybody: bool, store: Path | None) -> None:
    """Make REPLICA a newcomer again, as if it had never answered.

    A quarantine ends with it, for good or not. A running entry follows within
    seconds, and drops what was under way. The history of dissents stays.
    """
    from bentoml_secure.statements import utc_now

    if everybody is (replica is not None):
        raise click.UsageError("want a REPLICA, or --all")
    with _opened(store) as (path, ledger):
        count = ledger.reset(replica, now=utc_now())
    what = f"{count} replicas" if everybody else plain(replica)
    click.echo(f"{what} reset in {path}")


@contextmanager
def _opened(named: Path | None) -> Iterator[tuple[Path, Ledger]]:
    from bentoml_secure.consensus.ledger import Ledger

    path = named or _default()
    with own_files(str(path)), closing(Ledger(path, make=False)) as ledger:
        yield path, ledger


def _default() -> Path:
    if from_environment := os.environ.get(REPUTATION):
        return Path(from_environment)
    home = Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml")
    folder = home / "bentoml_secure"
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "none"
    raise ConfigurationError(
        f"reputation ledger: got {names} in {folder}, want one.",
        remedy=f"Name it with --store, or set {REPUTATION}.",
    )


def _lines(account: Account, dissents: Sequence[Dissent]) -> list[str]:
    from bentoml_secure.consensus.reputation import REQUIRED_TRIALS, Status

    standing = account.reputation
    status: str = standing.status
    if standing.status in (Status.ON_TRIAL, Status.QUARANTINED):
        status += f", {standing.passed} of {REQUIRED_TRIALS} trials passed"
    return [
        f"{account.replica}  segment {account.segment}  weight {standing.weight:.3f}"
        f"  {status}",
        f"    agreed {account.agreed}, dissented {account.dissented}, in doubt"
        f" {account.in_doubt}, absent {account.absent}, trials {account.trials},"
        f" quarantines {standing.quarantines}",
        *(
            f"    dissent at {dissent.at}, {dissent.request_id}"
            for dissent in dissents[:SHOWN_DISSENTS]
        ),
    ]


def _to_json(account: Account, dissents: Sequence[Dissent]) -> dict[str, Any]:
    standing = account.reputation
    return {
        "replica": account.replica,
        "segment": account.segment,
        "weight": standing.weight,
        "status": standing.status.value,
        "passed": standing.passed,
        "quarantines": standing.quarantines,
        "agreed": account.agreed,
        "dissented": account.dissented,
        "in_doubt": account.in_doubt,
        "absent": account.absent,
        "trials": account.trials,
        "dissents": [
            {"segment": d.segment, "request_id": d.request_id, "at": d.at}
            for d in dissents
        ],
    }
