"""``measure``: what evidence should say, as the policy that demands it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from bentoml_secure.cli.outcome import plain
from bentoml_secure.cli.parameters import FILE, read
from bentoml_secure.errors import ConfigurationError

if TYPE_CHECKING:
    from bentoml_secure.attestation.event_log import Event

F = TypeVar("F", bound=Callable[..., Any])

MAX_AGE_SECONDS = 300
_CHUNK_BYTES = 1 << 20
_SHOWN_CHARACTERS = 60
_NOT_MEASURED = (
    "Plan, package and configuration are not among these values: they stand in the key"
    " document that evidence covers, and a trust file lists them."
)


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
@_more_than_measured("mr-td", "HEX", "Of tdx, where no log tells it: MRTD.")
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
    _write(kind, table, file, comments=_event_lines(log) if events else ())


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

    with _opened(file) as stream:
        image = measure_eif(stream)
    pcrs = {str(index): [value.hex()] for index, value in image.pcrs.items()}
    signed = f"signed by {image.signer}" if image.signer else "not signed"
    _write("nitro", {"pcr": pcrs}, file, comments=[signed])


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
    _write("sgx", table, file)
    if enclave.debug:
        click.echo(
            "warning: this enclave runs open to a debugger only; evidence of it is"
            " refused by every policy.",
            err=True,
        )


def _sev_features(text: str) -> int:
    try:
        features = int(text, 0)
    except ValueError as error:
        raise click.BadParameter(f"got {text!r:.60}, want a number") from error
    if not features & 1 or not 0 < features < 1 << 64:
        raise click.BadParameter(f"got {text:.60}, want 64 bits, bit 0 set")
    return features


@measure.command("sev-snp")
@click.option("--ovmf", type=FILE, required=True, metavar="FILE", help="The firmware.")
@click.option(
    "--vcpus", type=click.IntRange(1, 4096), required=True, help="Virtual processors."
)
@click.option(
    "--vcpu-type",
    required=True,
    metavar="NAME",
    help="As given to QEMU's -cpu, such as EPYC-Milan.",
)
@click.option(
    "--guest-features",
    type=_sev_features,
    default="0x1",
    show_default=True,
    help="SEV_FEATURES; bit 0 is SNP, others are the host kernel's.",
)
@click.option("--kernel", type=FILE, metavar="FILE", help="Booted directly by QEMU.")
@click.option("--initrd", type=FILE, metavar="FILE", help="With --kernel.")
@click.option("--append", metavar="TEXT", help="Its command line.")
def sev_snp(
    ovmf: Path,
    vcpus: int,
    vcpu_type: str,
    guest_features: int,
    kernel: Path | None,
    initrd: Path | None,
    append: str | None,
) -> None:
    """Compute the launch digest of a SEV-SNP guest under QEMU.

    With --kernel, as QEMU's kernel-hashes=on puts it into the digest.
    """
    from bentoml_secure.attestation.measurement.ovmf import (
        MAX_FIRMWARE_BYTES,
        parse_firmware,
    )
    from bentoml_secure.attestation.measurement.snp_launch import (
        DirectBoot,
        launch_digest,
    )
    from bentoml_secure.attestation.measurement.vmsa import CPU_SIGNATURES

    if kernel is None and (initrd is not None or append is not None):
        raise click.UsageError("--initrd and --append go with --kernel")
    if vcpu_type not in CPU_SIGNATURES:
        raise click.UsageError(
            f"--vcpu-type {vcpu_type!r:.60}: want one of {', '.join(CPU_SIGNATURES)}"
        )
    boot = None
    if kernel is not None:
        boot = DirectBoot(
            kernel=_sha256(kernel),
            initrd=hashlib.sha256().digest() if initrd is None else _sha256(initrd),
            command_line=append or "",
        )
    digest = launch_digest(
        parse_firmware(read(ovmf, what="firmware", max_bytes=MAX_FIRMWARE_BYTES)),
        processors=vcpus,
        cpu_signature=CPU_SIGNATURES[vcpu_type],
        features=guest_features,
        boot=boot,
    )
    shape = f"{vcpus} processors {vcpu_type}, features {guest_features:#x}"
    _write("sev-snp", {"measurement": [digest.hex()]}, ovmf, comments=[shape])


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
    _write("simulated", table, None, comments=[f"package {digest}"])


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with _opened(path) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.digest()


def _write(
    kind: str,
    table: Mapping[str, Any],
    source: Path | None,
    *,
    comments: Sequence[str] | Iterator[str] = (),
) -> None:
    """Print a policy with one kind's table, after having read it as one."""
    from bentoml_secure.attestation.appraisal import parse_policy
    from bentoml_secure.receipts.toml import write_toml

    text = write_toml(
        {
            "version": 1,
            "max_age_seconds": MAX_AGE_SECONDS,
            "allow": [kind],
            kind: dict(table),
        }
    )
    parse_policy(text.encode())
    head = [] if source is None else [f"measured: {source}"]
    for line in (*head, *comments):
        click.echo(f"# {plain(line)}".rstrip())
    click.echo(text, nl=False)
    click.echo(_NOT_MEASURED, err=True)
