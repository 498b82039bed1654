"""Networks that are cut or slow, between an entry and replicas on other hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.cli import main as cli
from bentoml_secure.client import Answer
from bentoml_secure.consensus.accounts import Entry
from bentoml_secure.consensus.ledger import Ledger
from bentoml_secure.consensus.reputation import Outcome, newcomer
from bentoml_secure.serving.settings import REPUTATION, TRIALS
from tests.harness import Project, Served, free_port, sample, wait_until_ready
from tests.service.delaying import Delaying
from tests.service.deployments import each_alone, eventually
from tests.service.faulting import (
    FAULTED,
    RESTART_SECONDS,
    Beset,
    Load,
    absent,
    faulting_project,
    median_seconds,
    record_of,
    write_trust_file,
)
from tests.service.networks import Host, Network, ip, star, why_not

ENTRY = "Faulted"
SEGMENT = tuple(f"{ENTRY}Segment1Replica{replica}" for replica in range(3))
REPLICAS = (*(f"{ENTRY}Segment0Replica{replica}" for replica in range(3)), *SEGMENT)
ONE_OF_EACH = (REPLICAS[1], REPLICAS[5])
TWO_OF_ONE = SEGMENT[1:]
DELAY_SECONDS = 1.0
GRACE = "no answer within 0.4 s of the decision"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The deployment on hosts of its own.

    Attributes:
        beset: How it is asked.
        runners: Each replica's process by name.
        urls: Of each replica, as the entry reaches it.
        proxies: Before two replicas, by name.
        network: Of the hosts; None where this user may have none.
    """

    beset: Beset
    runners: dict[str, Served]
    urls: dict[str, str]
    proxies: dict[str, Delaying]
    network: Network | None

    def hosts(self, names: Sequence[str]) -> list[Host]:
        """Return the namespaces of replicas, or skip the test."""
        if self.network is None:
            pytest.skip(f"no network namespaces: {why_not()}")
        return [self.network.runners[REPLICAS.index(name)] for name in names]


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spread]:
    """Each service in a namespace where that is allowed, else on a port of its own."""
    folder = tmp_path_factory.mktemp("faults-network")
    project = faulting_project(folder / "project")
    with contextlib.ExitStack() as stack:
        network = None if why_not() else stack.enter_context(star(len(REPLICAS)))
        hosts = _places(network)
        proxies = {
            name: stack.enter_context(
                Delaying(
                    hosts[name].get("host", "127.0.0.1"),
                    hosts[name]["port"],
                    network=network.entry.name if network else None,
                )
            )
            for name in ONE_OF_EACH
        }
        urls = {
            name: f"http://{hosts[name].get('host', '127.0.0.1')}:{hosts[name]['port']}"
            for name in REPLICAS
        }
        urls |= {name: proxy.url for name, proxy in proxies.items()}
        ledger = folder / "reputation.sqlite"
        hosts[ENTRY] |= {"depends": urls, "env": {REPUTATION: str(ledger)}}
        alone = each_alone(project, folder / "homes", hosts, target=FAULTED)
        running = stack.enter_context(alone)
        wait_until_ready(running[ENTRY])
        beset = Beset(
            service=ENTRY,
            url=running[ENTRY].url,
            project=project,
            trust=write_trust_file(project, ENTRY),
            ledger=ledger,
        )
        beset.wait_until_whole()
        yield Spread(
            beset=beset, runners=running, urls=urls, proxies=proxies, network=network
        )


def _places(network: Network | None) -> dict[str, dict[str, Any]]:
    names = (ENTRY, *REPLICAS)
    if network is None:
        return {name: {"port": free_port()} for name in names}
    places = (network.entry, *network.runners)
    return {
        name: {"host": place.address, "port": 3000, "prefix": place.enter}
        for name, place in zip(names, places, strict=True)
    }


@pytest.fixture(autouse=True)
def _whole(spread: Spread) -> Iterator[None]:
    yield
    spread.beset.wait_until_whole()


@contextlib.contextmanager
def cut(hosts: Sequence[Host]) -> Iterator[None]:
    """Take hosts off the network: what is sent to them is lost, nobody is told."""
    try:
        for host in hosts:
            ip("-n", host.name, "link", "set", "uplink", "down")
        yield
    finally:
        for host in hosts:
            ip("-n", host.name, "link", "set", "uplink", "up")


@contextlib.contextmanager
def delayed(proxies: Sequence[Delaying]) -> Iterator[None]:
    """Hold back what replicas answer."""
    try:
        for proxy in proxies:
            proxy.seconds = DELAY_SECONDS
        yield
    finally:
        for proxy in proxies:
            proxy.seconds = 0.0


def test_a_replica_of_each_segment_is_cut_off_and_no_request_fails(
    spread: Spread,
) -> None:
    hosts = spread.hosts(ONE_OF_EACH)
    with Load(target=spread.beset) as load:
        load.go_on(4)
        with cut(hosts):
            load.go_on()
            assert absent(load.answers[-1]) == {*ONE_OF_EACH}
        load.go_on_until(lambda: not absent(load.answers[-1]), what="both vote again")
        load.require_unharmed()


def test_two_of_a_segment_are_cut_off_and_requests_are_refused_until_they_are_back(
    spread: Spread,
) -> None:
    hosts = spread.hosts(TWO_OF_ONE)
    with Load(target=spread.beset) as load:
        load.go_on(4)
        load.require_unharmed()
        with cut(hosts):
            load.go_on(2)
            load.require_refusals(TWO_OF_ONE)
        load.recover()
        load.go_on()
        load.require_unharmed()


def reasons(answer: Answer) -> dict[str, str]:
    """Return why replicas are absent by a receipt, or by what came after it."""
    return {a["replica"]: a["reason"] for a in answer.verdict.claims["absent"]}


def test_a_replica_of_each_segment_answers_a_second_late_and_nobody_waits(
    spread: Spread,
) -> None:
    with Load(target=spread.beset) as load:
        load.go_on(8)
        quick = median_seconds(load.answers)
        load.answers.clear()
        with delayed(list(spread.proxies.values())):
            load.go_on()
            late = load.answers[2:]
        load.require_unharmed()
    assert median_seconds(late) < quick + DELAY_SECONDS / 2
    # Its vote came after the grace: it was cancelled, and the receipt says so.
    assert {reasons(answer)[name] for answer in late for name in ONE_OF_EACH} == {GRACE}


def test_who_is_late_within_the_grace_is_heard_and_who_is_not_is_hung_up_on(
    spread: Spread,
) -> None:
    name, proxy = ONE_OF_EACH[1], spread.proxies[ONE_OF_EACH[1]]
    with spread.beset.client() as client:
        spread.beset.ask(client)
        proxy.seconds = 0.25
        try:
            # Beyond the other two's decision, and within 0.4 s of it.
            heard = [spread.beset.ask(client) for _ in range(3)]
            proxy.seconds, before = 30.0, proxy.dropped
            cancelled = spread.beset.ask(client)
            # The bundle comes when the grace has ended: nothing is left of the ask
            # then, long before the replica's answer would have come.
            eventually(
                lambda: proxy.dropped == before + 1, seconds=2, what="it is hung up on"
            )
            left = proxy.holding
        finally:
            proxy.seconds = 0.0
    assert any(name in late_answers(answer) for answer in heard)
    assert all(not absent(answer) for answer in heard)
    assert reasons(cancelled) == {name: GRACE}
    assert left == 0


def late_answers(answer: Answer) -> set[str]:
    """Return who had not answered yet when a receipt was issued, and was heard."""
    pending = {name for i in (0, 1) for name in record_of(answer, i).tally.pending}
    return pending - absent(answer)


# Newcomers


def known_answers(project: Project) -> Path:
    """Make known answers of the plan, as its owner would."""
    import numpy as np

    samples, path = project.folder / "samples.npz", project.folder / "known-answers"
    np.savez(samples, features=sample(16, seed=7))
    if not path.exists():
        arguments = ["trials", "make", str(project.plan), "--samples", str(samples)]
        cli.main([*arguments, "--out", str(path)], standalone_mode=False)
    return path


@contextlib.contextmanager
def with_trials(spread: Spread, folder: Path, *, passed: int) -> Iterator[Beset]:
    """Run another entry of the same replicas, which knows answers.

    Args:
        spread: Whose replicas.
        folder: Of its files.
        passed: Trials that every replica has passed, by its ledger.
    """
    ledger = folder / "reputation.sqlite"
    passes(ledger, passed)
    known = known_answers(spread.beset.project)
    place = _places(spread.network)[ENTRY]
    place |= {
        "port": free_port(),
        "depends": spread.urls,
        "env": {REPUTATION: str(ledger), TRIALS: str(known)},
    }
    project = spread.beset.project
    with each_alone(project, folder, {ENTRY: place}, target=FAULTED) as running:
        eventually(
            lambda: "Service Faulted initialized" in running[ENTRY].log(),
            seconds=RESTART_SECONDS,
            what="the entry has started",
        )
        yield Beset(
            service=ENTRY,
            url=running[ENTRY].url,
            project=project,
            trust=spread.beset.trust,
            ledger=ledger,
        )


def passes(path: Path, count: int) -> None:
    """Make a ledger by which every replica has passed so many trials."""
    roster = {name: int(name in SEGMENT) for name in REPLICAS}
    entries = [
        Entry(
            replica=name,
            segment=segment,
            outcome=Outcome.AGREED,
            request_id=f"trial {number}",
            at=datetime.now(UTC),
            is_trial=True,
        )
        for name, segment in roster.items()
        for number in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Ledger(path)) as ledger:
        ledger.post(entries, roster=roster, opening=newcomer(on_trial=True))


def require_trials(beset: Beset, *, passed: int, seconds: float) -> None:
    """Require that nobody votes before the trials are passed, and all do after."""
    with Load(target=beset, threads=1) as load:
        load.go_on_until(lambda: bool(load.refusals), what="one is refused")
        assert load.answers == []
        said = str(load.refusals[0])
        assert "nobody was asked about segment 0, where 0 replicas may vote" in said
        assert f"on trial: {passed} of 8 trials passed" in said
        eventually(lambda: load.answers, seconds=seconds, what="they are through")
        load.go_on_until(lambda: not absent(load.answers[-1]), what="all vote")
    assert not load.failures, load.failures[:3]


def test_newcomers_vote_when_they_have_passed_the_last_of_their_trials(
    spread: Spread, tmp_path: Path
) -> None:
    # At the real pace: three seconds for each.
    with with_trials(spread, tmp_path, passed=7) as beset:
        require_trials(beset, passed=7, seconds=20)


@pytest.mark.slow
def test_newcomers_vote_when_they_have_passed_all_their_trials(
    spread: Spread, tmp_path: Path
) -> None:
    with with_trials(spread, tmp_path, passed=0) as beset:
        require_trials(beset, passed=0, seconds=90)
