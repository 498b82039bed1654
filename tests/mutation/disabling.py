"""Checks that can be told not to refuse, and that remember when they did.

``install`` puts them in place of the real ones; it has to run before a kind is
imported, for kinds import the functions themselves.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from bentoml_secure.attestation import checks, reference_values
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.errors import CheckFailedError

EVERYWHERE = ""
"""In place of a test's id: refused outside the body of a test."""

Key = tuple[str, str]
"""A check: its name, and the file and line of the call or nothing for all calls."""


@dataclass(slots=True)
class Watch:
    """What is disabled, and what was seen; one for the process.

    Attributes:
        files: Calls in other files are left alone.
        each_call: Tell calls with one name apart.
        disabled: The check that never refuses.
        test: The test whose body runs.
        reached: Checks that were made.
        refused: Tests during which a check refused.
    """

    files: frozenset[str] = frozenset()
    each_call: bool = False
    disabled: Key | None = None
    test: str = EVERYWHERE
    reached: set[Key] = field(default_factory=set)
    refused: dict[Key, set[str]] = field(default_factory=dict)

    def key(self, name: str, path: str, line: int) -> Key:
        """Return the key of a check; numbers in its name are not told apart."""
        place = f"{Path(path).name}:{line}" if self.each_call else ""
        return re.sub(r"\b[0-9]+\b", "#", name), place


watch = Watch()


def _reach(name: str, frame: FrameType) -> Key | None:
    """Note that a check is made; return its key if its file is watched."""
    path = frame.f_code.co_filename
    if path not in watch.files:
        return None
    key = watch.key(name, path, frame.f_lineno)
    watch.reached.add(key)
    return key


def _refuse(key: Key | None) -> bool:
    """Note that a check does not hold; return whether it may say so."""
    if key is None:
        return True
    watch.refused.setdefault(key, set()).add(watch.test)
    return key != watch.disabled


def install() -> None:
    """Put checks that can be disabled in place of the real ones."""
    require, compare = checks.require, checks.compare
    requiring = checks.requiring
    compare_reference = reference_values.compare_reference

    def watched_require(name: str, holds: bool, *, got: object, want: object) -> None:
        key = _reach(name, sys._getframe(1))
        if not holds and _refuse(key):
            require(name, holds, got=got, want=want)

    @contextlib.contextmanager
    def judged(key: Key | None, *arguments: Any, **named: Any) -> Iterator[None]:
        try:
            with requiring(*arguments, **named):
                yield
        except CheckFailedError as error:
            # One from within the block is another check's.
            if error.__cause__ is None or error.findings[0].field != arguments[0]:
                raise
            if _refuse(key):
                raise

    def watched_requiring(
        name: str, *errors: type[Exception], want: object
    ) -> contextlib.AbstractContextManager[None]:
        return judged(_reach(name, sys._getframe(1)), name, *errors, want=want)

    def watched_compare(
        name: str, holds: bool, *, got: object, want: object
    ) -> Comparison:
        key = _reach(name, sys._getframe(1))
        if holds or not _refuse(key):
            return Comparison()
        return compare(name, holds, got=got, want=want)

    def watched_reference(
        field: str, got: str, references: reference_values.References
    ) -> Comparison:
        key = _reach(field, sys._getframe(1)) if got else None
        comparison = compare_reference(field, got, references)
        if comparison.findings and not _refuse(key):
            return Comparison(unchecked=comparison.unchecked)
        return comparison

    checks.require = watched_require
    checks.requiring = watched_requiring  # type: ignore[assignment]
    checks.compare = watched_compare
    reference_values.compare_reference = watched_reference
