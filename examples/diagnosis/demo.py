"""The whole story on one machine: train, seal, serve, be lied to, verify.

    python -m examples.diagnosis.demo       (or: make demo)

1. trains a classifier on the Wisconsin diagnostic data and exports it
2. splits it in two and seals both segments; a broker keeps the keys
3. serves each segment by three replicas, each under another kind of evidence, which
   get their keys from the broker, and sends the whole test set
4. serves again, one replica lying and another one killed on the way; then that one's
   machine is withdrawn, and gets no key any more
5. sets proofs up and serves with provers: a critical request is answered at once and
   proven seconds later
6. compares every answer with the whole model's, verifies every receipt offline, and
   the broker's log

Everything it makes lies in ``.demo/``, the sealed plan in ``models/diagnosis``. Exits
with 1 if a promise is broken.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bentoml_secure.errors import SecureError
from bentoml_secure.receipts.trust import Trust, parse_trust
from examples.diagnosis.asking import Asked, ask_all, await_all
from examples.diagnosis.attested import audit_table, roster
from examples.diagnosis.commands import command, say
from examples.diagnosis.judging import (
    alter,
    holds_offline,
    is_rejected,
    verify_by_command,
)
from examples.diagnosis.killing import Killer
from examples.diagnosis.kinds import Machines, machines
from examples.diagnosis.owner import (
    Entry,
    Owner,
    Withdrawal,
    files_with,
    windows_of,
)
from examples.diagnosis.processes import Served, serve
from examples.diagnosis.promises import (
    Check,
    check_attested,
    check_released,
    check_runs,
    check_sealed,
    check_withdrawal,
)
from examples.diagnosis.proving import (
    PROOFS,
    Proven,
    ask,
    check_proven,
    deployment,
    set_up,
    shown,
)
from examples.diagnosis.report import Run, Verifications, table
from examples.diagnosis.train import Data, Floats, export, load_data, train

FOLDER = Path(".demo")
MODEL = FOLDER / "owner" / "diagnosis.onnx"
DEV_ROOT = FOLDER / "dev-root"
TRUST = FOLDER / "trust.toml"
PROVEN_TRUST = FOLDER / "proven-trust.toml"
SEALED = Path("models/diagnosis")

RUNNERS = tuple(
    tuple(f"DiagnosisSegment{segment}Replica{replica}" for replica in range(3))
    for segment in range(2)
)
NAMES = tuple(name for names in RUNNERS for name in names)
LIAR, VICTIM = RUNNERS[0][1], RUNNERS[1][2]
KILL_BEFORE = 20

SCENARIO = "critical"
"""Asks that those who agree sit on two platforms, as their evidence says."""


def main() -> int:
    """Run the demo; return the exit code."""
    # As by the keyboard: what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    started = time.monotonic()
    for folder in (FOLDER, SEALED, PROOFS):
        shutil.rmtree(folder, ignore_errors=True)
    data = load_data()
    say(f"training on {len(data.train_features)} samples, exporting to {MODEL} ...")
    export(train(data), MODEL)
    try:
        code = tell(data)
    except (SecureError, RuntimeError) as error:
        say(f"FAILED  {error}")
        code = 1
    say(f"\n{time.monotonic() - started:.0f} s in all")
    return code


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What both runs have in common.

    Attributes:
        data: The test part is sent.
        expected: float32[samples], what the whole model says.
        environment: Of the deployment's processes.
        owner: Of the model.
        machines: What the replicas attest themselves with.
    """

    data: Data
    expected: NDArray[np.float32]
    environment: Mapping[str, str]
    owner: Owner
    machines: Machines


def tell(data: Data) -> int:
    """Tell the story of the model in ``MODEL``; return the exit code."""
    with ExitStack() as running:
        command("dev-root", DEV_ROOT)
        made = running.enter_context(machines(FOLDER, DEV_ROOT, RUNNERS))
        # What a deployment is: its owner's own files.
        named = ["--scenarios", "services/scenarios.toml", "--service", "Diagnosis"]
        named += ["--policy", str(made.policy), "--replicas", "3"]
        owner = Owner(folder=MODEL.parent, deployment=tuple(named))
        owner.seal(MODEL, SEALED)
        command("trust", SEALED, *named, "--out", TRUST)
        say("\nsetting proofs up ...")
        set_up(owner, SEALED, made.policy, data.test_features)
        words = deployment(made.policy)
        command("trust", SEALED, *words, "--out", PROVEN_TRUST)
        environment = {
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_SECURE_DEV_ROOT": str(DEV_ROOT.resolve()),
            "BENTOML_SECURE_POLICY": str(made.policy.resolve()),
        }
        say("\nstarting the broker ...")
        broker = running.enter_context(owner.serve_broker(environment))
        own = {**made.environment, "BENTOML_SECURE_BROKER": broker.url}
        stage = Stage(
            data=data,
            expected=whole_model(MODEL, data.test_features),
            environment={**environment, **own},
            owner=owner,
            machines=made,
        )
        story = ask_twice(stage)
        proven = ask_proven(stage)
    by_command = verify_by_command(story.hurt.asked[0].bundle, TRUST)
    show(stage, story)
    say(f"{shown(proven.asked[0].bundle)}\n")
    checks = [*judge(stage, story), *check_proven(proven)]
    print(*checks, sep="\n")
    return 0 if by_command and all(check.holds for check in checks) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What happened.

    Attributes:
        honest: The first run.
        hurt: The second.
        killer: Who killed in it.
        withdrawal: After it.
        noted: Digest of the broker's last entry after the first run.
        log: The broker's, verified, from its first entry to its last.
    """

    honest: Run
    hurt: Run
    killer: Killer
    withdrawal: Withdrawal
    noted: str
    log: Sequence[Entry]


def ask_twice(stage: Stage) -> Story:
    """Serve and ask, honest and hurt; then withdraw the machine of one replica."""
    honest = run_once(
        "all honest", "services.diagnosis:Diagnosis", stage, FOLDER / "honest"
    )
    noted = stage.owner.audit()[-1]["digest"]
    killer = Killer(victim=VICTIM, before=min(KILL_BEFORE, len(stage.expected) // 2))
    withdrawal = Withdrawal(owner=stage.owner, victim=VICTIM)

    def withdraw(served: Served, asked: Sequence[Asked]) -> None:
        withdrawal.act(served, asked)
        sample, folder = stage.data.test_features[:1], FOLDER / "hurt" / "after"
        again = ask_all(served.url, TRUST, sample, folder, scenario=SCENARIO)
        withdrawal.after = again[0]

    hurt = run_once(
        "one lying, one killed",
        "examples.diagnosis.tampered:Diagnosis",
        stage,
        FOLDER / "hurt",
        before=killer.act,
        afterwards=withdraw,
    )
    return Story(
        honest=honest,
        hurt=hurt,
        killer=killer,
        withdrawal=withdrawal,
        noted=noted,
        log=stage.owner.audit(noted),
    )


def judge(stage: Stage, story: Story) -> Iterator[Check]:
    """Return every promise, kept or broken."""
    honest, hurt = story.honest, story.hurt
    altered = alter(hurt.asked[0].bundle)
    yield from check_runs(
        honest,
        hurt,
        liar=LIAR,
        killed=VICTIM,
        altered_rejected=is_rejected(altered, read_trust()),
    )
    kinds = dict(zip(NAMES, stage.machines.kinds * len(RUNNERS), strict=True))
    for run in (honest, hurt):
        yield from check_attested(run, kinds)
    windows = windows_of(MODEL)
    yield check_sealed(
        plain=sorted(stage.owner.plan.glob("*.onnx")),
        at_owner=files_with(windows, stage.owner.plan),
        at_host=files_with(windows, SEALED, FOLDER / "honest", FOLDER / "hurt"),
    )
    yield check_released(story.log, NAMES)
    yield from check_withdrawal(
        story.withdrawal.refusal,
        story.withdrawal.after,
        victim=VICTIM,
        expected=stage.expected[0],
    )


def ask_proven(stage: Stage) -> Proven:
    """Serve with provers, and ask critical requests."""
    return ask(
        FOLDER / "proven",
        PROVEN_TRUST,
        stage.environment,
        stage.data.test_features,
        stage.expected,
    )


def show(stage: Stage, story: Story) -> None:
    """Print who was attested how, the broker's log, and the figures of both runs."""
    say("\nWho was attested how, by the last receipt of the first run:\n")
    say(roster(story.honest.asked[-1].verdict))
    say(stage.machines.note)
    say("The broker's log: one unbroken chain, with the entry noted after that run.\n")
    say(f"$ bentoml-secure broker audit {stage.owner.store} --head {story.noted}")
    say(audit_table(story.log))
    say(f"\n{table([story.honest, story.hurt])}\n\n{story.killer.story(story.hurt)}\n")


def whole_model(path: Path, features: Floats) -> NDArray[np.float32]:
    """Run the unsplit model on plain ONNX Runtime, one sample at a time, as served.

    Args:
        path: The ONNX file.
        features: float32[samples, 30].

    Returns:
        float32[samples]
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    )
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    outputs = [session.run(None, {"features": row[None]})[0] for row in features]
    return np.concatenate(outputs)[:, 0]


def run_once(
    title: str,
    target: str,
    stage: Stage,
    folder: Path,
    *,
    before: Callable[[Served, int], None] = lambda served, number: None,
    afterwards: Callable[[Served, Sequence[Asked]], None] = lambda served, asked: None,
) -> Run:
    """Serve, send the whole test set, and judge every receipt again from its file.

    Args:
        title: Of the run.
        target: ``module:Class`` of the service.
        stage: What to send, and where.
        folder: Gets receipts and log.
        before: Called with the number of each request, from 0.
        afterwards: Called while it still serves.
    """
    folder.mkdir(parents=True)
    say(f"\n{title}: starting {target}, 2 segments x 3 replicas ...")
    environment = {
        **stage.environment,
        "BENTOML_HOME": str((folder / "home").resolve()),
        "BENTOML_SECURE_STORE": str((folder / "receipts.sqlite").resolve()),
    }
    count = len(stage.expected)
    log = folder / "serve.log"
    with serve(target, project=Path.cwd(), environment=environment, log=log) as served:
        first = stage.data.test_features[0]
        say(f"{title}: waiting until each replica has answered once")
        await_all(served.url, TRUST, first, scenario=SCENARIO)
        say(f"{title}: asking {served.url}/diagnose, scenario {SCENARIO}")

        def progress(number: int) -> None:
            before(served, number)
            if number % 25 == 0:
                say(f"{title}: {number}/{count}")

        asked = ask_all(
            served.url,
            TRUST,
            stage.data.test_features,
            folder / "receipts",
            scenario=SCENARIO,
            before=progress,
        )
        verifications = Verifications.parse(served.metrics())
        say(f"{title}: {len(asked)}/{count}")
        afterwards(served, asked)
    say(f"{title}: judging receipts from their files")
    trust = read_trust()
    return Run(
        title=title,
        asked=asked,
        expected=stage.expected,
        labels=stage.data.test_labels,
        reverified=sum(holds_offline(one, trust) for one in asked),
        verifications=verifications,
    )


def read_trust() -> Trust:
    """Return what the caller accepts."""
    return parse_trust(TRUST.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
