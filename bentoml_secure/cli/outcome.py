"""Verdicts and exit codes, and how both are printed.

    0   verified, or done
    1   rejected: not authentic, not acceptable, or bytes that do not parse
    2   usage: options, a file that cannot be read, a file of one's own that is wrong
    3   incomplete: an endorsement that was not given, or an attachment still to come

With ``--json`` standard output carries exactly one object for 0, 1 and 3. Text from
outside is printed with its control characters spelled out: a replica's name must not
be able to draw a verdict of its own.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import IO, Any

import click

from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    Finding,
    MalformedInputError,
    PolicyRejected,
    ProofError,
    ReceiptError,
    SecureError,
    UnavailableError,
)

EXIT_ACCEPTED = 0
EXIT_REJECTED = 1
EXIT_USAGE = 2
EXIT_INCOMPLETE = 3

SIMULATED = "SIMULATED - NOT HARDWARE"


_LISTING = PolicyRejected | ReceiptError | ProofError | CheckFailedError


class State(StrEnum):
    """What a verification came to."""

    ACCEPTED = "accepted"
    PROVISIONAL = "provisional"
    INCOMPLETE = "incomplete"
    REJECTED = "rejected"


_EXIT_CODES: Mapping[State, int] = {
    State.ACCEPTED: EXIT_ACCEPTED,
    State.PROVISIONAL: EXIT_INCOMPLETE,
    State.INCOMPLETE: EXIT_INCOMPLETE,
    State.REJECTED: EXIT_REJECTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A verdict with its reasons.

    Attributes:
        state: The verdict.
        kind: What was judged: ``receipt``, or the kind of evidence.
        findings: Every check that failed.
        claims: What was found out, JSON-able.
        summary: The same for people; the claims one by one where left out.
        simulated: No hardware stands behind some of it.
    """

    state: State
    kind: str
    findings: Sequence[Finding] = ()
    claims: Mapping[str, Any] = field(default_factory=dict)
    summary: Sequence[str] = ()
    simulated: bool = False


class Failure(click.ClickException):
    """A ``SecureError`` or ``OSError`` on its way to standard error."""

    def __init__(self, message: str, *, remedy: str, code: int) -> None:
        super().__init__(message)
        self.remedy = remedy
        # click declares it for classes only; it reads the instance's.
        self.exit_code = code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the message, and the remedy on a line of its own."""
        click.echo(f"error: {plain(self.message)}", file=file, err=True)
        if self.remedy:
            click.echo(f"       {plain(self.remedy)}", file=file, err=True)


def _exit_code(error: SecureError) -> int:
    match error:
        case ConfigurationError():
            return EXIT_USAGE
        case UnavailableError():
            return EXIT_INCOMPLETE
        case _:
            return EXIT_REJECTED


class SecureGroup(click.Group):
    """A group of commands whose errors are a message, a remedy and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except SecureError as error:
            raise Failure(
                str(error.args[0]), remedy=error.remedy, code=_exit_code(error)
            ) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise Failure(str(error), remedy="", code=EXIT_USAGE) from error


@contextmanager
def own_files(what: str) -> Iterator[None]:
    """Call what is wrong with the caller's own files usage, not a verdict.

    Args:
        what: Names the file in the error.

    Raises:
        ConfigurationError: In place of any error about bytes.
    """
    try:
        yield
    except UnavailableError:
        raise
    except SecureError as error:
        message = str(error.args[0])
        raise ConfigurationError(
            message if what in message else f"{what}: {message}", remedy=error.remedy
        ) from error


def settle(
    kind: str, judge: Callable[[], Outcome], *, as_json: bool, err: bool = False
) -> None:
    """Run ``judge``, print its outcome and leave with the exit code.

    Args:
        kind: What is judged, for an outcome that ``judge`` did not live to return.
        judge: Returns the outcome, or raises what rejects.
        as_json: One JSON object instead of lines for people.
        err: Whether these lines go to standard error, for what the command makes is
            alone on standard output.

    Raises:
        ConfigurationError: From ``judge``; no verdict.
    """
    try:
        outcome = judge()
    except ConfigurationError:
        raise
    except SecureError as error:
        outcome = rejection(kind, error)
    if as_json:
        click.echo(to_json(outcome))
    else:
        click.echo("\n".join(to_lines(outcome)), err=err)
    click.get_current_context().exit(_EXIT_CODES[outcome.state])


def rejection(kind: str, error: SecureError) -> Outcome:
    """Return the outcome that an error stands for."""
    if isinstance(error, UnavailableError):
        return Outcome(
            state=State.INCOMPLETE,
            kind=kind,
            findings=(Finding(kind, str(error), "all that it is checked with"),),
        )
    findings: Sequence[Finding] = ()
    if isinstance(error, _LISTING):
        findings = error.findings
    want = "well-formed" if isinstance(error, MalformedInputError) else "authentic"
    return Outcome(
        state=State.REJECTED,
        kind=kind,
        findings=findings or (Finding(kind, str(error), want),),
    )


def to_json(outcome: Outcome) -> str:
    """Return the one object of ``--json``."""
    return json.dumps(
        {
            **outcome.claims,
            "verdict": outcome.state.value,
            "kind": outcome.kind,
            "findings": [finding.to_json() for finding in outcome.findings],
        },
        sort_keys=True,
    )


def to_lines(outcome: Outcome) -> list[str]:
    """Return the outcome for people: what was found, what failed, the verdict."""
    lines = [plain(line) for line in outcome.summary] or claim_lines(outcome.claims)
    lines += [f"FAILED  {plain(finding)}" for finding in outcome.findings]
    if outcome.simulated:
        lines.append(f"{SIMULATED}: this shows the checks, it protects nothing.")
    count = len(outcome.findings)
    tail = {
        State.ACCEPTED: "",
        State.PROVISIONAL: ": something required is not there yet",
        State.INCOMPLETE: ": it cannot be checked with what was given",
        State.REJECTED: f": {count} finding{'s' if count != 1 else ''}",
    }[outcome.state]
    return [*lines, f"{outcome.state.upper()}  {plain(outcome.kind)}{tail}"]


def claim_lines(claims: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one line for each claim; an object's fields are joined by dots."""
    lines = []
    for name, value in claims.items():
        label = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            lines += claim_lines(value, f"{label}.")
        elif isinstance(value, list | tuple) and any(
            isinstance(item, Mapping) for item in value
        ):
            lines += [f"  {plain(label)}: {plain(_inline(item))}" for item in value]
        else:
            lines.append(f"  {plain(label)}: {plain(_inline(value))}")
    return lines


def _inline(value: object) -> str:
    match value:
        case {"field": field_name, "reason": reason}:
            return f"{field_name}, {reason}"
        case Mapping():
            pairs = (f"{key} {_inline(item)}" for key, item in value.items())
            return ", ".join(pairs) or "none"
        case list() | tuple():
            return ", ".join(map(_inline, value)) or "none"
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value)


def plain(value: object) -> str:
    """Return text on one line, whatever else it may hold spelled out."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1]
        for character in str(value)
    )
