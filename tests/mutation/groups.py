"""Which files a kind is made of, which checks stand in them, which tests are theirs."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bentoml_secure.attestation.tees import TEES

ROOT = Path(__file__).resolve().parents[2]
ATTESTATION = ROOT / "bentoml_secure" / "attestation"
TESTS = ROOT / "tests" / "unit" / "attestation"

CHECKS = frozenset({"require", "requiring", "compare", "compare_reference"})
HOMES = frozenset(
    {
        "bentoml_secure.attestation.checks",
        "bentoml_secure.attestation.reference_values",
    }
)


@dataclass(frozen=True, slots=True)
class Group:
    """Source files whose checks are disabled, and the tests that must notice.

    Where none of ``tests`` notices, ``more`` may: those of other kinds that share one
    of the files.
    """

    name: str
    sources: tuple[Path, ...]
    tests: tuple[Path, ...]
    more: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a check; ``name`` is None where it is put together when it runs."""

    path: Path
    line: int
    name: str | None


def all_groups() -> list[Group]:
    """Return a group for each built-in kind, and one for what all kinds share."""
    sources = {kind: _sources(target) for kind, target in sorted(TEES.items())}
    own = {kind: _tests_of(kind, files) for kind, files in sources.items()}
    groups = []
    for kind, files in sources.items():
        shared = [
            test
            for other, others in sources.items()
            if other != kind and set(files) & set(others)
            for test in own[other]
        ]
        more = tuple(dict.fromkeys(test for test in shared if test not in own[kind]))
        groups.append(Group(kind, files, own[kind], more))
    return [*groups, _shared_group(own), _keys_group()]


def _keys_group() -> Group:
    """Return the room of keys, which names its checks as the kinds do."""
    files = sorted((ROOT / "bentoml_secure" / "keys").rglob("*.py"))
    unit = ROOT / "tests" / "unit"
    tests = [
        *sorted((unit / "keys").glob("test_*.py")),
        unit / "serving" / "test_serving_broker_door.py",
        unit / "serving" / "test_serving_weights.py",
    ]
    return Group("keys", tuple(path for path in files if calls_in(path)), tuple(tests))


def _shared_group(own: dict[str, tuple[Path, ...]]) -> Group:
    """Return the files that all kinds share, and the tests that are no kind's."""
    taken = {test for tests in own.values() for test in tests}
    files = [
        path
        for path in sorted(ATTESTATION.rglob("*.py"))
        if path.parent.name != "tees" and calls_in(path)
    ]
    tests = [test for test in sorted(TESTS.glob("test_*.py")) if test not in taken]
    return Group("attestation", tuple(files), tuple(tests))


def _sources(target: str) -> tuple[Path, ...]:
    """Return a kind's file and the files of its folder that it imports."""
    found: dict[str, Path] = {}
    waiting = [target.partition(":")[0]]
    package = "bentoml_secure.attestation.tees"
    while waiting:
        module = waiting.pop()
        path = ROOT / Path(*module.split(".")).with_suffix(".py")
        if module in found or module == package or not path.is_file():
            continue
        found[module] = path
        waiting += [name for name in _imported(path) if name.startswith(f"{package}.")]
    return tuple(found.values())


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _tests_of(kind: str, sources: Sequence[Path]) -> tuple[Path, ...]:
    """Return tests named after the kind or one of its files; the kind's first."""
    stems = [path.stem for path in sources]
    words = kind.split("-")
    # test_nvidia_spdm.py is of nvidia-gpu: the first words are enough if they fit.
    names = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
    own = next((files for name in names if (files := _glob(name))), [])
    return tuple(dict.fromkeys([*own, *(t for stem in stems for t in _glob(stem))]))


def _glob(stem: str) -> list[Path]:
    found = [*TESTS.glob(f"test_{stem}.py"), *TESTS.glob(f"test_{stem}_*.py")]
    return sorted(found)


def calls_in(path: Path) -> list[Call]:
    """Return the calls of checks in a file, by whatever names it imports them."""
    tree = ast.parse(path.read_text())
    known = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in HOMES
        for alias in node.names
        if alias.name in CHECKS
    }
    return [
        Call(path, node.lineno, _text(node.args[0]) if node.args else None)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in known
        and not _only_notes(node)
    ]


def _only_notes(call: ast.Call) -> bool:
    """Return whether nothing is compared: a check that is left out is written down."""
    return len(call.args) > 1 and _text(call.args[1]) == ""


def _text(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None
