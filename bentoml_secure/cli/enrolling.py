"""``tpm``: enrolling TPMs, and the policy that one satisfies.

An enrolment is an authority's word that an attestation key is in a certified TPM. Where
authority and device share a host, ``enrol`` does it all. Else files travel:

    device      request      what it is
    authority   authorise    writes a challenge, waits for the answer, then vouches
    device      answer       opens the challenge, which only this TPM can
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bentoml_secure.cli.outcome import SIMULATED, own_files
from bentoml_secure.cli.owned import write_out
from bentoml_secure.cli.parameters import FILE, read
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)

if TYPE_CHECKING:
    from bentoml_secure.attestation.attesters.tpm import KnownTpm, TpmAttester
    from bentoml_secure.attestation.evidence import AttestationResult
    from bentoml_secure.signing import SigningKey

MAX_MESSAGE_BYTES = 2 << 20
"""Of a request as JSON; the certificates in it are most of it."""

POLL_SECONDS = 0.2

Command = Callable[..., Any]


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def give(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return give


_DEVICE = _options(
    click.option(
        "--folder",
        type=FILE,
        required=True,
        envvar="BENTOML_SECURE_TPM_FOLDER",
        show_envvar=True,
        metavar="DIR",
        help="What is known of this TPM.",
    ),
    click.option(
        "--tcti",
        envvar="BENTOML_SECURE_TPM_TCTI",
        show_envvar=True,
        help="How to reach the TPM.  [default: device:/dev/tpmrm0]",
    ),
)
_CHAIN = click.option(
    "--ek-chain",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Certificates above the endorsement key's, PEM or DER, up to its maker's root;"
    " kept in DIR. By default those in DIR.",
)
_PCRS = click.option(
    "--pcrs",
    envvar="BENTOML_SECURE_TPM_PCRS",
    show_envvar=True,
    metavar="0,1,...",
    help="Registers to quote.  [default: all that boot fills]",
)
_AUTHORITY = _options(
    click.option(
        "--authority",
        type=FILE,
        required=True,
        metavar="KEY",
        help="The authority's key, as `tpm authority` makes it.",
    ),
    click.option(
        "--ek-root",
        "ek_roots",
        multiple=True,
        required=True,
        metavar="DIGEST",
        help="sha256:<hex> of the DER of a maker's root that is enrolled.",
    ),
    click.option(
        "--days",
        type=click.IntRange(1, 366),
        default=90,
        show_default=True,
        help="How long the enrolment holds.",
    ),
)


@click.group()
def tpm() -> None:
    """Enrol TPMs, and write the policy that one satisfies."""


@tpm.command()
@click.argument("key_file", type=FILE, metavar="KEY")
def authority(key_file: Path) -> None:
    """Make an authority's key and print its id, which policies list.

    KEY must be new. Who reads it can vouch for any machine.
    """
    from bentoml_secure.attestation.tees.tpm_authority import generate_authority_key
    from bentoml_secure.keys.key_file import new_secret

    key, pem = generate_authority_key()
    with new_secret(key_file, what="authority key") as pieces:
        pieces.append(pem)
    click.echo(key.public.key_id)


@tpm.command()
@_AUTHORITY
@_DEVICE
@_CHAIN
@_PCRS
def enrol(
    authority: Path,
    ek_roots: tuple[str, ...],
    days: int,
    folder: Path,
    tcti: str | None,
    ek_chain: tuple[Path, ...],
    pcrs: str | None,
) -> None:
    """Enrol the TPM of this host, with the authority's key on this host.

    Writes the enrolment to DIR, for a service that is started with it, and prints the
    [tpm] table of a policy that accepts this TPM as it was booted now.
    """
    from bentoml_secure.attestation.tees.tpm_credential import (
        challenge_enrolment,
        conclude_enrolment,
    )

    key, roots = _read_authority(authority), _parse_roots(ek_roots)
    known = _known_before(folder, ek_chain)
    attester = _open(tcti, known, pcrs)
    pending = challenge_enrolment(
        attester.request_enrolment(), ek_roots=roots, now=_now()
    )
    answer = attester.activate(pending.credential)
    envelope = conclude_enrolment(
        pending, answer, key, now=_now(), lifetime=timedelta(days=days)
    ).to_json()
    # Nothing is written that a quote was not accepted with.
    table = _satisfied(_open(tcti, replace(known, enrolment=envelope), pcrs))
    _write_enrolment(folder, envelope)
    click.echo(table, nl=False)


@tpm.command()
@_DEVICE
@_CHAIN
@click.option("--out", type=FILE, required=True, metavar="FILE", help="The request.")
def request(
    folder: Path, tcti: str | None, ek_chain: tuple[Path, ...], out: Path
) -> None:
    """Write what an authority on another host needs to challenge this TPM."""
    attester = _open(tcti, _known_before(folder, ek_chain), None)
    _write_json(out, attester.request_enrolment().to_json())


@tpm.command()
@_AUTHORITY
@click.option(
    "--request", type=FILE, required=True, metavar="FILE", help="Of the device."
)
@click.option(
    "--challenge", type=FILE, required=True, metavar="FILE", help="Written at once."
)
@click.option(
    "--answer",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Waited for: put the device's there. Must not be there yet.",
)
@click.option(
    "--out", type=FILE, required=True, metavar="FILE", help="The enrolment, in the end."
)
@click.option(
    "--timeout-seconds",
    type=click.FloatRange(0, 600, min_open=True),
    default=600.0,
    show_default=True,
    help="How long to wait.",
)
def authorise(
    authority: Path,
    ek_roots: tuple[str, ...],
    days: int,
    request: Path,
    challenge: Path,
    answer: Path,
    out: Path,
    timeout_seconds: float,
) -> None:
    """Challenge the TPM of another host, and vouch for it once it has answered.

    The secret stays in this process, which waits. What it writes in the end goes into
    the device's DIR as enrolment.json.
    """
    from bentoml_secure.attestation.tees.tpm_credential import (
        EnrolmentRequest,
        answer_from_json,
        challenge_enrolment,
        challenge_to_json,
        conclude_enrolment,
    )

    key, roots = _read_authority(authority), _parse_roots(ek_roots)
    if os.path.lexists(answer):
        raise ConfigurationError(
            f"{answer}: exists, and was no answer to a challenge still to be made.",
            remedy="Remove it, or name a new file.",
        )
    asked = EnrolmentRequest.from_json(_read_json(request, what="enrolment request"))
    pending = challenge_enrolment(asked, ek_roots=roots, now=_now())
    _write_json(challenge, challenge_to_json(pending.credential))
    click.echo(f"waiting for {answer}", err=True)
    secret = _awaited(answer, answer_from_json, seconds=timeout_seconds)
    envelope = conclude_enrolment(
        pending, secret, key, now=_now(), lifetime=timedelta(days=days)
    )
    _write_json(out, envelope.to_json())
    click.echo(f"endorsement key {pending.ek} enrolled by {key.public.key_id}")


@tpm.command()
@click.argument("challenge", type=FILE, metavar="CHALLENGE")
@_DEVICE
@click.option("--out", type=FILE, required=True, metavar="FILE", help="The answer.")
def answer(challenge: Path, folder: Path, tcti: str | None, out: Path) -> None:
    """Open an authority's CHALLENGE with this TPM, and write the answer."""
    from bentoml_secure.attestation.attesters.tpm import KnownTpm
    from bentoml_secure.attestation.tees.tpm_credential import (
        answer_to_json,
        challenge_from_json,
    )

    document = _read_json(challenge, what="enrolment challenge")
    credential = challenge_from_json(document)
    attester = _open(tcti, KnownTpm.before_enrolment(folder), None)
    _write_json(out, answer_to_json(attester.activate(credential)))


@tpm.command()
@_DEVICE
@_PCRS
def policy(folder: Path, tcti: str | None, pcrs: str | None) -> None:
    """Print the [tpm] table of a policy that this TPM, enrolled, satisfies now.

    It lists what was booted: take it from a machine that is known to be good.
    """
    from bentoml_secure.attestation.attesters.tpm import KnownTpm

    known = KnownTpm.from_folder(folder)
    if known.enrolment is None:
        raise ConfigurationError(
            f"{folder}: has no enrolment.", remedy="See `bentoml-secure tpm enrol`."
        )
    click.echo(_satisfied(_open(tcti, known, pcrs)), nl=False)


def _now() -> datetime:
    return datetime.now(UTC)


def _read_authority(path: Path) -> SigningKey:
    from bentoml_secure.attestation.tees.tpm_authority import (
        MAX_KEY_FILE_BYTES,
        parse_authority_key,
    )
    from bentoml_secure.keys.key_file import read_secret

    what = "authority key"
    return parse_authority_key(
        read_secret(path, what=what, max_bytes=MAX_KEY_FILE_BYTES)
    )


def _parse_roots(texts: Collection[str]) -> list[str]:
    from bentoml_secure.digest import parse_digest

    with own_files("--ek-root"):
        return [
            parse_digest(text, what="--ek-root", algorithm="sha256") for text in texts
        ]


def _known_before(folder: Path, ek_chain: Collection[Path]) -> KnownTpm:
    """Make the folder, put given certificates there, and read it."""
    from bentoml_secure.attestation.attesters.tpm import (
        CHAIN_FILE,
        MAX_CHAIN_FILE_BYTES,
        KnownTpm,
    )

    what = "certificates"
    given = [read(path, what=what, max_bytes=MAX_CHAIN_FILE_BYTES) for path in ek_chain]
    folder.mkdir(parents=True, exist_ok=True)
    if given:
        write_out(folder / CHAIN_FILE, _to_pem(given))
    return KnownTpm.before_enrolment(folder)


def _to_pem(given: Collection[bytes]) -> str:
    from ssl import DER_cert_to_PEM_cert

    from bentoml_secure.attestation.tees.tpm_endorsement import read_certificates

    certificates = list(dict.fromkeys(read_certificates(given)))
    if not certificates:
        raise ConfigurationError(
            "--ek-chain: no certificate of an RSA or ECC key in it, PEM or DER."
        )
    return "".join(map(DER_cert_to_PEM_cert, certificates))


def _open(tcti: str | None, known: KnownTpm, pcrs: str | None) -> TpmAttester:
    from bentoml_secure.attestation.attesters.tpm import TpmAttester, parse_pcr_list
    from bentoml_secure.attestation.attesters.tpm_tools import DEFAULT_TCTI, Tpm2Tools

    tools = Tpm2Tools(tcti or DEFAULT_TCTI)
    return TpmAttester(tools, pcrs=parse_pcr_list(pcrs), known=known)


def _satisfied(attester: TpmAttester) -> str:
    """Return the table that lists what an enrolled TPM quotes, tried on that quote."""
    from bentoml_secure.attestation.roles import REPORT_DATA_BYTES
    from bentoml_secure.attestation.tees.tpm import KIND, Tpm
    from bentoml_secure.receipts.toml import write_toml

    report_data, now = os.urandom(REPORT_DATA_BYTES), _now()
    evidence = attester.attest(report_data)
    verified = Tpm().verify(evidence, attester.endorsements, now=now)
    table = {
        "ek_roots": [verified.root],
        "enrolment": [verified.claims["enrolment"]],
        "pcr": {index: [value] for index, value in verified.claims["pcrs"].items()},
    }
    document = {"version": 1, "max_age_seconds": 300, "allow": [KIND], KIND: table}
    accepted = _appraise(verified, document, report_data, now)
    if accepted.simulated:
        click.echo(f"{SIMULATED}: a software TPM, or a root of tests.", err=True)
    return write_toml({KIND: table}).lstrip()


def _appraise(
    verified: Any, document: Mapping[str, Any], report_data: bytes, now: datetime
) -> AttestationResult:
    from bentoml_secure.attestation.appraisal import AppraisalPolicy, appraise

    return appraise(
        verified,
        AppraisalPolicy.from_table(document),
        report_data=report_data,
        now=now,
        nonce_issued_at=now,
    )


def _write_enrolment(folder: Path, envelope: Mapping[str, Any]) -> None:
    from bentoml_secure.attestation.attesters.tpm import ENROLMENT_FILE

    _write_json(folder / ENROLMENT_FILE, envelope)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    write_out(path, json.dumps(document, indent=1) + "\n")


def _read_json(path: Path, *, what: str) -> Any:
    from bentoml_secure.digest import parse_json

    data = read(path, what=what, max_bytes=MAX_MESSAGE_BYTES)
    return parse_json(data, what=what, max_bytes=MAX_MESSAGE_BYTES)


def _awaited(path: Path, parse: Callable[[object], bytes], *, seconds: float) -> bytes:
    """Return what a file says once it is there, and whole."""
    deadline = time.monotonic() + seconds
    while True:
        last = time.monotonic() >= deadline
        if path.exists():
            try:
                return parse(_read_json(path, what="enrolment answer"))
            except MalformedInputError:
                # Perhaps it is still being copied.
                if last:
                    raise
        elif last:
            raise UnavailableError(
                f"{path}: no answer within {seconds:g} s.",
                remedy="Start anew: each challenge is answered once.",
            )
        time.sleep(POLL_SECONDS)
