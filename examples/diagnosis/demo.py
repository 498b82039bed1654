"""The whole story on one machine: train, split, serve, be lied to, verify.

    python -m examples.diagnosis.demo       (or: make demo)

1. trains a classifier on the Wisconsin diagnostic data, exports it, splits it in two
2. serves both segments by three replicas each and sends the whole test set
3. serves again, one replica lying and another one killed on the way
4. compares every answer with the whole model's, verifies every receipt offline

Everything it makes lies in ``.demo/``, the split model in ``models/diagnosis``. Exits
with 1 if a promise is broken.
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bentoml_secure.cli import main as command_line
from bentoml_secure.errors import ReceiptError, SecureError
from bentoml_secure.receipts.bundle import Bundle, parse_bundle
from bentoml_secure.receipts.opening import Opening
from bentoml_secure.receipts.trust import Trust, parse_trust
from bentoml_secure.receipts.verify import State, verify_bundle
from examples.diagnosis.asking import Asked, ask_all
from examples.diagnosis.processes import Served, serve
from examples.diagnosis.report import Run, Verifications, check_runs, table
from examples.diagnosis.train import Data, Floats, export, load_data, train

FOLDER = Path(".demo")
MODEL = FOLDER / "diagnosis.onnx"
DEV_ROOT = FOLDER / "dev-root"
TRUST = FOLDER / "trust.toml"
PLAN = Path("models/diagnosis")

LIAR = "DiagnosisSegment0Replica1"
VICTIM = "DiagnosisSegment1Replica2"
KILL_BEFORE = 20


def main() -> int:
    """Run the demo; return the exit code."""
    started = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    data = load_data()
    say(f"training on {len(data.train_features)} samples, exporting to {MODEL} ...")
    export(train(data), MODEL)
    set_up()
    try:
        code = ask_twice(data)
    except (SecureError, RuntimeError) as error:
        say(f"FAILED  {error}")
        code = 1
    say(f"\n{time.monotonic() - started:.0f} s in all")
    return code


def say(text: str) -> None:
    """Print a line of progress at once."""
    print(text, flush=True)


def command(*words: str | Path) -> None:
    """Run one of our commands, shown as a person would type it."""
    arguments = list(map(str, words))
    say(f"$ bentoml-secure {' '.join(arguments)}")
    command_line.main(arguments, standalone_mode=False)


def set_up() -> None:
    """Split the model, make the development root and the callers' trust file."""
    command("split", MODEL, "--segments", "2", "--out", PLAN)
    command("dev-root", DEV_ROOT)
    # What a caller must know of the service, from its owner's own files.
    options = ["--scenarios", "services/scenarios.toml", "--service", "Diagnosis"]
    options += ["--policy", str(DEV_ROOT / "policy.toml"), "--replicas", "3"]
    command("trust", PLAN, *options, "--out", TRUST)


def ask_twice(data: Data) -> int:
    """Serve and ask, honest and hurt; print what was found; return the exit code."""
    expected = whole_model(MODEL, data.test_features)
    honest = run_once(
        "all honest", "services.diagnosis:Diagnosis", data, expected, FOLDER / "honest"
    )
    killer = Killer(victim=VICTIM, before=min(KILL_BEFORE, len(expected) // 2))
    hurt = run_once(
        "one lying, one killed",
        "examples.diagnosis.tampered:Diagnosis",
        data,
        expected,
        FOLDER / "hurt",
        killer=killer,
    )
    sample = hurt.asked[0].bundle
    altered_rejected = is_rejected(alter(sample), read_trust())
    by_command = verify_by_command(sample)
    checks = list(
        check_runs(
            honest, hurt, liar=LIAR, killed=VICTIM, altered_rejected=altered_rejected
        )
    )
    say(f"\n{table([honest, hurt])}\n\n{killer.story(hurt)}\n")
    print(*checks, sep="\n")
    return 0 if by_command and all(check.holds for check in checks) else 1


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
    data: Data,
    expected: NDArray[np.float32],
    folder: Path,
    *,
    killer: Killer | None = None,
) -> Run:
    """Serve, send the whole test set, and judge every receipt again from its file.

    Args:
        title: Of the run.
        target: ``module:Class`` of the service.
        data: The test part is sent.
        expected: float32[samples], what the whole model says.
        folder: Gets receipts and log.
        killer: Kills a replica on the way.
    """
    folder.mkdir(parents=True)
    say(f"\n{title}: starting {target}, 2 segments x 3 replicas ...")
    environment = {
        "BENTOML_HOME": str((folder / "home").resolve()),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_SECURE_DEV_ROOT": str(DEV_ROOT.resolve()),
        "BENTOML_SECURE_STORE": str((folder / "receipts.sqlite").resolve()),
    }
    log = folder / "serve.log"
    with serve(target, project=Path.cwd(), environment=environment, log=log) as served:
        say(f"{title}: asking {served.url}/diagnose")

        def before(number: int) -> None:
            if killer is not None:
                killer.act(served, number)
            if number % 25 == 0:
                say(f"{title}: {number}/{len(expected)}")

        asked = ask_all(
            served.url, TRUST, data.test_features, folder / "receipts", before=before
        )
        verifications = Verifications.parse(served.metrics())
    say(f"{title}: {len(asked)}/{len(expected)}; judging receipts from their files")
    trust = read_trust()
    return Run(
        title=title,
        asked=asked,
        expected=expected,
        labels=data.test_labels,
        reverified=sum(holds_offline(one, trust) for one in asked),
        verifications=verifications,
    )


@dataclass(slots=True, kw_only=True)
class Killer:
    """Kills one replica's process once, and watches what becomes of it.

    Attributes:
        victim: Name of the replica's service.
        before: Number of the request before which it is killed.
        watch: Seconds, from any start.
    """

    victim: str
    before: int
    watch: Callable[[], float] = time.monotonic
    _killed_pid: int | None = field(default=None, init=False)
    _killed_at: float = field(default=0.0, init=False)
    _gone_seconds: float = field(default=0.0, init=False)
    _back_before: int | None = field(default=None, init=False)

    def act(self, served: Served, number: int) -> None:
        """Kill before the chosen request; before later ones look who is there."""
        if number < self.before or self._back_before is not None:
            return
        process = served.worker(self.victim)
        if self._killed_pid is None:
            if process is None:
                raise RuntimeError(f"{self.victim} does not run")
            process.send_signal(signal.SIGKILL)
            self._killed_pid, self._killed_at = process.pid, self.watch()
            say(f"killed {self.victim}, process {process.pid}")
        elif process is not None and process.pid != self._killed_pid:
            self._gone_seconds = self.watch() - self._killed_at
            self._back_before = number

    def story(self, run: Run) -> str:
        """Return what happened in a sentence or two."""
        told = f"{self.victim} was killed before request {self.before + 1}"
        if self._back_before is None:
            return f"{told} and was not started again before the end."
        missed = [
            n for n, asked in enumerate(run.asked) if self.victim in asked.absent()
        ]
        told += (
            f"; the supervisor had started another process {self._gone_seconds:.1f} s"
            f" later.\nIts vote was missing from {len(missed)} receipts"
        )
        last = max(missed, default=self.before)
        if last + 1 == len(run.asked):
            return f"{told}, to the end."
        return f"{told}; from request {last + 2} on it was attested anew and voted."


def read_trust() -> Trust:
    """Return what the caller accepts."""
    return parse_trust(TRUST.read_bytes())


def holds_offline(asked: Asked, trust: Trust) -> bool:
    """Tell whether a receipt's files hold by themselves, bodies and salt included."""
    file = asked.bundle
    stem = file.with_name(file.name.removesuffix(".bundle.json"))
    opening = Opening(
        salt=bytes.fromhex(stem.with_suffix(".salt").read_text()),
        request=stem.with_suffix(".request").read_bytes(),
        response=stem.with_suffix(".response").read_bytes(),
    )
    try:
        verdict = verify_bundle(
            parse_bundle(file.read_bytes()),
            trust,
            now=datetime.now(UTC),
            opening=opening,
        )
    except ReceiptError as error:
        say(f"{file}: {error}")
        return False
    return verdict.state is State.ACCEPTED


def alter(file: Path) -> Bundle:
    """Return a bundle with one digit of its receipt changed: the HTTP status."""
    bundle = parse_bundle(file.read_bytes())
    payload = bundle.receipt.payload.replace(b'"status":200', b'"status":201')
    if payload == bundle.receipt.payload:
        raise RuntimeError(f"{file}: no status 200 to alter")
    receipt = dataclasses.replace(bundle.receipt, payload=payload)
    return dataclasses.replace(bundle, receipt=receipt)


def is_rejected(bundle: Bundle, trust: Trust) -> bool:
    """Tell whether a bundle is rejected."""
    try:
        verify_bundle(bundle, trust, now=datetime.now(UTC))
    except ReceiptError:
        return True
    return False


def verify_by_command(bundle: Path) -> bool:
    """Verify one receipt by the command line, shown for pasting."""
    stem = str(bundle).removesuffix(".bundle.json")
    arguments = ["verify", "receipt", str(bundle), "--trust", str(TRUST)]
    arguments += ["--input", f"{stem}.request", "--output", f"{stem}.response"]
    say("\nAnyone who has the trust file can check any of them again:\n")
    print(f"BENTOML_SECURE_SALT=$(cat {stem}.salt) .venv/bin/bentoml-secure \\")
    print(f"  {' '.join(arguments[:5])} \\\n  {' '.join(arguments[5:])}\n")
    salt = Path(f"{stem}.salt").read_text()
    output = StringIO()
    with redirect_stdout(output):
        code = command_line.main([*arguments, "--salt", salt], standalone_mode=False)
    *claims, warning, verdict = output.getvalue().splitlines()
    say(f"  ({len(claims)} lines of what it shows)\n{warning}\n{verdict}")
    return bool(code == 0)


if __name__ == "__main__":
    sys.exit(main())
