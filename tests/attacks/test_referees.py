"""Replicas that lie together, and what finds them out: audits, machines, a referee.

Five replicas of one segment, all of them rogue, and an honest referee; a committee has
three seats. Which replicas those are is drawn anew for every request.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from bentoml_secure.client import Answer, SecureClient
from bentoml_secure.errors import QuorumNotReached, ReceiptError
from bentoml_secure.receipts.verify import State
from bentoml_secure.serving.settings import REPUTATION
from tests.attacks.conftest import wait_for_control
from tests.attacks.targets import Rogues
from tests.harness import Project, free_port, running, sample, start_http_server
from tests.service.faulting import (
    REFEREED,
    Beset,
    absent,
    faulting_project,
    record_of,
    seats_of,
    try_to,
    whole,
    write_trust_file,
)

SERVICE = "Refereed"
REPLICAS = tuple(f"{SERVICE}Segment0Replica{replica}" for replica in range(5))
REFEREE = f"{SERVICE}Segment0Referee"
LIE = 1.01
"""What "scaled" multiplies by."""

PLATFORM = "BENTOML_SECURE_SIMULATED_PLATFORM"
MACHINES = {
    name: "machine-a" if name == REPLICAS[0] else "machine-b" for name in REPLICAS
}
"""All replicas but the first share a machine, by their evidence."""


@pytest.fixture(scope="module")
def refereed_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return whole(faulting_project(tmp_path_factory.mktemp("refereed")))


@pytest.fixture(scope="module")
def colluders(refereed_project: Project) -> Iterator[Rogues]:
    """The host of all replicas, and of the referee."""
    project, port = refereed_project, free_port()
    marker = project.folder / "unpickled-in-entry"
    command = [sys.executable, "-m", "bentoml_secure.testing.rogue", REFEREED]
    command += ["--port", str(port), "--marker", str(marker)]
    control = f"http://127.0.0.1:{port}"
    env = {f"{PLATFORM}__{name}": machine for name, machine in MACHINES.items()}
    with (
        running(
            command,
            project,
            url=control,
            home=project.folder / "home-rogue",
            env=env,
            ready_seconds=None,
        ) as host,
        httpx.Client(base_url=control) as client,
    ):
        rogues = Rogues(control=client, marker=marker, host=host)
        wait_for_control(rogues)
        yield rogues


@pytest.fixture(scope="module")
def refereed(refereed_project: Project, colluders: Rogues) -> Iterator[Beset]:
    """The entry of those replicas, asked by who takes no referee's word."""
    project = refereed_project
    ledger = project.folder / "reputation.sqlite"
    with start_http_server(
        REFEREED,
        project,
        project.folder / "home-entry",
        service_name=SERVICE,
        depends=colluders.state()["replicas"],
        env={REPUTATION: str(ledger)},
    ) as served:
        beset = Beset(
            service=SERVICE,
            url=served.url,
            project=project,
            trust=write_trust_file(project, SERVICE),
            ledger=ledger,
        )
        beset.wait_until_whole()
        yield beset


@pytest.fixture(scope="module")
def believing(refereed: Beset) -> Path:
    """A trust file that takes a referee's word."""
    return write_trust_file(refereed.project, SERVICE, referee=True, tag="-referee")


@pytest.fixture(autouse=True)
def _forgotten(refereed: Beset) -> None:
    """Hold nothing against anybody, whatever the test before did."""
    refereed.forget()


def lying(names: Sequence[str], how: str = "scaled") -> dict[str, str]:
    """Return behaviours: all of these lie alike, or each for itself ("noisy")."""
    return dict.fromkeys(names, how)


def require_lie(refereed: Beset, answer: Answer, features: object) -> None:
    """Require that an answer is the colluders', and not the model's."""
    got = np.asarray(answer.value["malignant"], np.float32)
    honest = refereed.project.expected(np.asarray(features, np.float32))[:, 0]
    np.testing.assert_allclose(got, honest * LIE, rtol=1e-5)


# f+1 that collude


def test_those_who_collude_in_a_majority_are_believed_and_the_receipt_holds(
    refereed: Beset, colluders: Rogues
) -> None:
    """The stated limit: f+1 colluders of a segment decide what is right."""
    features = sample(2, seed=9)
    with (
        colluders.behaving(**lying(REPLICAS[1:])),
        refereed.client("plain") as client,
    ):
        # Four of five: each committee of three has two of them at least.
        answers = [
            client.call("diagnose", {"features": features.tolist()}) for _ in range(8)
        ]
    for answer in answers:
        assert answer.verdict.state is State.ACCEPTED
        require_lie(refereed, answer, features)
    honest = REPLICAS[0]
    blamed = {d["replica"] for a in answers for d in a.verdict.claims["dissenters"]}
    # Who told the truth is the one that is said to have lied.
    assert blamed <= {honest}
    assert any(honest in seats_of(answer) for answer in answers)


def test_an_audit_finds_out_those_who_collude(
    refereed: Beset, colluders: Rogues
) -> None:
    features = sample(2, seed=10).tolist()
    with (
        colluders.behaving(**lying(REPLICAS[1:])),
        refereed.client("audited") as client,
    ):
        for _ in range(3):
            with pytest.raises(ReceiptError, match="audit infer 0 segment 0") as found:
                client.call("diagnose", {"features": features})
            (finding,) = found.value.findings
            assert finding.field == "audit infer 0 segment 0 answer"
            assert f"one of {REFEREE}" in finding.got
            assert finding.want.startswith("within 2e-05 of the answer served")


def test_an_audit_of_an_honest_answer_bears_it_out(
    refereed: Beset, colluders: Rogues
) -> None:
    with refereed.client("audited") as client:
        for _ in range(3):
            answer = refereed.ask(client)
            assert answer.verdict.state is State.ACCEPTED
            kinds = len(answer.bundle.attachments)
            assert kinds == (2 if record_of(answer).tally.pending else 1)


def test_those_who_collude_on_one_machine_are_one_voice(
    refereed: Beset, colluders: Rogues
) -> None:
    with refereed.client("spread") as client:
        answer = refereed.ask(client)
        where = {
            party["name"]: party["platform_id"]
            for party in answer.verdict.claims["parties"]
        }
        assert {where[name] for name in record_of(answer).tally.clique} == {
            "machine-a",
            "machine-b",
        }
        with colluders.behaving(**lying(REPLICAS[1:])):
            for _ in range(3):
                with pytest.raises(QuorumNotReached, match="with 1 voice") as refused:
                    refereed.ask(client)
                assert refused.value.tally["accepted"] is False
                assert len(refused.value.tally["clique"]) == 2


# No quorum


def test_a_liar_and_a_dead_one_make_two_more_be_asked(
    refereed: Beset, colluders: Rogues
) -> None:
    liar, dead = REPLICAS[1], REPLICAS[3]
    behaviours = {liar: "scaled", dead: "dead"}
    with (
        refereed.client("widening") as client,
        colluders.behaving(**behaviours),
    ):
        widened = asked_until_widened(refereed, client, liar)
    tally = record_of(widened).tally
    assert {*seats_of(widened)} == {*REPLICAS}
    assert (len(tally.committee), tally.quorum) == (5, 3)
    assert {*tally.clique} == {REPLICAS[0], REPLICAS[2], REPLICAS[4]}
    assert widened.verdict.state is State.ACCEPTED
    # Those that were drawn first: three, and it took both of these to widen it.
    assert {liar, dead} <= {*seats_of(widened)[:3]}
    assert dead in absent(widened)
    (dissent,) = widened.verdict.claims["dissenters"]
    assert dissent["replica"] == liar


def asked_until_widened(refereed: Beset, client: SecureClient, liar: str) -> Answer:
    """Ask until the draw has a liar and a dead one in a committee of three."""
    for _ in range(12):
        # Each lie makes it less likely that the liar is drawn.
        refereed.forget()
        for _ in range(5):
            answer = refereed.ask(client)
            if len(seats_of(answer)) > 3:
                return answer
    raise AssertionError(f"{liar} was never drawn beside the dead one")


def test_where_everybody_says_something_else_nobody_is_believed(
    refereed: Beset, colluders: Rogues
) -> None:
    with (
        colluders.behaving(**lying(REPLICAS, "noisy")),
        refereed.client("widening") as client,
        pytest.raises(QuorumNotReached, match=r"[345] distinct answers") as refused,
    ):
        refereed.ask(client)
    tally = refused.value.tally
    assert (tally["quorum"], len(tally["committee"])) == (3, 5)
    # Refused as soon as no three can agree any more.
    assert {len(group) for group in tally["groups"]} == {1}
    assert tally["accepted"] is False


def test_a_referee_is_served_where_no_quorum_is_and_believed_by_who_says_so(
    refereed: Beset, colluders: Rogues, believing: Path
) -> None:
    with (
        colluders.behaving(**lying(REPLICAS, "noisy")),
        refereed.client("ruled", believing) as client,
        refereed.client("ruled") as doubtful,
    ):
        # The referee's answer is the model's.
        answer = refereed.ask(client)
        with pytest.raises(ReceiptError, match="trust file referee") as rejected:
            refereed.ask(doubtful)
    ruling = record_of(answer).referee
    assert ruling is not None
    assert ruling.replica == REFEREE
    assert record_of(answer).tally.accepted is False
    (ruled,) = answer.verdict.claims["ruled"]
    assert (ruled["segment"], ruled["referee"]) == (0, REFEREE)
    blamed = {d["replica"] for d in answer.verdict.claims["dissenters"]}
    assert blamed == {*seats_of(answer)}
    (finding,) = rejected.value.findings
    assert (finding.got, finding.want) == ("False", "True")


def test_without_its_referee_it_is_refused(
    refereed: Beset, colluders: Rogues, believing: Path
) -> None:
    behaviours = {**lying(REPLICAS, "noisy"), REFEREE: "dead"}
    with (
        colluders.behaving(**behaviours),
        refereed.client("ruled", believing) as client,
        pytest.raises(QuorumNotReached, match="the referee did not rule"),
    ):
        refereed.ask(client)
    with refereed.client("ruled", believing) as client:
        assert try_to(lambda: refereed.ask(client)) is not None


def test_a_referee_that_lies_is_found_out_by_nobody_but_an_audits_answer(
    refereed: Beset, colluders: Rogues
) -> None:
    """Its word alone: an audit that it lies in rejects an honest receipt."""
    with (
        colluders.behaving(**{REFEREE: "scaled"}),
        refereed.client("audited") as client,
        pytest.raises(ReceiptError, match="audit infer 0 segment 0 answer"),
    ):
        refereed.ask(client)
