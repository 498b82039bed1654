"""What a model's owner demands of who asks for a segment's key: a TOML file.

    version = 1
    [[models]]
    plan = "sha256-jcs-v1:<hex>"
    roles = ["runner", "prover"]
    config_digests = ["sha256-jcs-v1:<hex>"]
    package_digests = ["sha256-jcs-v1:<hex>"]     # or { unchecked = "why" }
    [appraisal]                                   # as in attestation.appraisal
    version = 1
    max_age_seconds = 300
    ...

Reading is strict, as for appraisal policies: what is unknown, missing or empty is
refused.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.attestation.reference_values import (
    References,
    read_list,
    read_references,
    require_known,
)
from bentoml_secure.digest import JSON, Digest
from bentoml_secure.errors import ConfigurationError

VERSION = 1
MAX_POLICY_BYTES = 256 * 1024
ROLES = (Role.RUNNER, Role.PROVER)
"""Who runs or proves a segment; nobody else has a use for its weights."""

_DIGEST = re.compile(rf"{JSON}:[0-9a-f]{{64}}")
_ROLE = re.compile("|".join(ROLES))
_FORM = f"{JSON}:<hex>"
_TOP = frozenset({"version", "models", "appraisal"})
_MODEL = frozenset({"plan", "roles", "config_digests", "package_digests"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPolicy:
    """Who gets the keys of one plan.

    Attributes:
        plan: Its digest.
        roles: Of ``ROLES``, sorted.
        config_digests: Configurations of deployments, at least one.
        packages: Releases of this package, or the reason why any is.
    """

    plan: Digest
    roles: tuple[Role, ...]
    config_digests: tuple[str, ...]
    packages: References


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerPolicy:
    """Who gets keys.

    Attributes:
        models: By plan digest; at least one.
        appraisal: What evidence must show.
    """

    models: Mapping[Digest, ModelPolicy]
    appraisal: AppraisalPolicy


def parse_broker_policy(data: bytes) -> BrokerPolicy:
    """Parse the owner's policy file.

    Raises:
        ConfigurationError: Not TOML; a key unknown, missing or of another form; a
            model twice.
    """
    if len(data) > MAX_POLICY_BYTES:
        raise ConfigurationError(
            f"broker policy: got {len(data)} bytes, want at most {MAX_POLICY_BYTES}."
        )
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"broker policy is not TOML: {error}.") from error
    require_known(table, _TOP, what="broker policy")
    version, entries = table.get("version"), table.get("models")
    if type(version) is not int or version != VERSION:
        raise ConfigurationError(
            f"broker policy version: got {version!r:.40}, want {VERSION}."
        )
    if not isinstance(entries, list) or not entries:
        raise ConfigurationError("broker policy: want at least one [[models]].")
    models = tuple(map(_model, entries))
    by_plan = {model.plan: model for model in models}
    if len(by_plan) != len(models):
        raise ConfigurationError("broker policy [[models]]: a plan stands there twice.")
    if "appraisal" not in table:
        raise ConfigurationError("broker policy: the table [appraisal] is missing.")
    appraisal = AppraisalPolicy.from_table(table["appraisal"])
    return BrokerPolicy(models=by_plan, appraisal=appraisal)


def _model(entry: object) -> ModelPolicy:
    what = "broker policy [[models]]"
    table = require_known(entry, _MODEL, what=what)
    plan = table.get("plan")
    if not isinstance(plan, str) or not _DIGEST.fullmatch(plan):
        raise ConfigurationError(f"{what} plan: got {plan!r:.100}, want {_FORM}.")
    return ModelPolicy(
        plan=Digest(plan),
        roles=tuple(map(Role, _listed(table, "roles", _ROLE, " or ".join(ROLES)))),
        config_digests=_listed(table, "config_digests", _DIGEST, _FORM),
        packages=read_references(
            table.get("package_digests"),
            what=f"{what} package_digests",
            pattern=_DIGEST,
            form=_FORM,
        ),
    )


def _listed(
    table: Mapping[str, Any], key: str, pattern: re.Pattern[str], form: str
) -> tuple[str, ...]:
    what = f"broker policy [[models]] {key}"
    return read_list(table.get(key), what=what, pattern=pattern, form=form)
