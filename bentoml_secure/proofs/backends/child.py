"""What every one-shot child does before and around its task; see ``one_shot``."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    ProofError,
    SecureError,
    UnavailableError,
)

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_AUTOGROUP = Path("/proc/self/autogroup")
_AUTOGROUP_TRIES = 50
_AUTOGROUP_PAUSE_SECONDS = 0.1
_NAMES: tuple[tuple[type[SecureError], str], ...] = (
    (MalformedInputError, "malformed"),
    (ConfigurationError, "configuration"),
    (ProofError, "proof"),
    (UnavailableError, "unavailable"),
)
_MAX_MESSAGE = 2000

Tell = Callable[[Mapping[str, Any]], None]
Tasks = Mapping[str, Callable[[Mapping[str, Any], Mapping[str, str], Tell], None]]
"""By name: called with arguments, paths, and what tells an event."""


def serve(tasks: Tasks) -> None:
    """Do the one task that this process was started for, and end.

    Args:
        tasks: What it knows to do.
    """
    asked, told = int(sys.argv[1]), int(sys.argv[2])
    document = json.loads(Path(f"/proc/self/fd/{asked}").read_bytes())
    _bind(document)
    tell = _teller(told)
    try:
        tasks[document["task"]](document["arguments"], document["paths"], tell)
    # Panics of native code are no Exceptions.
    except BaseException as error:  # noqa: BLE001
        tell(_described(error))
        sys.exit(1)
    tell({"done": True})


def _bind(document: Mapping[str, Any]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != document["parent"]:
        sys.exit(1)
    Path("/proc/self/oom_score_adj").write_text("1000")
    if document["background"]:
        _yield_to_others()
    # What it holds must not be dumped or traced. After the line above: from here on
    # its files in /proc are root's.
    libc.prctl(_PR_SET_DUMPABLE, 0)
    memory = document["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _yield_to_others() -> None:
    """Run only where nothing else does.

    A core that runs nothing else counts as idle: whatever serves requests is hardly
    kept waiting. On a host without idle time proofs get next to nothing.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Kernels that group by session weigh this one, idle or not, like that of the
    # services: so it says that it is nice, too. Elsewhere there is no such file.
    for _ in range(_AUTOGROUP_TRIES):
        try:
            _AUTOGROUP.write_text("19")
        except BlockingIOError:
            # Ten times a second is all that the kernel lets processes say it.
            time.sleep(_AUTOGROUP_PAUSE_SECONDS)
        except OSError:
            return
        else:
            return


def _teller(told: int) -> Tell:
    def tell(event: Mapping[str, Any]) -> None:
        """Write one event, whole."""
        line = memoryview(json.dumps(event).encode() + b"\n")
        while line:
            line = line[os.write(told, line) :]

    return tell


def _described(error: BaseException) -> dict[str, str]:
    # What is there and cannot be loaded lacks memory, not installing.
    if isinstance(error, ModuleNotFoundError):
        return {"error": "missing", "message": f"{error}"}
    for kind, name in _NAMES:
        if isinstance(error, kind):
            return {"error": name, "message": str(error)[:_MAX_MESSAGE]}
    message = f"{type(error).__name__}: {error}"[:_MAX_MESSAGE]
    return {"error": "unavailable", "message": message}
