"""A child whose tasks misbehave, each in its own way; see ``tests/unit/proofs``."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bentoml_secure.errors import ProofError
from bentoml_secure.proofs.backends.child import Tell, serve

Arguments = Mapping[str, Any]
Paths = Mapping[str, str]


class Panic(BaseException):
    """As native code panics: past every ``except Exception``."""


def tell_process(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    """Tell what the process was set to before its task began."""
    tell(
        {
            "policy": os.sched_getscheduler(0),
            "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
            "home": os.environ["HOME"],
            "secrets": [name for name in os.environ if "SECRET" in name],
            "session": os.getsid(0) == os.getpid(),
            "process": os.getpid(),
        }
    )
    if arguments.get("wait"):
        time.sleep(arguments["wait"])


def copy(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    """Write what is read."""
    Path(paths["out"]).write_bytes(Path(paths["in"]).read_bytes())


def grow(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    """Take more memory than any limit has."""
    held = []
    while True:
        held.append(bytearray(16 << 20))


def fail(arguments: Arguments, paths: Paths, tell: Tell) -> None:
    """Raise what is asked for."""
    sys.stderr.write("the witness is 42\n")
    sys.stderr.flush()
    match arguments["how"]:
        case "panic":
            raise Panic("native code")
        case "proof":
            raise ProofError("no such proof")
        case "abort":
            os.abort()
        case "silence":
            os._exit(0)
        case "noise":
            os.write(int(sys.argv[2]), b"no JSON\n")


TASKS = {"tell": tell_process, "copy": copy, "grow": grow, "fail": fail}

if __name__ == "__main__":
    serve(TASKS)
