"""``measure sev-snp`` and ``measure tdx``: guests, by the firmware they begin with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bentoml_secure.cli.parameters import FILE, read
from bentoml_secure.cli.policies import opened, write_policy
from bentoml_secure.errors import ConfigurationError

if TYPE_CHECKING:
    from bentoml_secure.attestation.measurement.tdvf import Tdvf

_CHUNK_BYTES = 1 << 20


def _sev_features(text: str) -> int:
    try:
        features = int(text, 0)
    except ValueError as error:
        raise click.BadParameter(f"got {text!r:.60}, want a number") from error
    if not features & 1 or not 0 < features < 1 << 64:
        raise click.BadParameter(f"got {text:.60}, want 64 bits, bit 0 set")
    return features


@click.command("sev-snp")
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
    from bentoml_secure.attestation.measurement.ovmf import parse_firmware
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
        parse_firmware(_image(ovmf)),
        processors=vcpus,
        cpu_signature=CPU_SIGNATURES[vcpu_type],
        features=guest_features,
        boot=boot,
    )
    shape = f"{vcpus} processors {vcpu_type}, features {guest_features:#x}"
    write_policy("sev-snp", {"measurement": [digest.hex()]}, ovmf, comments=[shape])


@click.command()
@click.option(
    "--firmware",
    type=FILE,
    required=True,
    metavar="FILE",
    help="The whole image, such as OVMF.fd: code and variables.",
)
@click.option(
    "--order",
    "orders",
    type=click.Choice(["page", "section"]),
    multiple=True,
    default=["page"],
    show_default=True,
    help="How the host builds a TD; repeatable. page: Linux since 6.16. section: the"
    " patched kernel of Canonical's TDX releases for Ubuntu 24.04.",
)
def tdx(firmware: Path, orders: Sequence[str]) -> None:
    """Compute the MRTD of a trust domain under QEMU and KVM.

    It is the firmware alone. Kernel, initrd and command line are in rtmr, as `measure
    event-log --kind tdx --mr-td HEX` writes them.
    """
    from bentoml_secure.attestation.measurement.mrtd import PageOrder, mrtd
    from bentoml_secure.attestation.measurement.tdvf import parse_tdvf

    image = parse_tdvf(_image(firmware))
    # Once each, as they were named: the comments tell which value is which.
    values = {name: mrtd(image, order=PageOrder(name)).hex() for name in orders}
    comments = [*_section_lines(image), f"mr_td by order: {', '.join(values)}"]
    table = {"status": ["UpToDate"], "mr_td": list(values.values())}
    write_policy("tdx", table, firmware, comments=comments)
    click.echo(
        "warning: it accepts whatever this firmware boots. `measure event-log --kind"
        " tdx` adds what that is.",
        err=True,
    )


def _section_lines(image: Tdvf) -> Iterator[str]:
    for section in image.sections:
        where = f"{section.address:#010x} {section.size:#9x} {section.type.name:8}"
        yield f"{where}  {'measured' if section.measured else 'only where it is'}"


def _image(path: Path) -> bytes:
    from bentoml_secure.attestation.measurement.firmware_table import MAX_FIRMWARE_BYTES

    return read(path, what="firmware", max_bytes=MAX_FIRMWARE_BYTES)


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with opened(path) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.digest()
