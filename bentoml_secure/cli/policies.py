"""Policies that ``measure`` writes, and the large files that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import click

from bentoml_secure.cli.outcome import plain
from bentoml_secure.errors import ConfigurationError

MAX_AGE_SECONDS = 300
_NOT_MEASURED = (
    "Plan, package and configuration are not among these values: they stand in the key"
    " document that evidence covers, and a trust file lists them."
)


def opened(path: Path) -> IO[bytes]:
    """Open a file that the caller names, of any size.

    Raises:
        ConfigurationError: It cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error


def write_policy(
    kind: str,
    table: Mapping[str, Any],
    source: Path | None,
    *,
    comments: Sequence[str] | Iterator[str] = (),
) -> None:
    """Print a policy with one kind's table, after having read it as one.

    Args:
        kind: The one that it allows.
        table: Its keys, as ``attestation.appraisal`` reads them.
        source: The file measured, or None.
        comments: Lines to stand above the policy.

    Raises:
        ConfigurationError: A table that is not one of that kind's.
    """
    from bentoml_secure.attestation.appraisal import parse_policy
    from bentoml_secure.receipts.toml import write_toml

    text = write_toml(
        {
            "version": 1,
            "max_age_seconds": MAX_AGE_SECONDS,
            "allow": [kind],
            kind: dict(table),
        }
    )
    parse_policy(text.encode())
    head = [] if source is None else [f"measured: {source}"]
    for line in (*head, *comments):
        click.echo(f"# {plain(line)}".rstrip())
    click.echo(text, nl=False)
    click.echo(_NOT_MEASURED, err=True)
