"""Names of the processes that hold leases, and which of them are known to be dead.

    boot id . pid namespace / pid / start time

A name is judged only by a process of the same machine, boot and pid namespace: no
other one sees whether it lives.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

_START_TIME = 19
"""Of the fields of /proc/pid/stat after the command's name; proc(5)."""


def own_name() -> str:
    """Return this process's name."""
    return f"{_place()}/{os.getpid()}/{_started(os.getpid())}"


def is_known_dead(owner: str) -> bool:
    """Tell whether a process has ended; False where that cannot be seen from here.

    Args:
        owner: A name, from the job store.
    """
    place, _, process = owner.rpartition("/")[0].rpartition("/")
    if place != _place() or not process.isdecimal():
        return False
    return _started(int(process)) != owner.rpartition("/")[2]


@cache
def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"


def _started(process: int) -> str:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
    fields = stat.rpartition(")")[2].split()
    # A dead process whose parent has not asked after it is dead.
    return "ended" if fields[0] in "ZX" else fields[_START_TIME]
