"""``result issue`` and ``result verify``: verdicts on evidence as signed tokens."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bentoml_secure.cli.outcome import Outcome, State, own_files, settle
from bentoml_secure.cli.parameters import (
    FILE,
    as_json,
    hex_bytes,
    instant,
    read,
    read_evidence,
)
from bentoml_secure.errors import MalformedInputError

if TYPE_CHECKING:
    from bentoml_secure.attestation.ear_appraisal import ExpectedResult
    from bentoml_secure.attestation.reference_values import Unchecked
    from bentoml_secure.attestation.result_keys import TokenKey

MAX_POLICY_FILE_BYTES = 1 << 20
_LEAVABLE = ("issuer", "audience", "nonce")


@click.group()
def result() -> None:
    """Sign verdicts on evidence as tokens, and check such tokens."""


@result.command()
@click.option("--kind", required=True, help="As of `verify evidence`.")
@click.option(
    "--evidence",
    "evidence_file",
    type=FILE,
    required=True,
    metavar="FILE",
    help="The vendor's bytes, or their hex digits.",
)
@click.option(
    "--endorsements",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="A vendor's certificates or collateral; repeatable.",
)
@click.option(
    "--policy", type=FILE, required=True, metavar="FILE", help="Appraisal policy, TOML."
)
@click.option(
    "--report-data",
    type=hex_bytes(32, 64),
    metavar="HEX",
    help="The bytes that the evidence must cover.",
)
@click.option(
    "--unchecked-report-data",
    metavar="WHY",
    allow_from_autoenv=False,
    help="Do not compare them; the token then affirms nothing, and says why.",
)
@click.option(
    "--drawn-at",
    type=instant,
    metavar="RFC3339",
    help="When the challenge under --report-data was drawn: the evidence is younger."
    " Without it, evidence with no signed time is too old for a token.",
)
@click.option(
    "--key",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Private key that signs, PEM: P-256 or Ed25519.",
)
@click.option("--issuer", required=True, metavar="NAME", help="Who signs.")
@click.option("--audience", required=True, metavar="NAME", help="Whom it is for.")
@click.option(
    "--nonce",
    required=True,
    metavar="TEXT",
    help="Chosen by whom it is for: 8 to 88 of A-Z a-z 0-9 - _.",
)
@click.option(
    "--lifetime",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="At most; a token never outlives its evidence.",
)
@click.option(
    "--at",
    type=instant,
    metavar="RFC3339",
    help="The time to judge for and to date the token with.  [default: now]",
)
@as_json
def issue(
    kind: str,
    evidence_file: Path,
    endorsements: tuple[Path, ...],
    policy: Path,
    report_data: bytes | None,
    unchecked_report_data: str | None,
    drawn_at: datetime | None,
    key: Path,
    issuer: str,
    audience: str,
    nonce: str,
    lifetime: int,
    at: datetime | None,
    as_json: bool,
) -> None:
    """Check evidence, and print a signed token that says what came of it.

    The token stands alone on standard output, the verdict on standard error; with
    --json both are one object. Rejected evidence gets no token.
    """
    if (report_data is None) == (unchecked_report_data is None):
        raise click.UsageError(
            "want one of --report-data HEX and --unchecked-report-data WHY"
        )
    from bentoml_secure.attestation.appraisal import appraise, parse_policy
    from bentoml_secure.attestation.evidence import (
        MAX_ENDORSEMENT_BYTES,
        Evidence,
    )
    from bentoml_secure.attestation.reference_values import Unchecked
    from bentoml_secure.attestation.result_keys import load_signing_key
    from bentoml_secure.attestation.results import issue_result
    from bentoml_secure.attestation.tees import load_tee

    with own_files(str(policy)):
        accepted = parse_policy(
            read(policy, what="policy", max_bytes=MAX_POLICY_FILE_BYTES)
        )
    with own_files(str(key)):
        signing = load_signing_key(_read_key(key))
    verifier, now = load_tee(kind), at or datetime.now(UTC)

    def judge() -> Outcome:
        """Return the verdict, and print the token if it is to stand alone."""
        claims = verifier.verify(
            Evidence(kind=kind, blob=read_evidence(evidence_file)),
            [
                read(path, what="endorsement", max_bytes=MAX_ENDORSEMENT_BYTES)
                for path in endorsements
            ],
            now=now,
        )
        appraised = appraise(
            claims,
            accepted,
            report_data=Unchecked(unchecked_report_data or "")
            if report_data is None
            else report_data,
            now=now,
            nonce_issued_at=drawn_at,
        )
        token = issue_result(
            appraised,
            accepted,
            signing,
            issuer=issuer,
            audience=audience,
            nonce=nonce,
            token_id=secrets.token_hex(16),
            now=now,
            lifetime_seconds=lifetime,
        )
        if not as_json:
            click.echo(token)
        return Outcome(
            state=State.ACCEPTED,
            kind=appraised.kind,
            claims={"token": token} if as_json else {"key": signing.key_id},
            simulated=appraised.simulated,
        )

    settle(kind, judge, as_json=as_json, err=True)


@result.command()
@click.argument("token_file", type=FILE, metavar="FILE")
@click.option(
    "--key",
    "key_files",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="The issuer's public key, PEM; repeatable.",
)
@click.option(
    "--jwks",
    type=FILE,
    metavar="FILE",
    help="Or the issuer's keys, a JSON Web Key Set.",
)
@click.option("--issuer", metavar="NAME", help="Who must have signed.")
@click.option("--audience", metavar="NAME", help="Whom it must be for.")
@click.option("--nonce", metavar="TEXT", help="What it was asked for with.")
@click.option(
    "--policy-id",
    "policies",
    multiple=True,
    metavar="ID",
    help="Appraisal policy that is accepted; repeatable.  [default: any]",
)
@click.option(
    "--unchecked",
    type=(click.Choice(_LEAVABLE), str),
    multiple=True,
    metavar="WHAT WHY",
    allow_from_autoenv=False,
    help="Do not compare the issuer, audience or nonce, for a reason that the result"
    " shows; repeatable.",
)
@click.option(
    "--allow-warning",
    is_flag=True,
    allow_from_autoenv=False,
    help="Accept a status of warning, too.",
)
@click.option(
    "--allow-simulated",
    is_flag=True,
    allow_from_autoenv=False,
    help="Accept that there is no hardware.",
)
@click.option(
    "--at", type=instant, metavar="RFC3339", help="The time to judge for.  [now]"
)
@as_json
def verify(
    token_file: Path,
    key_files: tuple[Path, ...],
    jwks: Path | None,
    issuer: str | None,
    audience: str | None,
    nonce: str | None,
    policies: tuple[str, ...],
    unchecked: tuple[tuple[str, str], ...],
    allow_warning: bool,
    allow_simulated: bool,
    at: datetime | None,
    as_json: bool,
) -> None:
    """Check the token in FILE, this package's or a Trustee broker's.

    Nothing is fetched: only the keys given here verify it.
    """
    from bentoml_secure.attestation.ear_appraisal import ANY_POLICY, ExpectedResult
    from bentoml_secure.attestation.results import MAX_TOKEN_CHARACTERS, verify_result

    keys = _public_keys(key_files, jwks)
    given = {"issuer": issuer, "audience": audience, "nonce": nonce}
    named = _named(given, unchecked)
    expected: ExpectedResult = ExpectedResult(
        issuer=named["issuer"],
        audience=named["audience"],
        nonce=named["nonce"],
        policies=policies or ANY_POLICY,
        allow_warning=allow_warning,
        allow_simulated=allow_simulated,
    )

    def judge() -> Outcome:
        """Return the verdict on the token."""
        data = read(token_file, what="token", max_bytes=MAX_TOKEN_CHARACTERS + 2)
        try:
            token = data.decode("ascii").strip()
        except UnicodeDecodeError as error:
            raise MalformedInputError("token: not ASCII") from error
        found = verify_result(token, keys, expected, now=at or datetime.now(UTC))
        return Outcome(
            state=State.ACCEPTED,
            kind="result",
            claims=found.to_json(),
            simulated=found.claims.simulated,
        )

    settle("result", judge, as_json=as_json)


def _public_keys(key_files: Sequence[Path], jwks: Path | None) -> list[TokenKey]:
    from bentoml_secure.attestation.result_keys import load_key_set, load_public_keys

    if bool(key_files) == (jwks is not None):
        raise click.UsageError("want one of --key FILE and --jwks FILE")
    keys: list[TokenKey] = []
    for path in key_files:
        with own_files(str(path)):
            keys += load_public_keys(_read_key(path))
    if jwks is not None:
        with own_files(str(jwks)):
            keys += load_key_set(_read_key(jwks))
    return keys


def _read_key(path: Path) -> bytes:
    from bentoml_secure.attestation.result_keys import MAX_KEY_FILE_BYTES

    return read(path, what="key", max_bytes=MAX_KEY_FILE_BYTES)


def _named(
    given: dict[str, str | None], unchecked: Sequence[tuple[str, str]]
) -> dict[str, str | Unchecked]:
    """Return what each has to be, or why it is not compared: one of the two."""
    from bentoml_secure.attestation.reference_values import Unchecked

    reasons = dict(unchecked)
    named: dict[str, str | Unchecked] = {}
    for name, text in given.items():
        if (text is None) == (name not in reasons):
            raise click.UsageError(f"want one of --{name} and --unchecked {name} WHY")
        if text is None and not reasons[name].strip():
            raise click.UsageError(f"--unchecked {name}: want a reason")
        named[name] = Unchecked(reasons[name]) if text is None else text
    return named
