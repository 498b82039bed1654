"""What a process does before it holds keys or plaintext weights: no core dumps.

A core dump would write all of its memory to disk, or to whatever program the host
names in ``core_pattern``. Linux only. Swap, hibernation and a debugger of the
superuser are the host's to forbid; in a TEE they lie inside its boundary.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

from bentoml_secure.errors import ConfigurationError

_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4


def forbid_core_dumps() -> None:
    """Make this process one that is never dumped, nor read by its own user's others.

    Threads and forked children are covered; a program that is started anew is not.

    Raises:
        ConfigurationError: The system does not do it.

    Source: prctl(2), core(5).
    """
    if sys.platform != "linux":
        raise ConfigurationError(
            f"core dumps: got {sys.platform}, they can be forbidden on Linux only."
        )
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"core dumps: no limit of 0: {error}.") from error
    # The limit does not hold where core_pattern is a pipe; this does.
    _prctl(_PR_SET_DUMPABLE, 0)
    if got := _prctl(_PR_GET_DUMPABLE, 0):
        raise ConfigurationError(f"core dumps: the process is dumpable still ({got}).")


def _prctl(option: int, value: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)
    if result < 0:
        reason = os.strerror(ctypes.get_errno())
        raise ConfigurationError(f"core dumps: prctl {option}: {reason}.")
    return result
