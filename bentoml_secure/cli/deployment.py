"""``dev-root`` and ``trust``: what a deployment and its callers need beforehand."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click

from bentoml_secure.cli.outcome import SIMULATED, own_files
from bentoml_secure.cli.parameters import FILE, read
from bentoml_secure.errors import ConfigurationError

MAX_FILE_BYTES = 1 << 20


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
@click.argument("plan_dir", type=FILE, metavar="PLAN_DIR")
@click.option(
    "--scenarios", type=FILE, required=True, metavar="FILE", help="Of the service."
)
@click.option(
    "--policy",
    type=FILE,
    required=True,
    metavar="FILE",
    help="The service's appraisal policy; the caller judges evidence by it too.",
)
@click.option("--service", required=True, metavar="NAME", help="Of the entry service.")
@click.option(
    "--replicas",
    type=click.IntRange(1, 64),
    required=True,
    help="Of each segment, as the service is deployed.",
)
@click.option(
    "--minimum-quorum",
    type=click.IntRange(1, 64),
    help="Replicas that have to agree at least."
    "  [default: the quorum of the service's minimum scenario]",
)
@click.option("--out", type=FILE, metavar="FILE", help="[default: standard output]")
def trust(
    plan_dir: Path,
    scenarios: Path,
    policy: Path,
    service: str,
    replicas: int,
    minimum_quorum: int | None,
    out: Path | None,
) -> None:
    """Write the trust file of a deployment, from its owner's own files.

    It accepts exactly the plan in PLAN_DIR, these scenarios and policy, and this
    release of the package. Callers check receipts with it, and whom they talk to.
    """
    text = _trust_file(plan_dir, scenarios, policy, service, replicas, minimum_quorum)
    if out is None:
        click.echo(text, nl=False)
    else:
        _write_whole(out, text)


def _trust_file(
    plan_dir: Path,
    scenarios_file: Path,
    policy_file: Path,
    service: str,
    replicas: int,
    minimum_quorum: int | None,
) -> str:
    from bentoml_secure.attestation.appraisal import parse_policy
    from bentoml_secure.attestation.key_document import package_digest
    from bentoml_secure.receipts.trust import write_trust
    from bentoml_secure.scenario import Configuration, parse_scenarios
    from bentoml_secure.split import load_plan

    with own_files(str(plan_dir)):
        plan = load_plan(plan_dir)
    with own_files(str(scenarios_file)):
        scenarios = parse_scenarios(
            read(scenarios_file, what="scenarios", max_bytes=MAX_FILE_BYTES)
        )
    with own_files(str(policy_file)):
        policy = parse_policy(
            read(policy_file, what="policy", max_bytes=MAX_FILE_BYTES)
        )
    configuration = Configuration(
        service=service,
        replicas=replicas,
        segments=len(plan.segments),
        scenarios=scenarios,
        policy=policy.to_json(),
    )
    least = scenarios.by_name[scenarios.minimum]
    served = {
        name: scenario.digest
        for name, scenario in scenarios.by_name.items()
        if not scenario.weaker_than(least)
    }
    return write_trust(
        plan_digests=[plan.digest],
        config_digests=[configuration.digest],
        package_digests=[package_digest()],
        scenarios=served,
        policy=policy,
        minimum_quorum=minimum_quorum or least.quorum,
        independence=least.independence,
    )


def _write_whole(path: Path, text: str) -> None:
    """Replace a file in one step: no reader sees half a trust file."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error}") from error
