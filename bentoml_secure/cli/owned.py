"""What the owner of a deployment names: plan, scenarios, policy, signer, proofs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bentoml_secure.cli.outcome import own_files
from bentoml_secure.cli.parameters import FILE, read
from bentoml_secure.errors import ConfigurationError

if TYPE_CHECKING:
    from bentoml_secure.attestation.appraisal import AppraisalPolicy
    from bentoml_secure.proofs.manifest import Manifest
    from bentoml_secure.scenario import Configuration
    from bentoml_secure.split import Plan

MAX_FILE_BYTES = 1 << 20

OUT = click.option(
    "--out", type=FILE, metavar="FILE", help="[default: standard output]"
)

_OPTIONS = (
    click.argument("plan_dir", type=FILE, metavar="PLAN_DIR"),
    click.option(
        "--scenarios", type=FILE, required=True, metavar="FILE", help="Of the service."
    ),
    click.option(
        "--policy",
        type=FILE,
        required=True,
        metavar="FILE",
        help="The service's appraisal policy; the caller judges evidence by it too.",
    ),
    click.option(
        "--service", required=True, metavar="NAME", help="Of the entry service."
    ),
    click.option(
        "--replicas",
        type=click.IntRange(1, 64),
        required=True,
        help="Of each segment, as the service is deployed.",
    ),
    click.option(
        "--referees",
        is_flag=True,
        help="Each segment has a referee beside them.",
    ),
    click.option(
        "--signer",
        type=FILE,
        metavar="PEM",
        help="The key whose model signature the service demands, if it does.",
    ),
    click.option(
        "--proofs",
        type=FILE,
        metavar="PROOFS_DIR",
        help="The proof set-up, if the service has one.",
    ),
)


def deployment_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that ``Owned.read`` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """A deployment's files, read.

    Attributes:
        plan: Of the plan's folder.
        policy: The appraisal policy.
        configuration: What all parties of the deployment hold alike.
        manifest: Of the proof set-up; None where nothing is proven.
    """

    plan: Plan
    policy: AppraisalPolicy
    configuration: Configuration
    manifest: Manifest | None = None

    @classmethod
    def read(
        cls,
        plan_dir: Path,
        scenarios: Path,
        policy: Path,
        service: str,
        replicas: int,
        referees: bool,
        signer: Path | None,
        proofs: Path | None = None,
        *,
        sealed: bool | None = None,
    ) -> Owned:
        """Read them.

        Args:
            plan_dir: Folder of the plan.
            scenarios: Of the service.
            policy: The service's appraisal policy.
            service: Name of the entry service.
            replicas: Of each segment.
            referees: Whether each segment has a referee.
            signer: The key whose model signature is demanded.
            proofs: Folder of the proof set-up, if the service has one.
            sealed: Whether weights are deployed sealed; None: as in the folder.

        Raises:
            ConfigurationError: A file is missing or not in order.
        """
        from bentoml_secure.attestation.appraisal import parse_policy
        from bentoml_secure.keys.model_signing import (
            MAX_KEY_BYTES,
            parse_signing_key,
            signer_digest,
        )
        from bentoml_secure.keys.sealed_plan import is_sealed
        from bentoml_secure.scenario import Configuration, parse_scenarios
        from bentoml_secure.split import load_plan

        with own_files(str(plan_dir)):
            plan = load_plan(plan_dir)
        with own_files(str(scenarios)):
            offered = parse_scenarios(
                read(scenarios, what="scenarios", max_bytes=MAX_FILE_BYTES)
            )
        with own_files(str(policy)):
            judging = parse_policy(
                read(policy, what="policy", max_bytes=MAX_FILE_BYTES)
            )
        demanded = None
        if signer is not None:
            pem = read(signer, what="signer", max_bytes=MAX_KEY_BYTES)
            demanded = signer_digest(parse_signing_key(pem))
        manifest = None if proofs is None else _manifest(proofs, plan)
        configuration = Configuration(
            service=service,
            replicas=replicas,
            referees=referees,
            segments=len(plan.segments),
            scenarios=offered,
            policy=judging.to_json(),
            sealed=is_sealed(plan_dir) if sealed is None else sealed,
            signer=demanded,
            proofs=None if manifest is None else manifest.digest,
        )
        return cls(
            plan=plan,
            policy=judging,
            configuration=configuration,
            manifest=manifest,
        )


def _manifest(folder: Path, plan: Plan) -> Manifest:
    from bentoml_secure.proofs.folder import ProofFolder

    with own_files(str(folder)):
        return ProofFolder.read(folder, plan).manifest


def write_out(out: Path | None, text: str) -> None:
    """Write a file in one step, so that no reader sees half of it; or print it.

    Raises:
        ConfigurationError: It cannot be written.
    """
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        descriptor, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
            Path(name).chmod(0o644)
            Path(name).replace(out)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{out}: cannot be written: {error}") from error
