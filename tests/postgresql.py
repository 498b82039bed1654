"""A real PostgreSQL server in a folder, on a socket of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")
USER = "postgres"


def programs() -> Path | None:
    """Return the folder of the server's programs, the newest if there are several."""
    found = [path.parent for path in DEBIAN.glob("*/bin/initdb")]
    if not found and (named := shutil.which("initdb")):
        found = [Path(named).parent]
    return max(found, default=None)


def why_not() -> str:
    """Return why no server can run here, or nothing."""
    if programs() is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if os.geteuid() == 0 and shutil.which("runuser") is None:
        return "root may not run PostgreSQL, and there is no runuser"
    return ""


@contextmanager
def serving() -> Iterator[str]:
    """Run a server; yield the URL of its one empty database."""
    bins = programs()
    assert bins is not None
    # Not pytest's: its folders are this user's only, and too deep for a socket.
    with tempfile.TemporaryDirectory(prefix="bsec-pg-") as name:
        folder = Path(name)
        data = folder / "data"
        prefix: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
            prefix = ["runuser", "-u", USER, "--"]

        def run(program: str, *arguments: str) -> None:
            command = [*prefix, str(bins / program), *arguments]
            subprocess.run(command, check=True, capture_output=True, cwd=folder)

        run("initdb", "-D", str(data), "-U", USER, "--auth=trust", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder}"
        log = str(folder / "log")
        run("pg_ctl", "-D", str(data), "-w", "-l", log, "-o", options, "start")
        try:
            yield f"postgresql+psycopg://{USER}@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
