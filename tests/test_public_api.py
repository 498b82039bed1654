"""What the package offers, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import bentoml_secure

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bentoml_secure"

OFFERING = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if "__all__ =" in path.read_text()
)


@pytest.mark.parametrize("name", OFFERING)
def test_all_is_sorted_and_names_what_is_there(name: str) -> None:
    module = import_module(name)
    assert list(module.__all__) == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    for member in module.__all__:
        assert getattr(module, member) is not None


def test_the_package_offers_exactly_this() -> None:
    assert bentoml_secure.__all__ == [
        "AsyncSecureClient",
        "Secure",
        "SecureClient",
        "__version__",
        "service",
    ]
    assert dir(bentoml_secure) == bentoml_secure.__all__
    assert set(bentoml_secure._HOMES) == set(bentoml_secure.__all__) - {"__version__"}


def test_names_are_those_of_their_homes() -> None:
    from bentoml_secure.client import AsyncSecureClient, SecureClient
    from bentoml_secure.serving.service import Secure, service

    assert bentoml_secure.Secure is Secure
    assert bentoml_secure.SecureClient is SecureClient
    assert bentoml_secure.AsyncSecureClient is AsyncSecureClient
    assert bentoml_secure.service is service


def test_no_other_name_is_found() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bentoml_secure.nothing


def test_version_is_the_installed_one() -> None:
    assert bentoml_secure.__version__ == version("bentoml-secure")


def loaded_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys\nprint(*(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "without"),
    [
        (
            "import bentoml_secure",
            {"bentoml", "torch", "onnx", "onnxruntime", "httpx", "numpy", "click"},
        ),
        (
            "from bentoml_secure import SecureClient",
            {"bentoml", "_bentoml_sdk", "torch", "onnx", "onnxruntime"},
        ),
        (
            "import bentoml_secure.cli",
            {"bentoml", "torch", "onnx", "onnxruntime", "httpx", "numpy"},
        ),
        (
            "from bentoml_secure.receipts.verify import verify_bundle",
            {"bentoml", "torch", "onnx", "onnxruntime", "httpx"},
        ),
        (
            "from bentoml_secure.split import load_plan",
            {"bentoml", "torch", "onnx", "onnxruntime"},
        ),
    ],
)
def test_importing_is_cheap(statement: str, without: set[str]) -> None:
    loaded = loaded_after(statement)
    assert "bentoml_secure" in loaded
    assert loaded & without == set()


def test_what_is_loaded_is_seen() -> None:
    assert {"bentoml", "onnxruntime"} <= loaded_after(
        "from bentoml_secure import service"
    )
