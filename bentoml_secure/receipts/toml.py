"""Writing TOML, which the standard library only reads.

Source: TOML v1.0.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bentoml_secure.errors import ConfigurationError

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def write_toml(document: Mapping[str, Any]) -> str:
    """Return a document as TOML: values first, then tables under their headers.

    Args:
        document: Strings, integers, finite floats, booleans, lists and tables.

    Raises:
        ConfigurationError: A value that TOML has no form for, such as none at all.
    """
    return "\n".join(_table(document, ())) + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"[{'.'.join(map(_key, path))}]"] if path else []
    for name, value in table.items():
        if not isinstance(value, Mapping):
            lines.append(f"{_key(name)} = {_value(value)}")
    for name, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", *_table(value, (*path, name))]
    return lines


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _string(value)
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case Mapping():
            pairs = [f"{_key(k)} = {_value(v)}" for k, v in value.items()]
            return f"{{{', '.join(pairs)}}}"
        case _:
            raise ConfigurationError(
                f"TOML has no form for {type(value).__name__} {value!r:.60}."
            )


def _string(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return (
        '"'
        + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped)
        + '"'
    )
