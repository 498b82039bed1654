"""The command line: ``bentoml-secure``, and the same commands as ``bentoml secure``.

``bentoml`` loads this module whatever command it was asked for, so nothing is
imported here but click and the error tree: each command imports its room when it runs.

    outcome      verdicts, exit codes, how both are printed
    parameters   types of options, and reading the files that they name
    splitting    split
    calibrating  calibrate
    deployment   dev-root, trust
    endorsing    endorsements fetch
    measuring    measure event-log, nitro, sgx, runtime
    guests       measure sev-snp, tdx
    policies     the policies that these write
    verifying    verify evidence, verify receipt
    summary      a verdict on a receipt for people
    inspecting   inspect plan, evidence, receipt
    sealing      sign-model, verify-model, seal-model, seal-proofs
    brokering    broker init, add-keys, policy, revoke, audit
    enrolling    tpm authority, enrol, request, authorise, answer, policy
    owned        files that name a deployment, for trust and broker policy
    results      result issue, result verify
    auditing     plan-audit
    challenges   auditor id, watch, challenge
    reputations  reputation list, reputation reset
    proving      prove, with srs: prove srs import, generate, show
    proof_set_up prove setup
    verification_keys  verify vk
    proof_files  verify proof, inspect proof
    known_answers   trials make

Every option is also read from the environment: of ``split --segments``
``BENTOML_SECURE_SPLIT_SEGMENTS``, and so on. Leaving a check out is not.
"""

from __future__ import annotations

import click

from bentoml_secure.cli.auditing import plan_audit
from bentoml_secure.cli.brokering import broker
from bentoml_secure.cli.calibrating import calibrate
from bentoml_secure.cli.challenges import auditor
from bentoml_secure.cli.deployment import dev_root, trust
from bentoml_secure.cli.endorsing import endorsements
from bentoml_secure.cli.enrolling import tpm
from bentoml_secure.cli.inspecting import inspect
from bentoml_secure.cli.known_answers import trials
from bentoml_secure.cli.measuring import measure
from bentoml_secure.cli.outcome import SecureGroup
from bentoml_secure.cli.proof_files import inspect_proof, verify_proof
from bentoml_secure.cli.proving import prove
from bentoml_secure.cli.reputations import reputation
from bentoml_secure.cli.results import result
from bentoml_secure.cli.sealing import (
    seal_model,
    seal_proofs,
    sign_model,
    verify_model,
)
from bentoml_secure.cli.splitting import split
from bentoml_secure.cli.verification_keys import vk
from bentoml_secure.cli.verifying import verify

__all__ = ["main"]


@click.group(
    name="secure",
    cls=SecureGroup,
    context_settings={
        "auto_envvar_prefix": "BENTOML_SECURE",
        "help_option_names": ["-h", "--help"],
    },
)
@click.version_option(
    package_name="bentoml-secure",
    prog_name="bentoml-secure",
    # In the environment it would turn every command into this one.
    allow_from_autoenv=False,
)
def main() -> None:
    """Split models, set up trust, and check evidence and receipts offline.

    Exit codes: 0 verified, 1 rejected, 2 usage or an unreadable file, 3 something
    required is not there yet.
    """


for _command in (
    split,
    calibrate,
    inspect,
    verify,
    measure,
    endorsements,
    dev_root,
    trust,
):
    main.add_command(_command)
for _command in (sign_model, verify_model, seal_model, seal_proofs):
    main.add_command(_command)
for _command in (broker, result, tpm):
    main.add_command(_command)
for _command in (plan_audit, auditor, reputation, trials, prove):
    main.add_command(_command)
for _command in (vk, verify_proof):
    verify.add_command(_command)
inspect.add_command(inspect_proof)
