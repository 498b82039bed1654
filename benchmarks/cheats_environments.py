"""Environments beside this one, which differ from it in ONNX Runtime only."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from bentoml_secure.errors import ConfigurationError


def make_environment(folder: Path, onnxruntime: str) -> Path:
    """Make an environment with another ONNX Runtime; return its Python.

    All else is found in this environment, after what is installed there.

    Args:
        folder: Where; new, or made by this before.
        onnxruntime: Exact version, from pip's index.

    Raises:
        ConfigurationError: pip does not find it.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=False, symlinks=True)
    site = Path(
        _asked(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    )
    own = sysconfig.get_path("purelib")
    # Not its path alone: then what is installed in there editably would be missing.
    (site / "outer.pth").write_text(f"import site; site.addsitedir({own!r})\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    command += ["--quiet", "--no-deps", "--disable-pip-version-check"]
    command += [f"onnxruntime=={onnxruntime}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigurationError(
            f"onnxruntime {onnxruntime}: pip says: {done.stderr.strip()[-500:]}"
        )
    got = _asked(python, "import onnxruntime; print(onnxruntime.__version__)")
    if got != onnxruntime:
        raise ConfigurationError(f"onnxruntime: got {got}, want {onnxruntime}")
    return python


def _asked(python: Path, words: str) -> str:
    done = subprocess.run(
        [str(python), "-c", words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
