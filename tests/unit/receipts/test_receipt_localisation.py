"""Attacks on the attachment "localisation": who is said to be at fault in a chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bentoml_secure.audit.recompute import Recomputation, Verdict
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.receipts.attachments import issue_attachment, verify_attachment
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.localisation import (
    LOCALISATION,
    Localisation,
    issue_localisation,
    longest_localisation,
)
from bentoml_secure.receipts.receipt import RequiredAttachment
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.scenario import Mode, referee_name
from bentoml_secure.statements import format_time, sign_statement, verify_statement
from bentoml_secure.testing.deployment import SERVICE, Deployment, Process
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from bentoml_secure.testing.tampering import another, with_receipt
from tests.unit.receipts.judging import AT, accepted, deploy, order, rejected, seat

REFEREE, NEXT = referee_name(SERVICE, 0), referee_name(SERVICE, 1)


@pytest.fixture(scope="module")
def localised() -> Deployment:
    return deploy(replicas=5, committee=3, mode=Mode.END_TO_END, referee=True)


@pytest.fixture(scope="module")
def draft(localised: Deployment) -> Draft:
    """The first replica of the first chain lies; the second works rightly on that."""
    return lying(localised, 0)


def chain(deployment: Deployment) -> tuple[str, str]:
    return order(deployment, 0)[0], order(deployment, 1)[0]


def lying(deployment: Deployment, *segments: int) -> Draft:
    names = chain(deployment)
    acting = {(0, s, seat(names[s])): Behaviour.LIAR for s in segments}
    return build_draft(deployment, behaviours=acting)


def made_of(draft: Draft) -> tuple[Recomputation, ...]:
    """Return what the referees make of the one dissenting chain."""
    (made,) = draft.faults.values()
    return made


def with_made(draft: Draft, *made: Recomputation) -> Draft:
    return replace(draft, faults=dict.fromkeys(draft.faults, made))


def changed(draft: Draft, index: int = 0, **changes: Any) -> Draft:
    """Return the draft with one segment's recomputation changed."""
    made = list(made_of(draft))
    made[index] = replace(made[index], **changes)
    return with_made(draft, *made)


def said_by(draft: Draft, process: Process, index: int = 0, **changes: Any) -> Draft:
    """Let a process recompute a segment, and say what the referee did or another."""
    key = draft.deployment.referees[index].signing.public
    statement = made_of(draft)[index].statement
    assert statement is not None
    said = verify_statement(statement, key)
    said = replace(said, key_document=process.document.digest, **changes)
    envelope = sign_statement(process.signing, said)
    return changed(draft, index, replica=process.name, statement=envelope)


def restated(draft: Draft, index: int = 0, **changes: Any) -> Draft:
    return said_by(draft, draft.deployment.referees[index], index, **changes)


# Honest ones.


@pytest.mark.parametrize("segments", [(0,), (1,), (0, 1)])
def test_liars_are_named_and_who_worked_on_what_is_wrong_is_not(
    segments: tuple[int, ...], localised: Deployment
) -> None:
    claims = accepted(lying(localised, *segments), localised)
    assert claims["dissenting_chains"] == [{"infer": 0, "chain": [*chain(localised)]}]
    assert claims["dissenters"] == [
        {
            "infer": 0,
            "segment": index,
            "replica": chain(localised)[index],
            "where": LOCALISATION,
        }
        for index in segments
    ]


def test_where_all_agree_there_is_none(localised: Deployment) -> None:
    draft = build_draft(localised)
    assert draft.receipt.attachments == ()
    parties = {party["name"] for party in accepted(draft, localised)["parties"]}
    assert not parties & {REFEREE, NEXT}


def test_a_segment_that_nobody_recomputed_costs_nobody(localised: Deployment) -> None:
    acting = {(0, 0, seat(chain(localised)[0])): Behaviour.LIAR}
    out = {(0, 0): Behaviour.ABSENT}
    claims = accepted(
        build_draft(localised, behaviours=acting, referees=out), localised
    )
    assert claims["dissenters"] == []
    assert [(a["replica"], a["where"]) for a in claims["absent"]] == [
        (REFEREE, LOCALISATION)
    ]


def test_it_may_be_on_its_way_until_its_deadline(
    draft: Draft, localised: Deployment
) -> None:
    bundle = draft.bundle(attach=False)
    verdict = verify_bundle(bundle, localised.trust, now=AT)
    assert verdict.state is State.PROVISIONAL
    assert verdict.claims["missing_attachments"] == [LOCALISATION]
    found = rejected(bundle, localised, now=AT + timedelta(minutes=1))
    assert found == {f"attachments {LOCALISATION}": "missing"}


def test_a_distance_beyond_equal_commitments_is_the_entry_s_word(
    draft: Draft, localised: Deployment
) -> None:
    cleared = changed(draft, distance=0.0, verdict=Verdict.AGREES)
    claims = accepted(cleared, localised)
    assert claims["dissenters"] == []
    assert len(claims["dissenting_chains"]) == 1
    assert claims["labels"]["distances"] == "asserted by the entry"


def test_it_reads_back_as_it_was_signed(draft: Draft, localised: Deployment) -> None:
    bundle = draft.bundle()
    attachment = verify_attachment(
        bundle.attachments[0], localised.entry.signing.public
    )
    found = Localisation.from_attachment(attachment)
    assert found == draft.localisation(bundle.receipt)


# Dishonest ones.


def another_segment_s(draft: Draft) -> Draft:
    return said_by(draft, draft.deployment.referees[1])


def a_replica(draft: Draft) -> Draft:
    """A friend of the liar recomputes."""
    return said_by(draft, draft.deployment.runners[0][0])


def under_another_key(draft: Draft) -> Draft:
    statement = made_of(draft)[1].statement
    return changed(draft, statement=statement)


def of_the_agreed_inputs(draft: Draft) -> Draft:
    """An honest replica is accused: it was given what is wrong, and the referee not."""
    (infer,) = draft.receipt.infers
    return restated(
        draft,
        1,
        inputs={"t1": infer.outputs["t1"], "x": infer.inputs["x"]},
        outputs={"y": infer.outputs["y"]},
    )


def of_another_request(draft: Draft) -> Draft:
    names = [order(draft.deployment, index, "another request")[0] for index in (0, 1)]
    acting = {(0, 0, seat(names[0])): Behaviour.LIAR}
    other = made_of(another(draft, behaviours=acting))
    return changed(draft, statement=other[0].statement)


def exchange_of_a_vote(draft: Draft) -> Draft:
    (infer,) = draft.receipt.infers
    assert infer.chains is not None
    name = chain(draft.deployment)[0]
    (liar,) = (r for r in draft.deployment.runners[0] if r.name == name)
    voted = verify_statement(
        infer.chains.statements[0][name], liar.signing.public
    ).exchange_id
    return restated(draft, exchange_id=voted)


def of_a_chain_that_agreed(draft: Draft) -> Draft:
    agreed = order(draft.deployment, 1)[1]
    return replace(draft, faults={**draft.faults, (0, agreed): made_of(draft)})


def of_another_infer(draft: Draft) -> Draft:
    return replace(draft, faults={(1, end): made for (_, end), made in _faults(draft)})


def _faults(draft: Draft) -> Any:
    return draft.faults.items()


def not_required(draft: Draft) -> Draft:
    return with_receipt(draft, attachments=())


def required_though_all_agree(draft: Draft) -> Draft:
    honest = build_draft(draft.deployment)
    return with_receipt(honest, attachments=draft.receipt.attachments)


def deadline_that_never_comes(draft: Draft) -> Draft:
    never = RequiredAttachment(kind=LOCALISATION, deadline="2999-01-01T00:00:00.000Z")
    return with_receipt(draft, attachments=(never,))


def too_late(draft: Draft) -> Draft:
    soon = format_time(draft.deployment.now + timedelta(milliseconds=1500))
    due = RequiredAttachment(kind=LOCALISATION, deadline=soon)
    return with_receipt(draft, attachments=(due,))


def referee_is_no_party(draft: Draft) -> Draft:
    parties = tuple(p for p in draft.receipt.parties if p.name != REFEREE)
    return with_receipt(draft, parties=parties)


Attack = Callable[[Draft], Draft]
ATTACKS: list[tuple[str, Attack, str]] = [
    ("another segment's", another_segment_s, "{} segment 0 replica"),
    ("of another segment", another_segment_s, f"party {NEXT} segment"),
    ("a replica", a_replica, "{} segment 0 replica"),
    ("no party", referee_is_no_party, f"{{}} segment 0 replica {REFEREE}"),
    ("another key", under_another_key, f"{{}} segment 0 statement {REFEREE}"),
    (
        "other inputs",
        of_the_agreed_inputs,
        f"{{}} segment 1 statement {NEXT} input t1",
    ),
    (
        "another request",
        of_another_request,
        f"{{}} segment 0 statement {REFEREE} request_id",
    ),
    (
        "exchange of a vote",
        exchange_of_a_vote,
        f"{{}} segment 0 statement {REFEREE} exchange_id",
    ),
    (
        "an honest one accused",
        lambda d: changed(d, 1, verdict=Verdict.DIFFERS),
        "{} segment 1 verdict",
    ),
    (
        "an honest one accused from afar",
        lambda d: changed(d, 1, verdict=Verdict.DIFFERS, distance=1.0),
        "{} segment 1 distance",
    ),
    (
        "an honest one beyond compare",
        lambda d: changed(d, 1, verdict=Verdict.DIFFERS, distance=None),
        "{} segment 1 distance",
    ),
    (
        "a liar cleared",
        lambda d: changed(d, verdict=Verdict.AGREES),
        "{} segment 0 verdict",
    ),
    (
        "somebody else absent",
        lambda d: changed(
            d,
            replica=NEXT,
            verdict=Verdict.ABSENT,
            statement=None,
            distance=None,
            reason="lost",
        ),
        "{} segment 0 replica",
    ),
    ("first only", lambda d: with_made(d, made_of(d)[0]), "{} segments"),
    ("second only", lambda d: with_made(d, made_of(d)[1]), "{} segments"),
    ("another order", lambda d: with_made(d, *made_of(d)[::-1]), "{} segments"),
    ("a segment more", lambda d: with_made(d, *made_of(d) * 2), "{} segments"),
    ("nothing", lambda d: replace(d, faults={}), "localisation chains"),
    ("of who agreed", of_a_chain_that_agreed, "localisation chains"),
    ("of another infer", of_another_infer, "localisation chains"),
    ("not required", not_required, "attachments required"),
    ("required", required_though_all_agree, "attachments required"),
    ("too late", too_late, "attachment 0 (localisation) issued_at"),
    ("deadline", deadline_that_never_comes, "attachments localisation deadline"),
]


@pytest.mark.parametrize(
    ("attack", "finding"), [case[1:] for case in ATTACKS], ids=[c[0] for c in ATTACKS]
)
def test_attack_is_named(
    attack: Attack, finding: str, draft: Draft, localised: Deployment
) -> None:
    where = f"localisation infer 0 chain {chain(localised)[1]}"
    assert finding.format(where) in rejected(attack(draft), localised)


def signed_anew(draft: Draft, **changes: Any) -> Bundle:
    bundle = draft.bundle()
    found = replace(draft.localisation(bundle.receipt), **changes)
    envelope = issue_localisation(found, draft.deployment.entry.signing)
    return replace(bundle, attachments=(envelope,))


def test_one_of_another_receipt(draft: Draft, localised: Deployment) -> None:
    other = another(draft).bundle().receipt.payload_digest
    found = rejected(signed_anew(draft, receipt_digest=other), localised)
    assert "attachment 0 (localisation) subject" in found
    found = rejected(signed_anew(draft, receipt_id="00" * 16), localised)
    assert "attachment 0 (localisation) receipt_id" in found


def test_one_that_stands_twice(draft: Draft, localised: Deployment) -> None:
    bundle = draft.bundle()
    twice = replace(bundle, attachments=bundle.attachments * 2)
    assert rejected(twice, localised)["attachments localisation"] == "2 of them"


def test_one_that_a_referee_signed(draft: Draft, localised: Deployment) -> None:
    bundle, referee = draft.bundle(), localised.referees[0].signing
    forged = issue_localisation(draft.localisation(bundle.receipt), referee)
    found = rejected(replace(bundle, attachments=(forged,)), localised)
    assert "attachment 0" in found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"chains": None}, "want a list"),
        ({"chains": [{}]}, "is missing"),
        ({"note": "trust me"}, "unknown field 'note'"),
        ("double", "want each chain once, in order"),
        ("long", "want a list of at most 256"),
    ],
    ids=["no list", "empty chain", "more", "twice", "too many"],
)
def test_any_other_form_is_refused(
    change: Mapping[str, Any] | str, why: str, draft: Draft, localised: Deployment
) -> None:
    bundle, key = draft.bundle(), localised.entry.signing
    attachment = verify_attachment(bundle.attachments[0], key.public)
    content: Any = dict(attachment.content)
    if change == "double":
        content["chains"] = content["chains"] * 2
    elif change == "long":
        (only,) = content["chains"]
        content["chains"] = [{**only, "segments": only["segments"] * 129}]
    elif isinstance(change, Mapping):
        content |= change
    forged = replace(attachment, content=content)
    with pytest.raises(MalformedInputError, match=why):
        Localisation.from_attachment(forged)
    envelope = issue_attachment(forged, key)
    found = rejected(replace(bundle, attachments=(envelope,)), localised)
    assert why in found["attachment 0 (localisation)"]


def test_it_may_take_as_long_as_its_segments(
    draft: Draft, localised: Deployment
) -> None:
    longest = longest_localisation(draft.receipt, localised.scenario)
    assert longest == timedelta(seconds=70, milliseconds=200)


def test_a_deployment_without_referees_names_nobody() -> None:
    deployment = deploy(mode=Mode.END_TO_END)
    draft = lying(deployment, 0)
    assert draft.receipt.attachments == ()
    assert accepted(draft, deployment)["dissenters"] == []
