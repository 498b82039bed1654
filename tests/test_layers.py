"""Who may import whom. The tables here are the architecture; see docs/adr/0001.

Imports for type checking count too: a room that names another room's types depends
on it as surely as one that calls it.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from bentoml_secure.attestation.tees import TEES
from bentoml_secure.consensus.rules import RULES
from bentoml_secure.receipts.attachments import ATTACHMENTS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bentoml_secure"

# From the bottom up. A room imports from levels below its own, never beside or above.
LEVELS = (
    ("errors",),
    ("digest",),
    ("tensors", "registry", "signing", "metrics"),
    ("statements",),
    ("attestation", "split", "consensus"),
    ("proofs",),
    ("session",),
    ("keys",),
    ("audit",),
    ("scenario",),
    ("receipts",),
    ("client", "serving", "cli"),
)
# Whoever tests may use all of it. The package itself hands out names, on first use.
ABOVE_ALL = {
    "testing": {room for level in LEVELS for room in level},
    "__init__": {"client", "serving"},
}
MAY_IMPORT = {
    room: {lower for below in LEVELS[:index] for lower in below}
    for index, level in enumerate(LEVELS)
    for room in level
} | ABOVE_ALL
# Auditors' commands ask services, as callers do.
MAY_IMPORT["cli"] |= {"client"}

# What is heavy, or moves under us, is imported in these places only.
ONLY_IN = {
    "bentoml": ("serving/",),
    "_bentoml_sdk": ("serving/bento_internals.py",),
    "_bentoml_impl": ("serving/bento_internals.py",),
    "bentoml_cli": (),
    "torch": ("split/exporting.py", "split/runtime_torch.py", "split/torch_operators/"),
    "onnxscript": ("split/exporting.py",),
    "transformers": (),
    "ezkl": ("proofs/backends/ezkl_child.py",),
    "sqlalchemy": ("proofs/jobs/",),
    "ray": ("proofs/executors/ray_driver.py",),
    "onnx": ("split/", "proofs/circuit.py"),
    "onnxruntime": ("split/",),
    "httpx": ("client/",),
    # BentoML is a click program; what it was started with is asked of click.
    "click": ("cli/", "testing/", "serving/bento_internals.py"),
    "uvicorn": ("testing/",),
    "securesystemslib": ("signing.py",),
    "rfc8785": ("digest.py",),
    "blake3": ("digest.py",),
    "dcap_qvl": ("attestation/tees/",),
    "cbor2": ("attestation/", "testing/"),
    "joserfc": ("attestation/results.py", "keys/"),
    "model_signing": ("keys/",),
    "pynvml": ("attestation/attesters/",),
    # A replica that answers pickles, for tests; nothing ever loads one.
    "pickle": ("testing/rogue/",),
}

# What users may install beside; the other extras are for working on this project.
# (postgresql is not here: SQLAlchemy loads its driver by the name in a URL.)
EXTRAS = ("torch", "tokens", "signing", "nvidia", "proofs", "ray", "fast")

MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported_by(source: str) -> set[str]:
    """Return the dotted names that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert node.module is not None
            names |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def imports(module: str) -> set[str]:
    return imported_by((PACKAGE / module).read_text())


def room_of(module: str) -> str:
    return module.removesuffix(".py").split("/")[0]


def rooms(names: set[str]) -> set[str]:
    own = {name for name in names if name.startswith("bentoml_secure.")}
    return {name.split(".")[1] for name in own} - {"__version__"}


def is_within(module: str, places: tuple[str, ...]) -> bool:
    return any(
        module.startswith(place) if place.endswith("/") else module == place
        for place in places
    )


def test_the_table_has_every_room_and_no_other() -> None:
    assert set(MAY_IMPORT) == {room_of(module) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    room = room_of(module)
    assert rooms(imports(module)) <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("module", MODULES)
def test_heavy_imports_stay_in_their_files(module: str) -> None:
    heads = {name.split(".")[0] for name in imports(module)}
    outside = [
        head for head in heads & ONLY_IN.keys() if not is_within(module, ONLY_IN[head])
    ]
    assert outside == []


def test_tables_of_kinds_point_into_their_own_room() -> None:
    # registry.load() imports what a table says: imports that ast does not see.
    for room, table in {
        "attestation": TEES,
        "consensus": RULES,
        "receipts": ATTACHMENTS,
    }.items():
        assert table
        assert {target.split(".")[1] for target in table.values()} == {room}


def test_third_party_imports_are_the_declared_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = [name for extra in EXTRAS for name in extras[extra]]
    shipped = [module for module in MODULES if room_of(module) != "testing"]
    heads = {name.split(".")[0] for module in shipped for name in imports(module)}
    foreign = heads - set(sys.stdlib_module_names) - {"bentoml_secure"}
    providers = packages_distributions()
    used = {canonical(providers[head][0]) for head in foreign}
    assert used == {canonical(name) for name in [*project["dependencies"], *optional]}


def canonical(requirement: str) -> str:
    """Return the project's name that a requirement begins with, normalised."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "import a.b\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from bentoml_secure.serving import service\n"
        "def f():\n    from bentoml_secure import client\n"
    )
    names = imported_by(source)
    assert "a.b" in names
    assert rooms(names) == {"serving", "client"}
    with pytest.raises(AssertionError, match="relative"):
        imported_by("from . import errors")
