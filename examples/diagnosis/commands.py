"""Progress on the terminal, and our own commands, shown as a person would type them."""

from __future__ import annotations

import json
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from bentoml_secure.cli import main as command_line


def say(text: str) -> None:
    """Print a line of progress at once."""
    print(text, flush=True)


def command(*words: str | Path) -> None:
    """Run one of our commands, shown."""
    arguments = list(map(str, words))
    say(f"$ bentoml-secure {shlex.join(arguments)}")
    command_line.main(arguments, standalone_mode=False)


def printed(*words: str | Path) -> tuple[int, str]:
    """Run one of our commands; return its exit code and what it printed."""
    output = StringIO()
    with redirect_stdout(output):
        code = command_line.main(list(map(str, words)), standalone_mode=False)
    return int(code or 0), output.getvalue()


def verdict_of(*words: str | Path) -> dict[str, Any]:
    """Run one of our commands that judges; return its verdict.

    Raises:
        RuntimeError: It was not accepted.
    """
    code, output = printed(*words, "--json")
    if code:
        raise RuntimeError(f"{' '.join(map(str, words))}: {output}")
    verdict: dict[str, Any] = json.loads(output)
    return verdict
