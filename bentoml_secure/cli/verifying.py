"""``verify evidence`` and ``verify receipt``: offline, every finding listed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bentoml_secure.cli.outcome import (
    Outcome,
    State,
    own_files,
    settle,
)
from bentoml_secure.cli.parameters import (
    FILE,
    as_json,
    hex_bytes,
    instant,
    read,
    read_evidence,
)
from bentoml_secure.cli.summary import receipt_lines

if TYPE_CHECKING:
    from bentoml_secure.attestation.evidence import Endorsements
    from bentoml_secure.receipts.opening import Opened, Opening

PADDED_KINDS = frozenset({"az-snp-vtpm"})
"""Kinds that cover challenges of any length, as if zeros filled a short one to 32."""

MAX_OWN_FILE_BYTES = 1 << 20
MAX_BODY_BYTES = 1 << 30
TENSORS_SUFFIX = ".safetensors"


@click.group()
def verify() -> None:
    """Check evidence or receipts offline, and list every check that fails."""


@verify.command()
@click.option(
    "--kind",
    required=True,
    help="tdx, sgx, sev-snp, az-snp-vtpm, nitro, tpm, cca, nvidia-gpu or simulated.",
)
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
    help="A vendor's certificates (PEM or DER) or collateral; repeatable, any order,"
    " those of other kinds are passed over.",
)
@click.option(
    "--policy", type=FILE, required=True, metavar="FILE", help="Appraisal policy, TOML."
)
@click.option(
    "--at",
    type=instant,
    required=True,
    metavar="RFC3339",
    help="The time to judge validity dates for.",
)
@click.option(
    "--report-data",
    type=hex_bytes(*range(1, 65)),
    metavar="HEX",
    help="The bytes that the evidence must cover: 32 or 64, for az-snp-vtpm 1 to 64.",
)
@click.option(
    "--unchecked-report-data",
    metavar="WHY",
    allow_from_autoenv=False,
    help="Do not compare them, for a reason that the result shows.",
)
@as_json
def evidence(
    kind: str,
    evidence_file: Path,
    endorsements: tuple[Path, ...],
    policy: Path,
    at: datetime,
    report_data: bytes | None,
    unchecked_report_data: str | None,
    as_json: bool,
) -> None:
    """Check one piece of evidence against an appraisal policy.

    Nothing is fetched: what the evidence is judged with stands in --endorsements.
    """
    if (report_data is None) == (unchecked_report_data is None):
        raise click.UsageError(
            "want one of --report-data HEX and --unchecked-report-data WHY"
        )
    from bentoml_secure.attestation.appraisal import appraise, parse_policy
    from bentoml_secure.attestation.evidence import Evidence
    from bentoml_secure.attestation.reference_values import read_unchecked
    from bentoml_secure.attestation.tees import load_tee

    expected = (
        read_unchecked({"unchecked": unchecked_report_data}, what="report data")
        if report_data is None
        else _filled(kind, report_data)
    )
    with own_files(str(policy)):
        accepted = parse_policy(
            read(policy, what="policy", max_bytes=MAX_OWN_FILE_BYTES)
        )
    verifier = load_tee(kind)

    def judge() -> Outcome:
        claims = verifier.verify(
            Evidence(kind=kind, blob=read_evidence(evidence_file)),
            _endorsements(endorsements),
            now=at,
        )
        result = appraise(
            claims,
            accepted,
            report_data=expected,
            now=at,
            nonce_issued_at=None,
        )
        return Outcome(
            state=State.ACCEPTED,
            kind=result.kind,
            claims=_own_claims(result.to_json()),
            simulated=result.simulated,
        )

    settle(kind, judge, as_json=as_json)


def _filled(kind: str, report_data: bytes) -> bytes:
    from bentoml_secure.attestation.evidence import REPORT_DATA_LENGTHS

    length = len(report_data)
    if kind in PADDED_KINDS:
        want = min(each for each in REPORT_DATA_LENGTHS if each >= length)
        return report_data.ljust(want, b"\0")
    if length not in REPORT_DATA_LENGTHS:
        raise click.BadParameter(
            f"got {2 * length} hex digits, want 32 or 64 bytes",
            param_hint="'--report-data'",
        )
    return report_data


def _own_claims(document: dict[str, object]) -> dict[str, object]:
    """Leave to the outcome what every outcome says in its own words."""
    return {
        name: value
        for name, value in document.items()
        if name not in {"verdict", "kind", "findings"}
    }


def _endorsements(paths: tuple[Path, ...]) -> Endorsements:
    from bentoml_secure.attestation.evidence import (
        MAX_ENDORSEMENT_BYTES,
        MAX_ENDORSEMENTS,
    )

    if len(paths) > MAX_ENDORSEMENTS:
        raise click.UsageError(f"--endorsements: at most {MAX_ENDORSEMENTS} files")
    return tuple(
        read(path, what="endorsement", max_bytes=MAX_ENDORSEMENT_BYTES)
        for path in paths
    )


@verify.command()
@click.argument("bundle_file", type=FILE, metavar="FILE")
@click.option(
    "--trust",
    type=FILE,
    required=True,
    metavar="FILE",
    help="What the caller accepts; see `bentoml-secure trust`.",
)
@click.option(
    "--endorsements",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="What evidence in the bundle came without; as for `verify evidence`.",
)
@click.option(
    "--input",
    "input_file",
    type=FILE,
    metavar="FILE",
    help="The request: body bytes, or input tensors as .safetensors.",
)
@click.option(
    "--output",
    "output_file",
    type=FILE,
    metavar="FILE",
    help="The response, likewise.",
)
@click.option(
    "--salt",
    type=hex_bytes(32),
    metavar="HEX",
    envvar="BENTOML_SECURE_SALT",
    show_envvar=True,
    help="The request's root salt, a secret: better given in the environment.",
)
@click.option(
    "--at",
    type=instant,
    metavar="RFC3339",
    help="The time to judge evidence for."
    "  [default: the receipt's time of issue, as its issuer says]",
)
@as_json
def receipt(
    bundle_file: Path,
    trust: Path,
    endorsements: tuple[Path, ...],
    input_file: Path | None,
    output_file: Path | None,
    salt: bytes | None,
    at: datetime | None,
    as_json: bool,
) -> None:
    """Check a receipt's bundle against a trust file.

    With --input, --output and --salt it is also checked that the receipt is about this
    request and this response.
    """
    opens = input_file is not None or output_file is not None
    if opens and salt is None:
        raise click.UsageError("--input and --output need --salt, or its variable")
    from bentoml_secure.receipts.bundle import MAX_BUNDLE_BYTES, parse_bundle
    from bentoml_secure.receipts.trust import parse_trust
    from bentoml_secure.receipts.verify import verify_bundle

    with own_files(str(trust)):
        accepted = parse_trust(read(trust, what="trust", max_bytes=MAX_OWN_FILE_BYTES))
    own = _endorsements(endorsements)
    with own_files("opening"):
        opening = _opening(input_file, output_file, salt) if opens else None

    def judge() -> Outcome:
        data = read(bundle_file, what="receipt", max_bytes=MAX_BUNDLE_BYTES)
        verdict = verify_bundle(
            parse_bundle(data).endorsed(own),
            accepted,
            at=at,
            now=datetime.now(UTC),
            opening=opening,
        )
        claims = _own_claims(verdict.to_json())
        return Outcome(
            state=State(verdict.state),
            kind="receipt",
            claims=claims,
            summary=receipt_lines(claims),
            simulated=verdict.simulated,
        )

    settle("receipt", judge, as_json=as_json)


def _opening(
    input_file: Path | None, output_file: Path | None, salt: bytes | None
) -> Opening:
    from bentoml_secure.receipts.opening import Opening
    from bentoml_secure.tensors import decode

    def opened(path: Path | None) -> Opened | None:
        if path is None:
            return None
        data = read(path, what="opening", max_bytes=MAX_BODY_BYTES)
        return decode(data) if path.suffix == TENSORS_SUFFIX else data

    return Opening(salt=salt, request=opened(input_file), response=opened(output_file))
