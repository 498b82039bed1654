"""The trust file: what a caller accepts, in TOML, strict.

    version = 1
    plan_digests = ["sha256-jcs-v1:<hex>"]
    config_digests = ["sha256-jcs-v1:<hex>"]
    package_digests = ["sha256-jcs-v1:<hex>"]
    minimum_quorum = 2
    independence = "none"             # at least: or "platform", "vendor"
    draw = "asserted"                 # at least: or "committed"; may be left out
    referee = false                   # whether a referee may stand in for a quorum
    weight_ratio = 200.0              # of a segment's largest weight to its least
    manifest_signers = ["sha256:<hex>"]   # where requests are proven: whose set-up
    srs = ["sha256-srs-v1:<hex>"]         # and under which reference strings
    unsafe_srs = false                # whether one whose secret somebody knows will do
    polycommit_links = false          # whether proofs may tell of what goes between
    challenge_auditors = ["sha256:<hex>"] # where requests are challenged: who draws too
    [scenarios]
    general = "sha256-jcs-v1:<hex>"
    [policy]                          # the appraisal policy
    version = 1
    ...

A list, or ``[scenarios]``, may be ``{ unchecked = "why" }`` instead; the verdict then
says so. Not so the two of proofs: without them no proof is accepted. Nor the auditors:
without them the draw of challenges rests on the entry. Unknown keys and empty lists are
refused.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bentoml_secure.attestation.appraisal import AppraisalPolicy
from bentoml_secure.attestation.reference_values import (
    References,
    Unchecked,
    read_references,
    require_known,
)
from bentoml_secure.consensus.reputation import LEAST_WEIGHT, MOST_WEIGHT
from bentoml_secure.consensus.tally import MAX_COMMITTEE
from bentoml_secure.digest import JSON, Digest, is_finite_number
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.srs import VERIFIER as SRS
from bentoml_secure.receipts.draw import Drawn
from bentoml_secure.receipts.toml import write_toml
from bentoml_secure.scenario import Independence, read_independence

VERSION = 1
MAX_TRUST_BYTES = 1 << 20
MAX_WEIGHT_RATIO = MOST_WEIGHT / LEAST_WEIGHT
"""Of reputations: whoever earned the most against whoever lost the most."""

_DIGEST = re.compile(rf"{JSON}:[0-9a-f]{{64}}")
_LISTS = ("plan_digests", "config_digests", "package_digests")
_REQUIRED = frozenset(
    {"version", *_LISTS, "minimum_quorum", "independence", "scenarios", "policy"}
)
_KEY_ID = "sha256"
_LISTED = {"manifest_signers": _KEY_ID, "srs": SRS, "challenge_auditors": _KEY_ID}
_FLAGS = ("referee", "unsafe_srs", "polycommit_links")
_KEYS = _REQUIRED | {"draw", "weight_ratio", *_LISTED, *_FLAGS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a caller accepts.

    Attributes:
        plan_digests: Plans that may have been run.
        config_digests: Configurations of a deployment.
        package_digests: Releases of this package.
        scenarios: Digest by name; or why none is compared.
        minimum_quorum: Replicas that have to agree, whatever the scenario says.
        independence: Of the replicas that agree, whatever the scenario says.
        policy: Judges the evidence of every party.
        draw: Whether the entry has to have committed to its draw beforehand. Only
            sealed calls can show that.
        referee: Whether a referee's word may stand in for a quorum, where the
            scenario has it decide.
        weight_ratio: How many times the least weight of a segment's replicas the
            largest may be; 1 for draws among equals.
        manifest_signers: Key ids of those whose proof set-ups are accepted.
        srs: Digests of the structured reference strings that proofs may be under.
        unsafe_srs: Whether one may be that was generated on one machine: whoever did
            it can forge proofs.
        polycommit_links: Whether proofs may be linked by commitments, each of which
            tells something of the activations between segments to whoever reads it.
        challenge_auditors: Key ids of those who all must have drawn from an epoch.
            Without any, an entry can arrange an epoch to suit itself.
    """

    plan_digests: References
    config_digests: References
    package_digests: References
    scenarios: Mapping[str, Digest] | Unchecked
    minimum_quorum: int
    independence: Independence
    policy: AppraisalPolicy
    draw: Drawn = Drawn.ASSERTED
    referee: bool = False
    weight_ratio: float = MAX_WEIGHT_RATIO
    manifest_signers: tuple[str, ...] = ()
    srs: tuple[str, ...] = ()
    unsafe_srs: bool = False
    polycommit_links: bool = False
    challenge_auditors: tuple[str, ...] = ()


def parse_trust(data: bytes) -> Trust:
    """Parse a trust file.

    Raises:
        ConfigurationError: Not TOML; a key missing, unknown or of another form; an
            empty list.
    """
    if len(data) > MAX_TRUST_BYTES:
        raise ConfigurationError(
            f"trust file: got {len(data)} bytes, want at most {MAX_TRUST_BYTES}."
        )
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"trust file is not TOML: {error}.") from error
    table = require_known(document, _KEYS, what="trust file")
    if missing := sorted(_REQUIRED - table.keys()):
        raise ConfigurationError(
            f"trust file: key {missing[0]!r} is missing.",
            remedy="`bentoml-secure trust` writes a whole one.",
        )
    if type(table["version"]) is not int or table["version"] != VERSION:
        raise ConfigurationError(
            f"trust file version: got {table['version']!r:.40}, want {VERSION}."
        )
    read: dict[str, Any] = {
        name: read_references(
            table[name],
            what=f"trust file {name}",
            pattern=_DIGEST,
            form=f"{JSON}:<hex>",
        )
        for name in _LISTS
    }
    read |= {name: _read_flag(table.get(name, False), name) for name in _FLAGS}
    read |= {name: _read_listed(table, name) for name in _LISTED}
    return Trust(
        **read,
        scenarios=_read_scenarios(table["scenarios"]),
        minimum_quorum=_read_quorum(table["minimum_quorum"]),
        independence=read_independence(table["independence"], what="trust file"),
        policy=AppraisalPolicy.from_table(table["policy"]),
        draw=_read_draw(table.get("draw", Drawn.ASSERTED.value)),
        weight_ratio=_read_ratio(table.get("weight_ratio", MAX_WEIGHT_RATIO)),
    )


def _read_scenarios(value: object) -> Mapping[str, Digest] | Unchecked:
    if not isinstance(value, Mapping) or not value:
        raise ConfigurationError(
            f"trust file scenarios: got {value!r:.60}, want a table with at least one "
            f"name = {JSON}:<hex>."
        )
    if value.keys() == {"unchecked"} and not _is_digest(value["unchecked"]):
        reason = read_references(
            value, what="trust file scenarios", pattern=_DIGEST, form="digest"
        )
        if isinstance(reason, Unchecked):
            return reason
    for name, digest in value.items():
        if not _is_digest(digest):
            raise ConfigurationError(
                f"trust file scenarios {name!r:.60}: got {digest!r:.100}, "
                f"want {JSON}:<hex>."
            )
    return {name: Digest(digest) for name, digest in sorted(value.items())}


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _read_quorum(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_COMMITTEE:
        raise ConfigurationError(
            f"trust file minimum_quorum: got {value!r:.40}, want 1 to {MAX_COMMITTEE}."
        )
    return value


def _read_draw(value: object) -> Drawn:
    if not isinstance(value, str) or value not in tuple(Drawn):
        raise ConfigurationError(
            f"trust file draw: got {value!r:.40}, want one of {', '.join(Drawn)}."
        )
    return Drawn(value)


def _read_flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(
            f"trust file {name}: got {value!r:.40}, want true or false."
        )
    return value


def _read_listed(table: Mapping[str, Any], name: str) -> tuple[str, ...]:
    if name not in table:
        return ()
    algorithm, what = _LISTED[name], f"trust file {name}"
    listed = read_references(
        table[name],
        what=what,
        pattern=re.compile(rf"{algorithm}:[0-9a-f]{{64}}"),
        form=f"{algorithm}:<hex>",
    )
    if isinstance(listed, Unchecked):
        # Who may say what a proof shows is the one thing that proofs rest on.
        raise ConfigurationError(f"{what}: want a list; it is never left unchecked.")
    return listed


def _read_ratio(value: Any) -> float:
    if not is_finite_number(value) or not 1 <= value <= MAX_WEIGHT_RATIO:
        raise ConfigurationError(
            f"trust file weight_ratio: got {value!r:.40}, want 1 to "
            f"{MAX_WEIGHT_RATIO:g}."
        )
    return float(value)


def write_trust(
    *,
    plan_digests: Sequence[Digest],
    config_digests: Sequence[Digest],
    package_digests: Sequence[Digest],
    scenarios: Mapping[str, Digest],
    policy: AppraisalPolicy,
    minimum_quorum: int,
    independence: Independence = Independence.NONE,
    draw: Drawn = Drawn.ASSERTED,
    referee: bool = False,
    weight_ratio: float = MAX_WEIGHT_RATIO,
    manifest_signers: Sequence[str] = (),
    srs: Sequence[str] = (),
    unsafe_srs: bool = False,
    polycommit_links: bool = False,
    challenge_auditors: Sequence[str] = (),
) -> str:
    """Return a trust file's TOML, which ``parse_trust`` accepts.

    Raises:
        ConfigurationError: What it would say is refused.
    """
    auditors = list(challenge_auditors)
    flags = {"unsafe_srs": unsafe_srs, "polycommit_links": polycommit_links}
    document = {
        "version": VERSION,
        "plan_digests": list(plan_digests),
        "config_digests": list(config_digests),
        "package_digests": list(package_digests),
        "minimum_quorum": minimum_quorum,
        "independence": str(independence),
        "draw": str(draw),
        "referee": referee,
        "weight_ratio": weight_ratio,
        **({"manifest_signers": list(manifest_signers)} if manifest_signers else {}),
        **({"srs": list(srs), **flags} if srs else {}),
        **({"challenge_auditors": auditors} if auditors else {}),
        "scenarios": dict(scenarios),
        "policy": policy.to_json(),
    }
    written = write_toml(document)
    parse_trust(written.encode())
    return written
