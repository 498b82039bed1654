"""``measure``: what evidence should say, as the policy that demands it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bentoml_secure.cli.guests import sev_snp, tdx
from bentoml_secure.cli.parameters import FILE, read
from bentoml_secure.cli.policies import opened, write_policy
from bentoml_secure.errors import ConfigurationError

if TYPE_CHECKING:
    from bentoml_secure.attestation.event_log import Event

F = TypeVar("F", bound=Callable[..., Any])

_SHOWN_CHARACTERS = 60


@click.group()
def measure() -> None:
    """Write the appraisal policy that accepts what is about to run, and nothing else.

    Measurements are computed from images and logs. They are as good as the way by
    which these files came: a log or image from the machine that is to be checked says
    only what that machine wants.
    """


def _more_than_measured(key: str, spelled: str, help_text: str) -> Callable[[F], F]:
    """Add the option for a value that what is measured does not tell, or why not."""

    def decorate(command: F) -> F:
        command = click.option(
            f"--unchecked-{key}",
            metavar="WHY",
            allow_from_autoenv=False,
            help="Leave that check out, for a reason that every result shows.",
        )(command)
        return click.option(f"--{key}", multiple=True, metavar=spelled, help=help_text)(
            command
        )

    return decorate


@measure.command("event-log")
@click.argument("file", type=FILE, metavar="FILE")
@click.option(
    "--kind",
    type=click.Choice(["tdx", "tpm"]),
    required=True,
    help="Whose log it is.",
)
@click.option(
    "--register",
    "registers",
    type=click.IntRange(0, 23),
    multiple=True,
    help="PCR or RTMR to demand; repeatable.  [default: each that the log extends]",
)
@_more_than_measured("mr-td", "HEX", "Of tdx: MRTD, as `measure tdx` computes it.")
@_more_than_measured("enrolment", "SHA256:HEX", "Of tpm: key id of an authority.")
@click.option(
    "--ek-root",
    "ek_roots",
    multiple=True,
    metavar="SHA256:HEX",
    help="Of tpm: digest of a root of endorsement keys.",
)
@click.option("--events", is_flag=True, help="List every event, as comments.")
def event_log(
    file: Path,
    kind: str,
    registers: tuple[int, ...],
    mr_td: tuple[str, ...],
    unchecked_mr_td: str | None,
    enrolment: tuple[str, ...],
    unchecked_enrolment: str | None,
    ek_roots: tuple[str, ...],
    events: bool,
) -> None:
    """Replay a boot's event log into the registers that it gives.

    Linux shows a TD's as /sys/firmware/acpi/tables/data/CCEL and a TPM's as
    /sys/kernel/security/tpm0/binary_bios_measurements.
    """
    table: dict[str, Any]
    if kind == "tdx":
        table = {
            "status": ["UpToDate"],
            "mr_td": _given("mr-td", mr_td, unchecked_mr_td),
        }
    else:
        if not ek_roots:
            raise click.UsageError("--kind tpm needs --ek-root")
        table = {
            "ek_roots": list(ek_roots),
            "enrolment": _given("enrolment", enrolment, unchecked_enrolment),
        }
    log, replayed = _replayed(file, kind)
    if missing := sorted(set(registers) - replayed.keys()):
        raise ConfigurationError(
            f"{file}: no event extends register {missing[0]}; it has"
            f" {', '.join(map(str, replayed)) or 'none'}."
        )
    wanted = sorted(registers or replayed)
    values = {str(index): [replayed[index].hex()] for index in wanted}
    table["pcr" if kind == "tpm" else "rtmr"] = values
    write_policy(kind, table, file, comments=_event_lines(log) if events else ())


def _replayed(path: Path, kind: str) -> tuple[Sequence[Event], Mapping[int, bytes]]:
    from bentoml_secure.attestation.event_log import (
        MAX_LOG_BYTES,
        LogKind,
        parse_event_log,
        replay,
    )

    data = read(path, what="event log", max_bytes=MAX_LOG_BYTES)
    log = parse_event_log(data, LogKind(kind))
    return log, replay(log, LogKind(kind))


def _given(
    key: str, values: Sequence[str], unchecked: str | None
) -> list[str] | dict[str, str]:
    if bool(values) == (unchecked is not None):
        raise click.UsageError(f"want one of --{key} and --unchecked-{key} WHY")
    return list(values) if unchecked is None else {"unchecked": unchecked}


def _event_lines(log: Sequence[Event]) -> Iterator[str]:
    for event in log:
        where = str(event.register) if event.extends else "-"
        text = event.data.rstrip(b"\0").decode("utf-8", "replace")
        if not text.isprintable():
            text = f"{len(event.data)} bytes"
        known = "" if event.data_is_digested else "not what is digested: "
        shown = f"{known}{text:.{_SHOWN_CHARACTERS}}"
        yield f"{where:>2}  {event.digest.hex():.16}  {event.type_name}  {shown}"


@measure.command()
@click.argument("file", type=FILE, metavar="FILE.eif")
def nitro(file: Path) -> None:
    """Measure an enclave image file of AWS Nitro: PCR 0, 1, 2, and 8 if it is signed.

    PCR 8 is the signer's certificate; PCR 0 to 2 are this one image.
    """
    from bentoml_secure.attestation.measurement.eif import measure_eif

    with opened(file) as stream:
        image = measure_eif(stream)
    pcrs = {str(index): [value.hex()] for index, value in image.pcrs.items()}
    signed = f"signed by {image.signer}" if image.signer else "not signed"
    write_policy("nitro", {"pcr": pcrs}, file, comments=[signed])


@measure.command("sgx")
@click.argument("file", type=FILE, metavar="FILE.sig")
@click.option(
    "--by-signer",
    is_flag=True,
    help="Accept whatever the signer signs as this product, from this version on.",
)
def sgx_enclave(file: Path, by_signer: bool) -> None:
    """Read the SIGSTRUCT of a signed enclave: 1808 bytes, its signature checked."""
    from bentoml_secure.attestation.measurement.sigstruct import (
        SIGSTRUCT_BYTES,
        parse_sigstruct,
    )

    enclave = parse_sigstruct(read(file, what="SIGSTRUCT", max_bytes=SIGSTRUCT_BYTES))
    table: dict[str, Any] = {"status": ["UpToDate"]}
    if by_signer:
        table |= {
            "mr_signer": [enclave.mr_signer.hex()],
            "isv_prod_id": enclave.isv_prod_id,
            "min_isv_svn": enclave.isv_svn,
        }
    else:
        table["mr_enclave"] = [enclave.mr_enclave.hex()]
    write_policy("sgx", table, file)
    if enclave.debug:
        click.echo(
            "warning: this enclave runs open to a debugger only; evidence of it is"
            " refused by every policy.",
            err=True,
        )


@measure.command()
@click.option(
    "--root",
    "roots",
    multiple=True,
    required=True,
    metavar="SHA256:HEX",
    help="Digest of a development root, as `dev-root` prints it.",
)
def runtime(roots: tuple[str, ...]) -> None:
    """Accept SIMULATED evidence of this release of the package under some roots."""
    from bentoml_secure.attestation.key_document import package_digest

    digest = package_digest()
    table = {"roots": list(roots), "measurement": [digest.partition(":")[2]]}
    write_policy("simulated", table, None, comments=[f"package {digest}"])


measure.add_command(sev_snp)
measure.add_command(tdx)
