"""The tree of errors: one root, messages with their remedy, findings in full."""

from __future__ import annotations

import inspect

import pytest

from bentoml_secure import errors
from bentoml_secure.errors import (
    ConfigurationError,
    Finding,
    MalformedInputError,
    PolicyRejected,
    QuorumNotReached,
    ReceiptError,
    SecureError,
    UnavailableError,
    VerificationError,
)

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_every_error_has_the_one_root_and_words_of_its_own(
    kind: type[Exception],
) -> None:
    assert issubclass(kind, SecureError)
    assert kind.__doc__
    # A bare except of the built-in kinds must not swallow one.
    assert not issubclass(kind, ValueError | KeyError | TypeError | OSError)


def test_the_tree_is_the_one_that_is_drawn() -> None:
    drawn = str(errors.__doc__)
    for kind in KINDS:
        assert kind.__name__ in drawn


def test_what_is_the_operators_is_not_what_is_the_attackers() -> None:
    kinds: list[type[SecureError]] = [
        ConfigurationError,
        MalformedInputError,
        VerificationError,
        PolicyRejected,
        QuorumNotReached,
        UnavailableError,
    ]
    for kind in kinds:
        assert [other for other in kinds if issubclass(kind, other)] == [kind]


def test_a_message_goes_with_its_remedy() -> None:
    error = ConfigurationError("replicas: got 0, want 1.", remedy="Raise it.")
    assert str(error) == "replicas: got 0, want 1. Raise it."
    assert error.args == ("replicas: got 0, want 1.",)
    assert error.remedy == "Raise it."
    assert str(ConfigurationError("got 0")) == "got 0"
    assert ConfigurationError("got 0").remedy == ""


def test_findings_are_all_told() -> None:
    findings = [Finding("a", "1", "2"), Finding("b", "none", "one")]
    for error in (PolicyRejected("refused", findings), ReceiptError("bad", findings)):
        assert error.findings == tuple(findings)
        assert str(error).endswith("; a: got 1, want 2; b: got none, want one")
    assert str(ReceiptError("bad")) == "bad"
    assert findings[0].to_json() == {"field": "a", "got": "1", "want": "2"}


def test_a_refusal_keeps_its_tally() -> None:
    tally = {"pending": ["A"]}
    error = QuorumNotReached("no quorum", tally)
    tally["pending"] = []
    assert error.tally == {"pending": ["A"]}
    assert "See the tally" in error.remedy
