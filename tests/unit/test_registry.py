"""Kinds by name: built-in ones first and for ever, then those of others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bentoml_secure import registry
from bentoml_secure.errors import ConfigurationError, UnknownKindError

BUILTIN = {"ours": "bentoml_secure.registry:load"}
GROUP = "bentoml_secure.tests"


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    """Distributions come and go here, as within one process they do not."""
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution that registers the kind ``theirs``."""
    install(tmp_path, "theirs")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_plugin", raising=False)


def install(folder: Path, kind: str) -> None:
    info = folder / f"a_plugin_{kind}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: p-{kind}\nVersion: 1")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{kind} = a_plugin:Theirs\n")
    (folder / "a_plugin.py").write_text("class Theirs: pass\n")


def test_a_built_in_kind() -> None:
    assert registry.load("ours", BUILTIN, GROUP) is registry.load


@pytest.mark.usefixtures("plugin")
def test_a_kind_of_others() -> None:
    assert registry.load("theirs", BUILTIN, GROUP).__name__ == "Theirs"
    assert registry.load("ours", BUILTIN, GROUP) is registry.load


@pytest.mark.usefixtures("plugin")
def test_a_kind_that_nobody_knows_lists_those_that_are_known() -> None:
    with pytest.raises(UnknownKindError, match="'none'; known: ours, theirs"):
        registry.load("none", BUILTIN, GROUP)


@pytest.mark.usefixtures("plugin")
def test_a_plugin_cannot_replace_a_built_in_kind(tmp_path: Path) -> None:
    install(tmp_path, "ours")
    registry._plugins.cache_clear()
    for kind in ("ours", "theirs", "none"):
        with pytest.raises(ConfigurationError, match="may not replace built-in ours"):
            registry.load(kind, BUILTIN, GROUP)


def test_nothing_is_imported_but_what_is_asked_for() -> None:
    table = {"ours": BUILTIN["ours"], "heavy": "does.not.exist:Thing"}
    assert registry.load("ours", table, GROUP) is registry.load
