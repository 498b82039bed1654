"""``plan-audit``: what a committee and a share of audits are worth."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from bentoml_secure.cli.parameters import as_json

if TYPE_CHECKING:
    from bentoml_secure.audit.planning import Forecast, Terms

_COUNT = click.IntRange(min=0)
_LEAST_ONE = click.IntRange(min=1)
_FRACTION = click.FloatRange(0.0, 1.0)
_AMOUNT = click.FloatRange(min=0.0)


@click.command("plan-audit")
@click.option("--replicas", type=_LEAST_ONE, required=True, help="Of each segment, N.")
@click.option("--committee", type=_LEAST_ONE, required=True, help="Drawn of them, k.")
@click.option("--quorum", type=_LEAST_ONE, required=True, help="Votes that must agree.")
@click.option(
    "--colluders", type=_COUNT, required=True, help="Replicas that lie alike, M."
)
@click.option(
    "--audit-rate", type=_FRACTION, required=True, help="Share that is recomputed."
)
@click.option(
    "--sensitivity",
    type=_FRACTION,
    default=1.0,
    show_default=True,
    help="Probability that a recomputation shows a wrong answer.",
)
@click.option(
    "--stake", type=_AMOUNT, required=True, help="Lost by a colluder that is caught."
)
@click.option(
    "--gain", type=_AMOUNT, required=True, help="Of one wrong answer that is served."
)
@click.option("--requests", type=_LEAST_ONE, required=True, help="Detection after n.")
@click.option(
    "--aborts",
    type=_COUNT,
    default=0,
    show_default=True,
    help="Requests that a colluding entry gives up for a better draw.",
)
@click.option(
    "--spares",
    type=_COUNT,
    default=0,
    show_default=True,
    help="Replicas that may be passed over.",
)
@click.option(
    "--escalation",
    type=_COUNT,
    default=0,
    show_default=True,
    help="Times that two more are asked.",
)
@click.option(
    "--rounds",
    type=_LEAST_ONE,
    default=1,
    show_default=True,
    help="Draws of a request: segments, times infers.",
)
@click.option(
    "--colluder-weight",
    type=click.FloatRange(min=0.0, min_open=True),
    default=1.0,
    show_default=True,
    help="In the draw; an honest replica's is 1.",
)
@click.option(
    "--pair-excess",
    type=_FRACTION,
    default=0.0,
    show_default=True,
    help="Probability that two honest answers differ beyond the tolerance.",
)
@click.option(
    "--check-cost",
    type=_AMOUNT,
    default=0.0,
    show_default=True,
    help="Of a Freivalds check, in runs of the model.",
)
@click.option(
    "--challenge-rate",
    type=_FRACTION,
    default=0.0,
    show_default=True,
    help="Share of an epoch that each draw has proven.",
)
@click.option(
    "--auditors",
    type=_COUNT,
    default=0,
    show_default=True,
    help="Who draw beside the entry.",
)
@click.option(
    "--tries",
    type=_LEAST_ONE,
    default=1,
    show_default=True,
    help="Arrangements of an epoch that a colluding entry goes through.",
)
@click.option(
    "--proof-cost",
    type=_AMOUNT,
    default=0.0,
    show_default=True,
    help="Of proving one request, in runs of the model.",
)
@as_json
def plan_audit(as_json: bool, **terms: float) -> None:
    """Say how often colluders win, and after how long an audit shows it.

    Computed from the numbers given and from nothing else: how many replicas collude
    is yours to say. One line for each figure, with what it means.
    """
    from bentoml_secure.audit.planning import Terms, forecast

    # click has made whole numbers of those that must be.
    planned = Terms(**terms)  # type: ignore[arg-type]
    made = forecast(planned)
    if as_json:
        document = {"terms": planned.to_json(), "forecast": made.to_json()}
        click.echo(json.dumps(document, sort_keys=True))
    else:
        click.echo("\n".join(lines(planned, made)))


def lines(terms: Terms, made: Forecast) -> list[str]:
    """Return a forecast as a table for people."""
    share = f"{terms.audit_rate:.4g} of the requests audited"
    return [
        f"{terms.committee} of {terms.replicas} replicas asked, {terms.quorum} must "
        f"agree, {terms.colluders} collude; {share}",
        "",
        "Colluders have a quorum",
        _row("of one drawn committee", made.capture_per_round),
        _row(
            f"of one that a request draws, rounds: {terms.rounds}",
            made.capture_per_request,
        ),
        _row("the same, with the entry's help", made.capture_by_entry),
        _row("the same, and it is not audited", made.unaudited_by_entry),
        "",
        "A wrong answer shows",
        _row("to the committee: one cheater seated", made.lone_cheater_seen),
        _row(f"to audits: of {terms.requests} cheats", made.caught_after_cheats),
        _row(
            f"to audits: in {terms.requests} requests, cheating when captured",
            made.caught_after_requests,
        ),
        _row("mean cheats until caught", made.mean_cheats_until_caught),
        _row("cheats until one is caught, at 99 %", made.cheats_until_confident),
        "",
        "What it costs",
        _row("runs of the model for a request", made.runs_per_request),
        _row("honest replicas seem to differ", made.false_alarm),
        _row("audit rate that deters", made.deterring_rate),
        _row("a cheat brings on average", made.margin_per_cheat),
        "",
        "Freivalds' check in place of recomputing",
        _row("a wrong product passes one check", made.check_passes),
        _row("runs of the model for a request", made.runs_with_checks),
        "",
        f"Challenges to prove, {terms.challenge_rate:.4g} of an epoch for each of "
        f"{terms.auditors + 1} draws",
        _row(
            f"of {terms.requests} cheats one is challenged",
            made.challenged_after_cheats,
        ),
        _row("none is, with the entry's help", made.evaded_by_entry),
        _row("runs of the model for the proofs of a request", made.runs_of_proofs),
    ]


def _row(label: str, value: float | None) -> str:
    shown = "never" if value is None else f"{value:.4g}"
    return f"  {label:<56}{shown:>12}"
