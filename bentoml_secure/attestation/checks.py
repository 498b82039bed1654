"""Named checks: each thing that makes evidence authentic or acceptable has a name.

A verifier's checks raise (``require``, ``requiring``); a policy's are collected
(``compare``, and ``reference_values.compare_reference``). The first argument is always
the name, spelled out: it is the ``field`` of the finding, and the mutation run
(``make mutate``) disables each name in turn and demands that a test fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.errors import CheckFailedError, Finding


def require(name: str, holds: bool, *, got: object, want: object) -> None:
    """Refuse evidence unless a check holds.

    Args:
        name: The check, in lower case with dots: ``chain.root``.
        holds: Whether it does.
        got: What stands there; shown.
        want: What would pass; shown.

    Raises:
        CheckFailedError: It does not.
    """
    if not holds:
        raise CheckFailedError(Finding(name, str(got), str(want)))


@contextmanager
def requiring(name: str, *errors: type[Exception], want: object) -> Iterator[None]:
    """Turn a library's refusal within the block into this check's.

    Args:
        name: The check.
        errors: What the library raises where the check does not hold.
        want: What would pass; shown.

    Raises:
        CheckFailedError: In place of those errors.
    """
    try:
        yield
    except errors as error:
        # The first line: some libraries append a trace.
        text = str(error).partition("\n")[0] or type(error).__name__
        raise CheckFailedError(Finding(name, text, str(want))) from error


def compare(name: str, holds: bool, *, got: object, want: object) -> Comparison:
    """Return the finding of a check that a policy always makes, if it fails."""
    if holds:
        return Comparison()
    return Comparison(findings=(Finding(name, str(got), str(want)),))
