"""Result tokens: any change is refused, and whatever is signed is read or refused."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bentoml_secure.attestation.ear import AREAS, Tier, is_better, tier_of, worst
from bentoml_secure.attestation.reference_values import Unchecked
from bentoml_secure.errors import (
    CheckFailedError,
    MalformedInputError,
    PolicyRejected,
    SecureError,
)
from tests.unit.attestation.result_tokens import (
    ED,
    issue,
    parts,
    signed,
    tdx_result,
    verify,
)

TOKEN = issue(pair=ED)
HEADER, CLAIMS = parts(TOKEN)
WHY = Unchecked("a test")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.integers(0, len(TOKEN) - 1), st.characters(max_codepoint=0x7F))
def test_another_character_anywhere_is_refused(at: int, character: str) -> None:
    if TOKEN[at] == character:
        return
    with pytest.raises((CheckFailedError, MalformedInputError)) as caught:
        verify(TOKEN[:at] + character + TOKEN[at + 1 :], ED)
    assert str(caught.value)


@given(st.sampled_from(sorted(CLAIMS)), _JSON)
def test_any_signed_claim_is_read_or_refused(name: str, value: Any) -> None:
    with suppress(SecureError):
        verify(signed(HEADER, {**CLAIMS, name: value}, ED), ED).to_json()


@given(st.sampled_from(sorted(CLAIMS["submods"]["cpu0"])), _JSON)
def test_any_signed_appraisal_is_read_or_refused(name: str, value: Any) -> None:
    cpu = {**CLAIMS["submods"]["cpu0"], name: value}
    with suppress(SecureError):
        verify(signed(HEADER, {**CLAIMS, "submods": {"cpu0": cpu}}, ED), ED).to_json()


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from([*HEADER, "jwk", "crit", "x"]), _JSON))
def test_any_signed_header_is_read_or_refused(fields: dict[str, Any]) -> None:
    with suppress(SecureError):
        verify(signed({**HEADER, **fields}, CLAIMS, ED), ED)


@given(
    st.sampled_from(Tier),
    st.dictionaries(st.sampled_from(AREAS), st.integers(-128, 127)),
)
def test_affirming_means_that_nothing_speaks_against_it(
    status: Tier, vector: dict[str, int]
) -> None:
    cpu = {
        **CLAIMS["submods"]["cpu0"],
        "ear_status": status,
        "ear_trustworthiness_vector": vector,
    }
    token = signed(HEADER, {**CLAIMS, "submods": {"cpu0": cpu}}, ED)
    against = {Tier.WARNING, Tier.CONTRAINDICATED} & set(map(tier_of, vector.values()))
    if status == Tier.AFFIRMING and not against:
        assert verify(token, ED).claims.status == Tier.AFFIRMING
    else:
        with pytest.raises(PolicyRejected, match="not acceptable"):
            verify(token, ED)


LEAVABLE = ("mr_td", "rtmr.1", "rtmr.2", "smt", "platform_id", "report_data", "tcb")


@settings(max_examples=40)
@given(
    st.sets(st.sampled_from(LEAVABLE)),
    st.booleans(),
    st.sampled_from(["UpToDate", "OutOfDate"]),
)
def test_affirming_means_that_it_was_compared(
    left_out: set[str], simulated: bool, status: str
) -> None:
    result = tdx_result(*sorted(left_out), simulated=simulated, status=status)
    _, claims = parts(issue(result, pair=ED))
    essential = {"mr_td", "rtmr.1", "rtmr.2", "report_data"}
    good = not simulated and status == "UpToDate" and not essential & left_out
    assert (claims["ear_status"] == "affirming") is good
    assert json.dumps(claims)


@given(st.lists(st.sampled_from(Tier), min_size=1))
def test_nothing_is_worse_than_the_worst(tiers: list[Tier]) -> None:
    found = worst(tiers)
    assert found in tiers
    assert not any(is_better(found, tier) for tier in tiers)
