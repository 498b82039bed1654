"""From the name of a kind to its class: the built-in table, then entry points.

A new TEE, proof backend or consensus rule is one file and one line in the table of
its folder. Third parties register under an entry-point group; they can add a kind,
never replace a built-in one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bentoml_secure.errors import ConfigurationError, UnknownKindError


@functools.cache
def _plugins(group: str) -> Mapping[str, EntryPoint]:
    # Asking reads the metadata of every installed distribution: once a process.
    return {point.name: point for point in entry_points(group=group)}


def load(kind: str, builtin: Mapping[str, str], group: str) -> Any:
    """Return the object registered for ``kind``.

    Args:
        kind: Name as written in policies, plans and receipts.
        builtin: Kind to ``"module:attribute"``.
        group: Entry-point group of third-party kinds.

    Raises:
        ConfigurationError: A plugin claims the name of a built-in kind.
        UnknownKindError: Nobody registered the kind.
    """
    plugins = _plugins(group)
    if clash := builtin.keys() & plugins.keys():
        raise ConfigurationError(
            f"{group}: a plugin may not replace built-in {', '.join(sorted(clash))}.",
            remedy="Uninstall that plugin.",
        )
    if kind in builtin:
        module, _, attribute = builtin[kind].partition(":")
        return getattr(import_module(module), attribute)
    if kind in plugins:
        return plugins[kind].load()
    known = ", ".join(sorted(builtin.keys() | plugins.keys()))
    raise UnknownKindError(f"{group}: unknown kind {kind!r}; known: {known}.")
