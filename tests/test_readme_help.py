"""Help shown in the documentation is the help that the program prints.

A fenced block whose first line is ``$ bentoml-secure ... --help`` holds exactly what
that command prints on a terminal of 80 columns.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from bentoml_secure.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_BLOCK = re.compile(
    r"^```[a-z]*\n\$ (bentoml-secure [^\n]*--help)\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks_in(text: str) -> list[tuple[str, str]]:
    """Return (command, output shown) of each block."""
    return _BLOCK.findall(text)


def help_of(command: str) -> str:
    """Return what a command prints, without the spaces at line ends."""
    program, *arguments = shlex.split(command)
    result = CliRunner().invoke(main, arguments, prog_name=program, terminal_width=80)
    assert result.exit_code == 0
    return "\n".join(line.rstrip() for line in result.stdout.splitlines())


SHOWN = [
    pytest.param(command, shown, id=f"{page.relative_to(ROOT)}: {command}")
    for page in PAGES
    for command, shown in blocks_in(page.read_text())
]


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_shown_help_is_printed_help(command: str, shown: str) -> None:
    assert shown.strip("\n") == help_of(command)


def test_blocks_are_found() -> None:
    text = (
        "Text\n\n```console\n$ bentoml-secure split --help\nUsage: a\n\n  b\n```\n"
        "```\n$ bentoml-secure verify receipt --help\nUsage: c\n```\n"
        "```\n$ bentoml-secure split m.onnx\nd\n```\n"
    )
    assert blocks_in(text) == [
        ("bentoml-secure split --help", "Usage: a\n\n  b\n"),
        ("bentoml-secure verify receipt --help", "Usage: c\n"),
    ]
    assert help_of("bentoml-secure --help").startswith("Usage: bentoml-secure [")
