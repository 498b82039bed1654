"""The command line as programs start it: light, and as a command of ``bentoml``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run, Write

HEAVY = ("bentoml", "httpx", "numpy", "onnx", "onnxruntime", "torch", "cryptography")


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def test_importing_it_imports_no_room() -> None:
    code = (
        "import sys, bentoml_secure.cli;"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = shell(sys.executable, "-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "secure"),
        (["secure", "--help"], "Split models, set up trust"),
        (["secure", "verify", "receipt", "--help"], "--trust FILE"),
    ],
)
def test_bentoml_has_it_as_a_command(arguments: list[str], expected: str) -> None:
    program = Path(sys.executable).with_name("bentoml")
    done = shell(str(program), *arguments)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_errors_under_bentoml_keep_their_exit_code(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("bentoml")
    done = shell(str(program), "secure", "inspect", "receipt", str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: receipt ")
    assert "Traceback" not in done.stderr


def test_version_is_the_package_s(run: Run) -> None:
    assert run("--version").stdout.startswith("bentoml-secure, version ")


def test_the_environment_cannot_turn_commands_into_version(
    run: Run, write: Write, tmp_path: Path
) -> None:
    environment = {"BENTOML_SECURE_VERSION": "1"}
    result = run("inspect", "plan", tmp_path / "none", env=environment)
    assert result.exit_code == 2
