"""Devices that make evidence, one file each, and the table of them.

BENTOML_SECURE_ATTESTER   simulated, tpm, tdx, sev-snp, cca or nitro, or auto: the
first device that answers, never simulated; default: simulated where
BENTOML_SECURE_DEV_ROOT is set, else none
BENTOML_SECURE_GPU        nvidia: evidence of the GPUs beside it; default: none

Each file says which further variables it reads. Attesting blocks on the device.
Third parties register a class that fills ``Openable`` under the entry-point group
``bentoml_secure.attesters``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from bentoml_secure.attestation.roles import Attester
from bentoml_secure.errors import ConfigurationError, SecureError, UnavailableError
from bentoml_secure.registry import load

GROUP = "bentoml_secure.attesters"

ATTESTER = "BENTOML_SECURE_ATTESTER"
DEV_ROOT = "BENTOML_SECURE_DEV_ROOT"
GPU = "BENTOML_SECURE_GPU"
SERVICE = "BENTOML_SECURE_SERVICE"
"""Set by the process itself: the name of its service."""

AUTO = "auto"
SIMULATED = "simulated"

_ROOM = "bentoml_secure.attestation.attesters"
ATTESTERS: Mapping[str, str] = {
    "simulated": f"{_ROOM}.simulated:DevRootAttester",
    "tdx": f"{_ROOM}.configfs_tsm:ConfigfsTsmAttester",
    "sev-snp": f"{_ROOM}.configfs_tsm:ConfigfsTsmAttester",
    "cca": f"{_ROOM}.configfs_tsm:ConfigfsTsmAttester",
    "nitro": f"{_ROOM}.nitro:NitroAttester",
    "tpm": f"{_ROOM}.tpm:TpmAttester",
}
GPU_ATTESTERS: Mapping[str, str] = {
    "nvidia": f"{_ROOM}.nvidia:NvidiaGpuAttester",
}

_DEVICES = ("sev-snp", "nitro", "tpm")
"""What ``auto`` tries, in this order: the first stands for all of configfs-tsm."""


class Openable(Protocol):
    """What the table holds: a class that opens its device."""

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, clock: Callable[[], datetime]
    ) -> Attester:
        """Open the device that the environment names.

        Args:
            environ: Variables of the process.
            clock: The time, with a time zone.

        Raises:
            ConfigurationError: A variable of another form.
            UnavailableError: The device does not answer.
        """
        ...


def attester_kind(environ: Mapping[str, str]) -> str | None:
    """Return the kind that the environment asks for, or None for none."""
    return environ.get(ATTESTER) or (SIMULATED if environ.get(DEV_ROOT) else None)


def open_attester(
    kind: str, environ: Mapping[str, str], *, clock: Callable[[], datetime]
) -> Attester:
    """Open the attester of a kind.

    Args:
        kind: Of ``ATTESTERS`` or of a third party, or ``auto``.
        environ: Variables of the process; each attester's file names its own.
        clock: The time, with a time zone.

    Raises:
        UnknownKindError: No such attester.
        ConfigurationError: A variable of another form, or a machine that makes
            evidence of another kind.
        UnavailableError: The device does not answer.
    """
    if kind == AUTO:
        return _first_to_answer(environ, clock)
    attester = _open(kind, ATTESTERS, GROUP, environ, clock)
    if attester.kind != kind:
        raise ConfigurationError(
            f"{ATTESTER}: got {kind}, but this machine makes {attester.kind} evidence.",
            remedy=f"Set it to {attester.kind}, if that is what is meant.",
        )
    return attester


def open_gpu_attester(
    environ: Mapping[str, str], *, clock: Callable[[], datetime]
) -> Attester | None:
    """Open the attester of the GPUs, if the environment asks for one.

    It attests 32 bytes, the GPU's nonce; see ``key_document``.

    Raises:
        UnknownKindError: No such attester.
        MissingDependencyError: A package of the vendor's is not installed.
        UnavailableError: The driver does not answer.
    """
    name = environ.get(GPU)
    if not name:
        return None
    return _open(name, GPU_ATTESTERS, f"{GROUP}.gpu", environ, clock)


def _open(
    name: str,
    table: Mapping[str, str],
    group: str,
    environ: Mapping[str, str],
    clock: Callable[[], datetime],
) -> Attester:
    opened: type[Openable] = load(name, table, group)
    return opened.from_environment(environ, clock=clock)


def _first_to_answer(
    environ: Mapping[str, str], clock: Callable[[], datetime]
) -> Attester:
    refusals: list[SecureError] = []
    for kind in _DEVICES:
        try:
            return _open(kind, ATTESTERS, GROUP, environ, clock)
        except (UnavailableError, ConfigurationError) as error:
            refusals.append(error)
    raise UnavailableError(
        f"{ATTESTER}=auto: no device answers: {' '.join(map(str, refusals))}",
        remedy=f"Run on a machine with one, or name it in {ATTESTER}.",
    )
