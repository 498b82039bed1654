"""``endorsements fetch``: the only command that asks a vendor for anything."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import click

from bentoml_secure.cli.parameters import FILE, read_evidence
from bentoml_secure.errors import ConfigurationError


@click.group()
def endorsements() -> None:
    """Certificates and collateral that evidence is checked with."""


@endorsements.command()
@click.option("--kind", required=True, help="tdx, sgx, sev-snp or az-snp-vtpm.")
@click.option(
    "--evidence",
    "evidence_file",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Says which platform to ask about: the vendor's bytes, or their hex digits.",
)
@click.option(
    "--out",
    type=FILE,
    required=True,
    metavar="DIR",
    help="Where the files go; made if need be.",
)
@click.option(
    "--pcs",
    metavar="URL",
    help="Intel's service, or a caching service that speaks it (PCCS)."
    "  [default: https://api.trustedservices.intel.com]",
)
@click.option(
    "--kds", metavar="URL", help="AMD's service.  [default: https://kdsintf.amd.com]"
)
@click.option(
    "--timeout-seconds",
    type=click.FloatRange(0, 600, min_open=True),
    default=30.0,
    show_default=True,
    help="For each answer.",
)
@click.option(
    "--cache",
    type=FILE,
    metavar="DIR",
    help="Answers are kept here until they expire."
    "  [default: ~/.cache/bentoml-secure/endorsements]",
)
@click.option("--no-cache", is_flag=True, help="Neither read nor keep answers.")
@click.option("--refresh", is_flag=True, help="Ask even for what is kept.")
def fetch(
    kind: str,
    evidence_file: Path,
    out: Path,
    pcs: str | None,
    kds: str | None,
    timeout_seconds: float,
    cache: Path | None,
    no_cache: bool,
    refresh: bool,
) -> None:
    """Fetch from Intel or AMD what one piece of evidence is checked with.

    It tells the service which platform is asked about, and nothing else. What comes
    back is written as files for `verify evidence --endorsements`, which checks it.
    """
    if no_cache and (cache is not None or refresh):
        raise click.UsageError("--no-cache goes with neither --cache nor --refresh")
    from bentoml_secure.attestation.endorsements import fetch_endorsements
    from bentoml_secure.attestation.endorsements.cache import CachedFetch, write_whole
    from bentoml_secure.attestation.endorsements.fetching import HttpsFetch
    from bentoml_secure.attestation.evidence import Evidence

    get = CachedFetch(
        fetch=HttpsFetch(timeout_seconds=timeout_seconds),
        clock=lambda: datetime.now(UTC),
        folder=None if no_cache else cache or _default_cache(),
        refresh=refresh,
    )
    evidence = Evidence(kind=kind, blob=read_evidence(evidence_file))
    service = pcs if kind in ("sgx", "tdx") else kds
    fetched = fetch_endorsements(evidence, get, service=service)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for endorsement in fetched:
            write_whole(out / endorsement.name, endorsement.data)
            click.echo(f"--endorsements {out / endorsement.name}")
    except OSError as error:
        raise ConfigurationError(f"{out}: cannot be written: {error}.") from error


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bentoml-secure" / "endorsements"
