"""``dev-root`` and ``trust``: what a deployment and its callers need beforehand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bentoml_secure.cli.outcome import SIMULATED, own_files
from bentoml_secure.cli.owned import OUT, Owned, deployment_options, write_out
from bentoml_secure.cli.parameters import FILE

UNSAFE = (
    "UNSAFE SRS: whoever generated the structured reference string can forge proofs,"
    " and this trust file accepts them (unsafe_srs)."
)
EXPOSED = (
    "POLYCOMMIT LINKS: proofs tell of the activations between segments to whoever"
    " reads receipts, and this trust file accepts it (polycommit_links)."
)


@click.command("dev-root")
@click.argument("folder", type=FILE, metavar="DIR")
def dev_root(folder: Path) -> None:
    """Make a development root in DIR: a key for SIMULATED evidence.

    The processes of a deployment share it (BENTOML_SECURE_DEV_ROOT=DIR). DIR also
    gets a policy.toml that accepts evidence under this root. No hardware stands behind
    it: whoever can read DIR can claim to be any of these processes.
    """
    from bentoml_secure.attestation.dev_root import create_dev_root

    with own_files(str(folder)):
        root = create_dev_root(folder, now=datetime.now(UTC))
    click.echo(f"development root {root} in {folder}")
    click.echo(f"{SIMULATED}: for development only.", err=True)


@click.command()
@deployment_options
@click.option(
    "--minimum-quorum",
    type=click.IntRange(1, 64),
    help="Replicas that have to agree at least."
    "  [default: the quorum of the service's minimum scenario]",
)
@click.option(
    "--draw",
    type=click.Choice(["asserted", "committed"]),
    default="asserted",
    show_default=True,
    help="Whether the entry has to have committed to its draw beforehand.",
)
@click.option(
    "--weight-ratio",
    type=click.FloatRange(1, 200),
    default=200.0,
    show_default=True,
    help="Largest weight of a segment's replicas over the least; 1: equals.",
)
@OUT
def trust(
    minimum_quorum: int | None,
    draw: str,
    weight_ratio: float,
    out: Path | None,
    **named: Any,
) -> None:
    """Write the trust file of a deployment, from its owner's own files.

    It accepts exactly the plan in PLAN_DIR, these scenarios and policy, and this
    release of the package; a referee's word, where a scenario does; and proofs of the
    set-up in PROOFS_DIR, whose owner it names. Callers check receipts with it, and whom
    they talk to.

    PLAN_DIR is the folder as it is deployed: if it is sealed, a deployment of the same
    plan in plain is not accepted, nor the other way round.
    """
    owned = Owned.read(**named)
    if owned.manifest is not None and owned.manifest.srs.unsafe:
        click.echo(UNSAFE, err=True)
    if owned.manifest is not None and owned.manifest.link == "polycommit":
        click.echo(EXPOSED, err=True)
    write_out(out, _trust_file(owned, minimum_quorum, draw, weight_ratio))


def _trust_file(
    owned: Owned, minimum_quorum: int | None, draw: str, weight_ratio: float
) -> str:
    from bentoml_secure.attestation.key_document import package_digest
    from bentoml_secure.receipts.draw import Drawn
    from bentoml_secure.receipts.trust import write_trust

    scenarios = owned.configuration.scenarios
    proofs: dict[str, Any] = {}
    if owned.manifest is not None:
        srs = owned.manifest.srs
        proofs = {
            "manifest_signers": [owned.manifest.signer_id],
            "srs": [srs.digest],
            "unsafe_srs": srs.unsafe,
            "polycommit_links": owned.manifest.link == "polycommit",
        }
    offered, least = scenarios.by_name, scenarios.by_name[scenarios.minimum]
    served = {
        name: scenario.digest
        for name, scenario in offered.items()
        if not scenario.weaker_than(least)
    }
    return write_trust(
        plan_digests=[owned.plan.digest],
        config_digests=[owned.configuration.digest],
        package_digests=[package_digest()],
        scenarios=served,
        policy=owned.policy,
        minimum_quorum=minimum_quorum or least.quorum,
        independence=least.independence,
        draw=Drawn(draw),
        referee=any(offered[name].referee for name in served),
        weight_ratio=weight_ratio,
        **proofs,
    )
