"""Copying an answer instead of computing it: with commitments, and without.

The copycats here see all that goes over their neighbour's wire. Without commitments
that is enough to have a copy counted as a second opinion, which is shown first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bentoml_secure.client import Answer, SecureClient
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import QuorumNotReached
from bentoml_secure.serving.exchange import Exchange, encode_reveal
from bentoml_secure.serving.held import MAX_HELD
from bentoml_secure.serving.sealed import REVEAL
from bentoml_secure.session.bodies import SealedCall
from bentoml_secure.session.keys import Session
from bentoml_secure.split.plan import Plan, load_plan
from bentoml_secure.tensors import encode
from tests.attacks.raiders import Opened, Raider, ask, new_call
from tests.attacks.targets import REPLICAS, Rogues, Target
from tests.harness import sample

FIRST, SECOND, THIRD = (f"AttackedSegment1Replica{index}" for index in range(3))
REVEAL_PATH = "/bsec/v1/reveal"


@pytest.fixture(scope="module")
def careful(besieged: Target) -> Iterator[SecureClient]:
    """A client that asks for commitments."""
    with SecureClient(besieged.url, besieged.trust, scenario="committed") as client:
        yield client


@pytest.fixture(scope="module")
def strict(besieged: Target) -> Iterator[SecureClient]:
    """One that asks all three to agree, and for commitments."""
    with SecureClient(besieged.url, besieged.trust, scenario="committed-all") as client:
        yield client


@pytest.fixture(autouse=True)
def whole_again(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "besieged" in request.fixturenames:
        request.getfixturevalue("besieged").wait_until_whole()


def diagnose(client: SecureClient) -> Answer:
    return client.call("diagnose", {"features": sample(2).tolist()})


def record(answer: Answer, segment: int = 1) -> dict[str, Any]:
    """Return what the receipt says of one segment."""
    document = parse_json(
        answer.bundle.receipt.payload, what="receipt", max_bytes=1 << 20
    )
    found: dict[str, Any] = document["predicate"]["infers"][0]["segments"][segment]
    return found


def reasons(refused: QuorumNotReached) -> dict[str, str]:
    return {a["replica"]: a["reason"] for a in refused.tally["absent"]}


def test_without_commitments_a_copy_counts_as_a_second_opinion(
    besieged: Target, rogues: Rogues
) -> None:
    """The undefended case: one replica computed, and a quorum of two agreed."""
    with rogues.behaving(**{SECOND: "copycat", THIRD: "dead"}):
        answer = besieged.ask()
    assert sorted(record(answer)["tally"]["clique"]) == [FIRST, SECOND]
    assert answer.verdict.claims["dissenters"] == []
    assert record(answer)["commitments"] == {}


def test_with_commitments_a_copy_is_late_and_the_receipt_says_so(
    besieged: Target, rogues: Rogues, careful: SecureClient
) -> None:
    """It cannot commit before it sees an answer, and then it is not blind."""
    with rogues.behaving(**{SECOND: "copycat", THIRD: "dead"}):
        answer = diagnose(careful)
    commitments = record(answer)["commitments"]
    assert {name: made["blind"] for name, made in commitments.items()} == {
        FIRST: True,
        SECOND: False,
    }
    named = {"infer": 0, "segment": 1, "replica": SECOND}
    assert named in answer.verdict.claims["not_blind"]


def test_a_copy_beside_those_who_compute_is_not_blind_either(
    besieged: Target, rogues: Rogues, careful: SecureClient
) -> None:
    """It may still be the second vote to arrive: then the receipt names it."""
    with rogues.behaving(**{SECOND: "copycat"}):
        for _ in range(5):
            answer = diagnose(careful)
            made = record(answer)["commitments"]
            blind = {name for name in made if made[name]["blind"]}
            assert SECOND not in blind
            agreed = record(answer)["tally"]["clique"]
            named = [n["replica"] for n in answer.verdict.claims["not_blind"]]
            needed = SECOND in agreed and len(blind & set(agreed)) < 2
            assert (SECOND in named) == needed


def test_all_honest_replicas_are_blind_where_all_must_agree(
    besieged: Target, strict: SecureClient
) -> None:
    answer = diagnose(strict)
    for segment in range(2):
        made = record(answer, segment)
        assert len(made["commitments"]) == len(made["statements"]) == 3
        assert all(entry["blind"] for entry in made["commitments"].values())
        nonces = {entry["nonce"] for entry in made["commitments"].values()}
        payloads = {e["commitment"]["payload"] for e in made["commitments"].values()}
        assert (len(nonces), len(payloads)) == (3, 3)


def test_a_copied_commitment_is_refused_and_its_maker_counts(
    besieged: Target, rogues: Rogues, strict: SecureClient, careful: SecureClient
) -> None:
    with rogues.behaving(**{SECOND: "commitment-copied"}):
        answer = diagnose(careful)
        with pytest.raises(QuorumNotReached, match="replicas agree") as refused:
            diagnose(strict)
    assert sorted(record(answer)["tally"]["clique"]) == [FIRST, THIRD]
    copied = reasons(refused.value)
    assert copied.keys() == {SECOND}
    assert f"commitment of {SECOND}: the same as that of {FIRST}" in copied[SECOND]


REFUSED = {
    "commitment-of-neighbour": "key",
    "reveals-another-answer": "opened another answer",
    "reveals-another-nonce": "opened another answer",
    "reveals-at-once": "commitment is not valid JSON",
    "reveals-never": "",
}


@pytest.mark.parametrize("behaviour", REFUSED)
def test_who_does_not_keep_to_it_is_no_voice(
    besieged: Target,
    rogues: Rogues,
    careful: SecureClient,
    strict: SecureClient,
    behaviour: str,
) -> None:
    with rogues.behaving(**{SECOND: behaviour}), besieged.watched():
        answer = diagnose(careful)
        with pytest.raises(QuorumNotReached, match="agree") as refused:
            diagnose(strict)
    assert SECOND not in record(answer)["tally"]["clique"]
    tally = refused.value.tally
    if behaviour == "reveals-never":
        assert tally["pending"] == [SECOND]
    else:
        why = reasons(refused.value)
        assert why.keys() == {SECOND}
        assert REFUSED[behaviour] in why[SECOND]


def test_a_liar_that_commits_to_its_lie_is_outvoted_and_named(
    besieged: Target, rogues: Rogues, careful: SecureClient
) -> None:
    with rogues.behaving(**{SECOND: "commitment-to-a-lie"}):
        for _ in range(10):
            answer = diagnose(careful)
            if SECOND in record(answer)["statements"]:
                break
    found = {d["replica"] for d in answer.verdict.claims["dissenters"]}
    assert found == {SECOND}
    assert record(answer)["commitments"].keys() == record(answer)["statements"].keys()


def test_one_that_is_slow_to_commit_holds_nobody_back(
    besieged: Target, rogues: Rogues, careful: SecureClient
) -> None:
    with rogues.behaving(**{SECOND: "commitment-slow"}):
        answer = diagnose(careful)
    assert sorted(record(answer)["tally"]["clique"]) == [FIRST, THIRD]


# An entry that was taken over, against the doors of real runners.


@pytest.fixture(scope="module")
def plan(target: Target) -> Plan:
    return load_plan(target.project.plan)


@pytest.fixture
def url(target: Target) -> str:
    return target.served.replica_urls()[REPLICAS[0]]


@pytest.fixture
def session(target: Target, url: str) -> Session:
    return Raider.of(target.project).session(url)


def commit(url: str, session: Session, plan: Plan) -> tuple[SealedCall, Opened]:
    """Ask a runner for a commitment; return the exchange and what it said."""
    call, segment = new_call(session), plan.segments[0]
    exchange = Exchange(
        request_id=call.request_id.hex(),
        nonce="0" * 64,
        infer_index=0,
        exchange_id=call.exchange_id.hex(),
        plan_digest=plan.digest,
        segment=segment.identity,
        input_salts={spec.name: bytes(32) for spec in segment.inputs},
        output_salts={spec.name: bytes(32) for spec in segment.outputs},
        commit=True,
    )
    return call, ask(url, call, exchange.encode() + encode({"features": sample(2)}))


def reveal(
    url: str, session: Session, exchange_id: bytes, request_id: bytes = bytes(16)
) -> Opened:
    call = new_call(session, REVEAL, request_id)
    return ask(url, call, encode_reveal(exchange_id.hex()), REVEAL_PATH)


def refused(said: Opened, reason: str, status: int = 502) -> None:
    assert said.was_sealed
    assert said.status == status
    assert reason in said.error["message"]


def test_an_answer_is_revealed_once(
    target: Target, url: str, session: Session, plan: Plan
) -> None:
    call, said = commit(url, session, plan)
    assert (said.status, said.was_sealed) == (200, True)
    assert reveal(url, session, call.exchange_id).status == 200
    refused(reveal(url, session, call.exchange_id), "revealed before")
    assert target.is_whole()


def test_nothing_is_revealed_that_was_not_committed_to(
    target: Target, url: str, session: Session
) -> None:
    refused(reveal(url, session, bytes(16)), "never committed to")
    assert target.is_whole()


def test_nothing_is_revealed_to_another_session(
    target: Target, url: str, session: Session, plan: Plan
) -> None:
    call, said = commit(url, session, plan)
    assert (said.status, said.was_sealed) == (200, True)
    other = Raider.of(target.project).session(url)
    refused(reveal(url, other, call.exchange_id), "no answer is held for this session")
    # Who committed still has it.
    assert reveal(url, session, call.exchange_id).status == 200
    assert target.is_whole()


def test_nothing_is_revealed_for_another_request(
    target: Target, url: str, session: Session, plan: Plan
) -> None:
    call, said = commit(url, session, plan)
    assert (said.status, said.was_sealed) == (200, True)
    shown = reveal(url, session, call.exchange_id, request_id=b"\1" * 16)
    refused(shown, "reveal request_id: got 0101")
    assert target.is_whole()


def test_a_flood_of_commitments_is_bounded_and_serves_on(
    target: Target, url: str, session: Session, plan: Plan
) -> None:
    """Answers nobody comes back for: so many are held, and then no more."""
    with target.watched():
        made = [commit(url, session, plan) for _ in range(MAX_HELD + 8)]
    assert [said.status for _, said in made[:MAX_HELD]] == [200] * MAX_HELD
    for _, said in made[MAX_HELD:]:
        refused(said, f"{MAX_HELD} answers wait to be revealed", status=503)
    # Those who commit to nothing are served.
    assert target.is_whole()
    for call, _ in made[:MAX_HELD]:
        reveal(url, session, call.exchange_id)
    assert commit(url, session, plan)[1].status == 200
