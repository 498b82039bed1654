"""What a proof takes of a machine, estimated before anything is begun.

The size of the proving key tells it. Over circuits from a 128-10 layer to LeNet and a
transformer block, ezkl 23.0.5 took at most 3.3 times that size at its peak, and 0.05 to
0.11 CPU seconds for each 10**6 bytes of it.

What this process may use is the least of: what the kernel calls available, and what
the limits of its control groups leave (version 2), file cache that can be dropped not
counted as used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bentoml_secure.errors import ConfigurationError

MEMORY_FACTOR = 3.3
BASE_BYTES = 384 << 20
"""An interpreter with the backend, and stacks of its threads, whatever the circuit."""

CPU_SECONDS_PER_MEGABYTE = (0.05, 0.11)

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one proof takes.

    Attributes:
        memory_bytes: At most, at the peak.
        least_cpu_seconds: At least.
        most_cpu_seconds: At most.
    """

    memory_bytes: int
    least_cpu_seconds: float
    most_cpu_seconds: float

    def __str__(self) -> str:
        return (
            f"{_gib(self.memory_bytes)} of memory and {self.least_cpu_seconds:.3g} to "
            f"{self.most_cpu_seconds:.3g} CPU seconds a proof"
        )


def estimate(proving_key_bytes: int) -> Estimate:
    """Return what a proof under a proving key takes.

    Args:
        proving_key_bytes: How large the proving key is, or will be.
    """
    least, most = CPU_SECONDS_PER_MEGABYTE
    megabytes = proving_key_bytes / _MEGABYTE
    return Estimate(
        memory_bytes=BASE_BYTES + int(MEMORY_FACTOR * proving_key_bytes),
        least_cpu_seconds=least * megabytes,
        most_cpu_seconds=most * megabytes,
    )


def require_fits(
    proving_key_bytes: int, *, what: str, available_bytes: int | None = None
) -> Estimate:
    """Return what a proof takes, if there is memory for it.

    Args:
        proving_key_bytes: How large the proving key is, or will be.
        what: Which proof, for the error.
        available_bytes: What there is; asked of the machine where left out.

    Raises:
        ConfigurationError: There is less, with the estimate.
    """
    needed = estimate(proving_key_bytes)
    there = available_memory() if available_bytes is None else available_bytes
    if needed.memory_bytes > there:
        raise ConfigurationError(
            f"{what}: takes about {needed}, with a proving key of "
            f"{_gib(proving_key_bytes)}; there are {_gib(there)} of memory.",
            remedy="Split the model into more segments, accept a larger error, or use "
            "a larger machine.",
        )
    return needed


def available_memory(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """Return how many bytes this process may still take without swapping.

    Args:
        proc: Where the kernel tells it.
        cgroup: Where control groups of version 2 are.

    Raises:
        ConfigurationError: The kernel does not say.
    """
    return min([_machine(proc), *_groups(proc, cgroup)])


def _machine(proc: Path) -> int:
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) << 10
    raise ConfigurationError(f"memory: {proc / 'meminfo'} says nothing of MemAvailable")


def _groups(proc: Path, cgroup: Path) -> Iterator[int]:
    """Yield what each group leaves that this process is in, up to the root."""
    entries = (proc / "self/cgroup").read_text().splitlines()
    path = next((line[3:] for line in entries if line.startswith("0::")), None)
    if path is None:
        return
    group = cgroup / path.lstrip("/")
    while group.is_relative_to(cgroup):
        if (left := _left(group)) is not None:
            yield left
        group = group.parent


def _left(group: Path) -> int | None:
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text())
        stat = dict(
            line.split() for line in (group / "memory.stat").read_text().splitlines()
        )
    except FileNotFoundError:
        # The root has no limit; a group's name may be of another namespace.
        return None
    cache = int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))
    return max(int(limit) - used + cache, 0)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"
