"""Constant requests to a deployment whose parts fail, every answer of them judged.

An answer counts if it is the whole model's, bit for bit, and its receipt holds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from bentoml_secure import SecureClient
from bentoml_secure.attestation.appraisal import parse_policy
from bentoml_secure.attestation.dev_root import POLICY
from bentoml_secure.attestation.key_document import package_digest
from bentoml_secure.client import Answer
from bentoml_secure.consensus.ledger import Ledger
from bentoml_secure.errors import QuorumNotReached, SecureError
from bentoml_secure.receipts.receipt import SegmentRecord, parse_receipt
from bentoml_secure.receipts.trust import write_trust
from bentoml_secure.receipts.verify import State
from bentoml_secure.scenario import Configuration, parse_scenarios
from bentoml_secure.split import split_onnx
from bentoml_secure.split.plan import load_plan
from bentoml_secure.statements import utc_now
from tests.harness import Project, Served, make_project, sample
from tests.service.deployments import eventually

HERE = Path(__file__).parent
FAULTED, REFEREED = "faulted:Faulted", "faulted:Refereed"
RESTART_SECONDS = 60.0
"""For the supervisor to start a worker anew, on a machine that is busy."""

_SEEDS = itertools.count(30_000)


def faulting_project(folder: Path) -> Project:
    """Make a project with both services of ``faulted.py``."""
    project = make_project(folder)
    split_onnx(project.model, folder / "models" / "whole", segments=1)
    project.add(HERE / "faulted.py")
    for name in ("faulted.toml", "refereed.toml"):
        shutil.copyfile(HERE / name, folder / name)
    return project


def write_trust_file(
    project: Project, service: str, *, referee: bool = False, tag: str = ""
) -> Path:
    """Write a caller's trust file for one of the two services.

    Args:
        project: Of ``faulting_project``.
        service: Faulted or Refereed.
        referee: Whether a referee's word is taken.
        tag: Tells files apart.
    """
    has_referees = service == "Refereed"
    plan = load_plan(project.plan)
    policy = parse_policy((project.dev_root / POLICY).read_bytes())
    file = project.folder / f"{service.lower()}.toml"
    scenarios = parse_scenarios(file.read_bytes())
    configuration = Configuration(
        service=service,
        replicas=5 if has_referees else 3,
        segments=len(plan.segments),
        referees=has_referees,
        scenarios=scenarios,
        policy=policy.to_json(),
    )
    path = project.folder / f"trust-{service}{tag}.toml"
    text = write_trust(
        plan_digests=[plan.digest],
        config_digests=[configuration.digest],
        package_digests=[package_digest()],
        scenarios={name: s.digest for name, s in scenarios.by_name.items()},
        policy=policy,
        minimum_quorum=2,
        referee=referee,
    )
    path.write_text(text)
    return path


def whole(project: Project) -> Project:
    """Return the project with the plan of ``Refereed``: one segment."""
    return replace(project, plan=project.folder / "models" / "whole")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beset:
    """A running deployment that things happen to.

    Attributes:
        service: Name of its entry.
        url: Of the entry.
        project: Whose plan it serves.
        trust: Trust file that accepts it.
        ledger: Its reputations.
    """

    service: str
    url: str
    project: Project
    trust: Path
    ledger: Path

    def client(
        self, scenario: str | None = None, trust: Path | None = None, **settings: Any
    ) -> SecureClient:
        """Return a client that believes this deployment only."""
        trust = trust or self.trust
        return SecureClient(self.url, trust, scenario=scenario, **settings)

    def ask(self, client: SecureClient) -> Answer:
        """Ask something new; the answer must be the whole model's, bit for bit."""
        features = sample(3, seed=next(_SEEDS))
        answer = client.call("diagnose", {"features": features.tolist()})
        got = np.asarray(answer.value["malignant"], np.float32)
        np.testing.assert_array_equal(got, self.project.expected(features)[:, 0])
        return answer

    def replica(self, number: int, segment: int = 0) -> str:
        """Return a replica's name."""
        return f"{self.service}Segment{segment}Replica{number}"

    def referee(self, segment: int = 0) -> str:
        """Return the name of a segment's referee."""
        return f"{self.service}Segment{segment}Referee"

    def switched(self, *names: str) -> contextlib.AbstractContextManager[None]:
        """Switch faults of ``faulted.py`` on, and off at the end."""
        return self.project.switched(*names)

    def forget(self) -> None:
        """Make every replica a newcomer again, and wait until the entry knows."""
        with contextlib.closing(Ledger(self.ledger, make=False)) as ledger:
            ledger.reset(None, now=utc_now())
            eventually(
                lambda: len(ledger.accounts()) > 0 or None,
                seconds=10,
                what="the entry has opened new accounts",
            )

    def wait_until_whole(self) -> None:
        """Wait until every replica that is asked answers."""
        with self.client() as client:
            eventually(
                lambda: not absent(try_to(lambda: self.ask(client))),
                seconds=RESTART_SECONDS,
                what=f"every replica of {self.service} is back",
            )


def try_to(ask: Callable[[], Answer]) -> Answer | None:
    """Return an answer, or None where it is refused."""
    try:
        return ask()
    except SecureError:
        return None


def absent(answer: Answer | None) -> set[str]:
    """Return who is named absent by a receipt; "refused" where there is none."""
    if answer is None:
        return {"refused"}
    return {missing["replica"] for missing in answer.verdict.claims["absent"]}


def record_of(answer: Answer, segment: int = 0) -> SegmentRecord:
    """Return what a receipt says of a segment."""
    (infer,) = parse_receipt(answer.bundle.receipt).infers
    return infer.segments[segment]


def seats_of(answer: Answer, segment: int = 0) -> tuple[str, ...]:
    """Return a segment's committee."""
    return tuple(m.replica for m in record_of(answer, segment).tally.committee)


@dataclass(kw_only=True)
class Load:
    """Requests from several threads until the context ends.

    Attributes:
        target: Who is asked.
        scenario: Under which.
        threads: How many ask at once.
        answers: That were right, with receipts that hold.
        refusals: For want of a quorum.
        failures: Everything else: a wrong answer, a receipt that does not hold.
    """

    target: Beset
    scenario: str | None = None
    threads: int = 2
    answers: list[Answer] = field(default_factory=list)
    refusals: list[QuorumNotReached] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _running: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for _ in range(self.threads):
            thread = threading.Thread(target=self._ask)
            thread.start()
            self._running.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._running:
            thread.join()

    def _ask(self) -> None:
        with self.target.client(self.scenario) as client:
            while not self._over.is_set():
                try:
                    answer = self.target.ask(client)
                except QuorumNotReached as refused:
                    self.refusals.append(refused)
                    # Who is refused asks for evidence anew, of which there is so much.
                    self._over.wait(0.1)
                except (SecureError, AssertionError) as error:
                    notes = getattr(error, "__notes__", [])
                    self.failures.append(f"{error!r} {notes}")
                else:
                    if answer.verdict.state is not State.ACCEPTED:
                        self.failures.append(f"{answer.verdict}")
                    self.answers.append(answer)

    @property
    def count(self) -> int:
        """Requests that have ended."""
        return len(self.answers) + len(self.refusals) + len(self.failures)

    def go_on(self, requests: int = 12, *, seconds: float = 60.0) -> None:
        """Wait until so many more have ended that began after this."""
        wanted = self.count + self.threads + requests
        eventually(lambda: self.count >= wanted, seconds=seconds, what="load goes on")

    def go_on_until(self, look: Callable[[], bool], *, what: str) -> None:
        """Wait until something is seen under load."""
        eventually(look, seconds=RESTART_SECONDS, what=what)

    def require_unharmed(self) -> None:
        """Require that nothing failed, was wrong or was refused so far."""
        assert not self.failures, self.failures
        assert not self.refusals, [str(refused) for refused in self.refusals]
        assert self.answers, "nothing was answered"

    def require_refusals(self, missing: Sequence[str]) -> None:
        """Require refusals, each with a tally that names who did not answer."""
        assert not self.failures, self.failures
        assert self.refusals, f"{len(self.answers)} answers, and nothing was refused"
        for refused in self.refusals:
            tally = refused.tally
            assert tally["accepted"] is False
            named = {*tally["pending"], *(a["replica"] for a in tally["absent"])}
            assert named & {*missing}, tally
        self.refusals.clear()

    def recover(self) -> None:
        """Wait until it is refused no more, and begin to count anew."""

        def goes_on() -> bool:
            self.refusals.clear()
            before = len(self.answers)
            eventually(
                lambda: len(self.answers) + len(self.refusals) >= before + 4,
                seconds=RESTART_SECONDS,
                what="requests end",
            )
            return not self.refusals

        eventually(goes_on, seconds=RESTART_SECONDS, what="answers again")
        assert not self.failures, self.failures


@contextlib.contextmanager
def suspended(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop processes (SIGSTOP), and let them go on at the end (SIGCONT)."""
    try:
        for process in processes:
            process.suspend()
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def kill(processes: Sequence[psutil.Process]) -> None:
    """End processes with SIGKILL, all before the first has been noticed."""
    for process in processes:
        process.kill()


def workers(served: Served, names: Sequence[str]) -> list[psutil.Process]:
    """Return services' processes, once each has one."""
    return eventually(
        lambda: _found(served, names), seconds=RESTART_SECONDS, what=f"{names} run"
    )


def _found(served: Served, names: Sequence[str]) -> list[psutil.Process] | None:
    found = served.workers()
    return [found[name] for name in names] if {*names} <= {*found} else None


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system of a few megabytes; it is gone at the end.

    Raises:
        PermissionError: This user may not.
    """
    folder.mkdir()
    size = ["-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(
        ["mount", "-t", "tmpfs", *size], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Fill a file system to the last byte, and make room again at the end."""
    filler = folder / "filler"
    descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
    try:
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, bytes(1 << 12))
        yield
    finally:
        os.close(descriptor)
        filler.unlink()


@contextlib.contextmanager
def confined(process: psutil.Process) -> Iterator[None]:
    """Let a process write no file beyond a page, as a quota would."""
    before = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (1 << 12, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, before)


def seconds_of(answer: Answer) -> float:
    """Return how long the caller waited for an answer, its receipt left out."""
    return (answer.answered_at - answer.question.asked_at).total_seconds()


def median_seconds(answers: Sequence[Answer]) -> float:
    """Return the median of how long callers waited."""
    return float(np.median([seconds_of(answer) for answer in answers]))
