"""Any JSON as the parts of a receipt: read back as it was, or refused; never believed.

Receipts here have skips, rulings, commitments, chains and a localisation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fuzz.chains
import fuzz.rounds
from bentoml_secure.consensus.reputation import LEAST_WEIGHT, MOST_WEIGHT
from bentoml_secure.digest import canonical_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.attachments import verify_attachment
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.chains import ChainsRecord
from bentoml_secure.receipts.localisation import Localisation
from bentoml_secure.receipts.receipt import Receipt
from bentoml_secure.receipts.records import RefereeRecord, SegmentRecord
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.scenario import Mode
from bentoml_secure.testing.deployment import Deployment, build_deployment
from bentoml_secure.testing.receipts import Behaviour, build_draft
from bentoml_secure.testing.tampering import chains_of
from tests.property.test_receipts_forms import VALUES, edits
from tests.unit.receipts.judging import AT

RECORD = fuzz.rounds.DRAFT.receipt.infers[0].segments[0]
CHAINS = chains_of(fuzz.chains.DRAFT)


def _referee(document: object) -> object:
    return RefereeRecord.from_json(document, what="referee").to_json()


def _segment(document: object) -> object:
    return SegmentRecord.from_json(document, what="segment").to_json()


def _chains(document: object) -> object:
    return ChainsRecord.from_json(document, what="chains").to_json()


PARSERS: dict[str, tuple[Callable[[object], object], Any]] = {
    "segment": (_segment, RECORD.to_json()),
    "referee": (_referee, RECORD.to_json()["referee"]),
    "chains": (_chains, CHAINS.to_json()),
}


@pytest.mark.parametrize("kind", PARSERS)
@settings(max_examples=60)
@given(value=VALUES)
def test_any_json_is_refused_as_malformed(kind: str, value: object) -> None:
    parse, _ = PARSERS[kind]
    with pytest.raises(MalformedInputError, match=kind):
        parse(value)


@pytest.mark.parametrize("kind", PARSERS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_is_edited_reads_back_or_is_refused(
    kind: str, data: st.DataObject
) -> None:
    parse, genuine = PARSERS[kind]
    assert parse(genuine) == genuine
    changed = data.draw(edits(genuine))
    try:
        again = parse(changed)
    except MalformedInputError:
        return
    assert again == changed


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_localisation_reads_back_or_is_refused(data: st.DataObject) -> None:
    key = fuzz.chains.DEPLOYMENT.entry.signing
    envelope = fuzz.chains.GENUINE.attachments[0]
    attachment = verify_attachment(envelope, key.public)
    changed = data.draw(edits(dict(attachment.content)))
    if not isinstance(changed, dict):
        return
    try:
        found = Localisation.from_attachment(replace(attachment, content=changed))
    except MalformedInputError:
        return
    assert {"chains": found.to_json()} == changed


@pytest.mark.parametrize("target", [fuzz.rounds, fuzz.chains])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_edited_record_that_the_entry_signs_raises_nothing_else(
    target: Any, data: st.DataObject
) -> None:
    """The targets of the same names judge it, and let nothing but refusals pass."""
    seed = data.draw(st.sampled_from(target.seeds()))
    changed = data.draw(edits(json.loads(seed)))
    try:
        text = json.dumps(changed).encode()
    except ValueError:
        return
    target.one(text)


@cache
def deployment(mode: Mode) -> Deployment:
    terms: dict[str, Any] = {"mode": mode, "referee": True}
    if mode is Mode.LOCK_STEP:
        terms |= {"spares": 1, "escalation": 1, "commit_reveal": True}
    made = build_deployment(replicas=5, committee=3, audit_rate=0.0, terms=terms)
    return replace(made, trust=replace(made.trust, referee=True))


WEIGHTS = st.floats(LEAST_WEIGHT, MOST_WEIGHT)
NAMES = [f"DSegment{segment}Replica{index}" for segment in (0, 1) for index in range(5)]


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(Mode),
    behaviours=st.dictionaries(
        st.tuples(st.just(0), st.integers(0, 1), st.integers(0, 4)),
        st.sampled_from(Behaviour),
    ),
    weights=st.dictionaries(st.sampled_from(NAMES), WEIGHTS),
    label=st.sampled_from("abcd"),
)
def test_whatever_replicas_do_an_honest_entry_s_receipt_holds(
    mode: Mode,
    behaviours: dict[tuple[int, int, int], Behaviour],
    weights: dict[str, float],
    label: str,
) -> None:
    """With a referee there is always an answer, and honest replicas are not named."""
    of = deployment(mode)
    draft = build_draft(of, behaviours=behaviours, weights=weights, label=label)
    bundle = parse_bundle(canonical_json(draft.bundle().to_json()))
    assert bundle == draft.bundle()
    statement = draft.receipt.to_statement()
    assert Receipt.from_statement(statement).to_statement() == statement
    claims = verify_bundle(bundle, of.trust, now=AT).claims
    liars = {
        f"DSegment{segment}Replica{index}"
        for (_, segment, index), behaviour in behaviours.items()
        if behaviour.endswith("liar")
    }
    # Liars of one mind can be a quorum, and then it is the others who dissent.
    if not any(_a_quorum_lies(draft.receipt, liars)):
        assert {d["replica"] for d in claims["dissenters"]} <= liars


def _a_quorum_lies(receipt: Receipt, liars: set[str]) -> list[bool]:
    tallies = [record.tally for record in receipt.infers[0].segments]
    if (chains := receipt.infers[0].chains) is not None:
        # A chain is as good as the worst of its replicas.
        return [len(liars) > 1 or not chains.tally.accepted]
    return [tally.medoid in liars for tally in tallies]
