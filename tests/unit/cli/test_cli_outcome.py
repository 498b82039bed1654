"""What is printed, and what text from outside cannot do to it."""

from __future__ import annotations

import json

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentoml_secure.cli.outcome import (
    Outcome,
    State,
    own_files,
    plain,
    rejection,
    to_json,
    to_lines,
)
from bentoml_secure.cli.parameters import hex_bytes, instant
from bentoml_secure.errors import (
    ConfigurationError,
    Finding,
    MalformedInputError,
    PolicyRejected,
    ReceiptError,
    UnavailableError,
    VerificationError,
)


@given(st.text())
def test_text_from_outside_stays_on_its_line(text: str) -> None:
    outcome = Outcome(
        state=State.REJECTED,
        kind="receipt",
        findings=[Finding(text, text, text)],
        claims={text: text, "list": [{text: text}, text]},
    )
    lines = to_lines(outcome)
    assert all(line.isprintable() for line in lines)
    assert lines[-1] == "REJECTED  receipt: 1 finding"


def test_a_forged_verdict_is_spelled_out() -> None:
    assert plain("replica\nACCEPTED\x1b[2K") == "replica\\nACCEPTED\\x1b[2K"


def test_claims_cannot_replace_the_verdict() -> None:
    outcome = Outcome(
        state=State.REJECTED,
        kind="receipt",
        findings=[Finding("a", "b", "c")],
        claims={"verdict": "accepted", "kind": "other", "findings": []},
    )
    assert json.loads(to_json(outcome)) == {
        "verdict": "rejected",
        "kind": "receipt",
        "findings": [{"field": "a", "got": "b", "want": "c"}],
    }


@pytest.mark.parametrize(
    ("error", "state", "want"),
    [
        (MalformedInputError("x"), State.REJECTED, "well-formed"),
        (VerificationError("x"), State.REJECTED, "authentic"),
        (ReceiptError("x"), State.REJECTED, "authentic"),
        (ReceiptError("x", [Finding("f", "g", "w")]), State.REJECTED, "w"),
        (PolicyRejected("x", [Finding("f", "g", "w")]), State.REJECTED, "w"),
        (UnavailableError("x"), State.INCOMPLETE, "all that it is checked with"),
    ],
)
def test_every_rejection_has_a_finding(
    error: VerificationError, state: State, want: str
) -> None:
    outcome = rejection("receipt", error)
    assert outcome.state is state
    assert [finding.want for finding in outcome.findings] == [want]


def test_errors_in_own_files_are_usage_and_name_the_file() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"^trust\.toml: no TOML Mend it\.$"),
        own_files("trust.toml"),
    ):
        raise MalformedInputError("no TOML", remedy="Mend it.")
    with (
        pytest.raises(UnavailableError, match="later"),
        own_files("trust.toml"),
    ):
        raise UnavailableError("later")


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-01-31T23:59:59Z", "2026-01-31T23:59:59+00:00"),
        ("2026-02-01t00:59:59.123456789+01:00", "2026-01-31T23:59:59.123456+00:00"),
    ],
)
def test_instants_name_one_moment(text: str, utc: str) -> None:
    assert instant(text).isoformat() == utc


@given(st.text())
def test_other_text_is_a_usage_error(text: str) -> None:
    for convert in (instant, hex_bytes(32)):
        with pytest.raises(click.BadParameter, match=r"want|is no time"):
            convert(text)


@given(st.binary(min_size=32, max_size=32))
def test_hex_is_read_in_either_case(data: bytes) -> None:
    assert hex_bytes(32, 64)(data.hex()) == data
    assert hex_bytes(32, 64)(data.hex().upper()) == data
