"""The demo's parts, small: few samples, few epochs. The whole is ``make demo``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.receipts.verify import State, Verdict
from bentoml_secure.testing.deployment import build_deployment
from bentoml_secure.testing.receipts import build_draft
from examples.diagnosis import demo, judging
from examples.diagnosis.asking import Asked
from examples.diagnosis.promises import check_runs
from examples.diagnosis.report import Run, Verifications, boxed, listed, table
from examples.diagnosis.train import Data
from tests.harness import FEATURES, REPOSITORY, sample, write_model

LIAR, VICTIM = demo.LIAR, demo.VICTIM
SAMPLES = 6


def test_the_model_trains_and_its_export_is_the_model(tmp_path: Path) -> None:
    # In a process of its own: torch's exporter must print nothing on the terminal.
    code = (
        "import sys, numpy, torch\n"
        "from examples.diagnosis.train import export, load_data, train\n"
        "data = load_data()\n"
        "model = train(data, epochs=2)\n"
        "export(model, __import__('pathlib').Path(sys.argv[1]))\n"
        "features = torch.from_numpy(data.test_features)\n"
        "numpy.savez(sys.argv[2], features=data.test_features,\n"
        "    labels=data.test_labels, said=model(features).detach().numpy())\n"
    )
    model, arrays = tmp_path / "made" / "model.onnx", tmp_path / "arrays.npz"
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(arrays)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout + done.stderr == ""
    kept = np.load(arrays)
    assert kept["features"].shape == (143, FEATURES)
    exported = demo.whole_model(model, kept["features"])
    # torch and ONNX Runtime order their sums differently.
    np.testing.assert_allclose(exported, kept["said"][:, 0], atol=1e-5)
    # Two epochs are few; a coin would be right half the time.
    assert np.mean((exported >= 0.5) == (kept["labels"] >= 0.5)) > 0.8


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the repository's, with a model of random weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in ("BENTOML_HOME", "BENTOML_SECURE_POLICY"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(REPOSITORY / "services", tmp_path / "services")
    demo.MODEL.parent.mkdir(parents=True)
    write_model(demo.MODEL)
    return tmp_path


def test_the_demo_serves_asks_kills_and_verifies(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = sample(SAMPLES)
    labels = (demo.whole_model(demo.MODEL, features) >= 0.5).astype(np.float32)
    data = Data(
        train_features=features,
        train_labels=labels,
        test_features=features,
        test_labels=labels,
    )
    code = demo.tell(data)
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "FAILED" not in printed
    assert f"{SAMPLES}/{SAMPLES}" in printed
    assert "ACCEPTED  receipt" in printed
    assert f"{VICTIM} was killed before request 4" in printed
    kept = sorted(path.name for path in Path(".demo/hurt/receipts").iterdir())
    assert len(kept) == 4 * SAMPLES


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Asked, Trust]:
    """A request's four files, and the trust file that accepts them."""
    draft = build_draft(build_deployment())
    stem = tmp_path / "000"
    bundle = stem.with_suffix(".bundle.json")
    bundle.write_text(json.dumps(draft.bundle().to_json()))
    stem.with_suffix(".request").write_bytes(draft.request)
    stem.with_suffix(".response").write_bytes(draft.response)
    stem.with_suffix(".salt").write_text(draft.salt.hex())
    asked = Asked(
        malignant=np.float32(0.5),
        verdict=verdict(),
        answer_seconds=0.1,
        verified_seconds=0.2,
        bundle=bundle,
    )
    return asked, draft.deployment.trust


def test_a_receipt_holds_by_its_files(kept: tuple[Asked, Trust]) -> None:
    asked, trust = kept
    assert judging.holds_offline(asked, trust)
    assert not judging.is_rejected(parse_bundle(asked.bundle.read_bytes()), trust)


def test_a_receipt_does_not_hold_for_another_response(
    kept: tuple[Asked, Trust], capsys: pytest.CaptureFixture[str]
) -> None:
    asked, trust = kept
    with (asked.bundle.parent / "000.response").open("ab") as response:
        response.write(b" ")
    assert not judging.holds_offline(asked, trust)
    assert "rejected" in capsys.readouterr().out


def test_one_digit_changed_is_rejected(kept: tuple[Asked, Trust]) -> None:
    asked, trust = kept
    altered = judging.alter(asked.bundle)
    before = parse_bundle(asked.bundle.read_bytes()).receipt.payload
    pairs = zip(before, altered.receipt.payload, strict=True)
    assert sum(a != b for a, b in pairs) == 1
    assert judging.is_rejected(altered, trust)


def verdict(*, dissenters: Sequence[str] = (), absent: Sequence[str] = ()) -> Verdict:
    return Verdict(
        state=State.ACCEPTED,
        receipt_id="00" * 16,
        receipt_digest="sha256-jcs-v1:" + "0" * 64,  # type: ignore[arg-type]
        simulated=True,
        claims={
            "dissenters": [{"replica": name} for name in dissenters],
            "absent": [{"replica": name} for name in absent],
        },
        unchecked=(),
    )


def made_run(title: str, *verdicts: Verdict) -> Run:
    values = np.linspace(0.1, 0.9, len(verdicts), dtype=np.float32)
    return Run(
        title=title,
        asked=[
            Asked(
                malignant=value,
                verdict=one,
                answer_seconds=0.01,
                verified_seconds=0.03,
                bundle=Path("000.bundle.json"),
            )
            for value, one in zip(values, verdicts, strict=True)
        ],
        expected=values,
        labels=(values >= 0.5).astype(np.float32),
        reverified=len(verdicts),
        verifications=Verifications(passed=7, all=8, others=("statement",)),
    )


HONEST = made_run("honest", verdict(), verdict())
HURT = made_run(
    "hurt", verdict(dissenters=[LIAR]), verdict(dissenters=[LIAR], absent=[VICTIM])
)


def broken(honest: Run, hurt: Run, *, altered_rejected: bool = True) -> list[str]:
    checks = check_runs(
        honest, hurt, liar=LIAR, killed=VICTIM, altered_rejected=altered_rejected
    )
    return [check.promise for check in checks if not check.holds]


def test_what_the_demo_promises_can_hold() -> None:
    assert broken(HONEST, HURT) == []


@pytest.mark.parametrize(
    ("honest", "hurt", "altered_rejected", "promise"),
    [
        pytest.param(
            replace(HONEST, expected=np.nextafter(HONEST.expected, np.float32(1))),
            HURT,
            True,
            "honest: answers are the whole model's, bit for bit",
            id="an answer one bit off",
        ),
        pytest.param(
            HONEST,
            replace(HURT, reverified=1),
            True,
            "hurt: every receipt holds offline",
            id="a receipt that does not hold",
        ),
        pytest.param(
            made_run("honest", verdict(), verdict(dissenters=[VICTIM])),
            HURT,
            True,
            "honest: nobody is accused",
            id="an honest replica accused",
        ),
        pytest.param(
            HONEST,
            made_run("hurt", verdict(dissenters=[LIAR]), verdict(absent=[VICTIM])),
            True,
            "hurt: the liar is named, and nobody else",
            id="a receipt that does not name the liar",
        ),
        pytest.param(
            HONEST,
            made_run(
                "hurt",
                verdict(dissenters=[LIAR]),
                verdict(dissenters=[LIAR, "DiagnosisSegment0Replica0"]),
                verdict(dissenters=[LIAR], absent=[VICTIM]),
            ),
            True,
            "hurt: the liar is named, and nobody else",
            id="somebody else accused",
        ),
        pytest.param(
            HONEST,
            made_run("hurt", verdict(dissenters=[LIAR]), verdict(dissenters=[LIAR])),
            True,
            "hurt: the killed replica was missed",
            id="nobody missed the killed one",
        ),
        pytest.param(
            HONEST,
            HURT,
            False,
            "a receipt with one digit changed is rejected",
            id="an altered receipt accepted",
        ),
    ],
)
def test_a_broken_promise_is_found(
    honest: Run, hurt: Run, altered_rejected: bool, promise: str
) -> None:
    assert broken(honest, hurt, altered_rejected=altered_rejected) == [promise]


def test_the_table_is_a_box_with_a_column_for_each_run() -> None:
    lines = table([HONEST, HURT]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0] == lines[2] == lines[-1]
    assert lines[1].split("|")[2:4] == [" honest       ", f" {'hurt':<19} "]
    assert "7/8 (87.50%)" in lines[-3]
    assert "statement x1" in lines[-2]
    assert "Segment0Replica1 x2" in "\n".join(lines)


def test_a_box_is_as_wide_as_its_widest_cells() -> None:
    assert boxed([["", "a"], ["long", "b"]]) == (
        "+------+---+\n|      | a |\n+------+---+\n| long | b |\n+------+---+"
    )


def test_nobody_is_said_in_a_word() -> None:
    assert listed(HONEST.named(Asked.dissenters)) == "none"


def test_the_verification_rate_counts_every_mechanism() -> None:
    name = "bentoml_secure_verifications_total"
    text = (
        f"# TYPE {name} counter\n"
        f'{name}{{mechanism="statement",segment="0",result="pass"}} 5.0\n'
        f'{name}{{mechanism="consensus",segment="1",result="pass"}} 2.0\n'
        f'{name}{{mechanism="statement",segment="1",result="fail"}} 1.0\n'
    )
    assert Verifications.parse(text) == Verifications(
        passed=7, all=8, others=("statement",)
    )
    assert str(Verifications.parse("")) == "0/0 (0.00%)"


def test_the_whole_model_runs_one_sample_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_model(path)
    features = sample(3)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (whole,) = session.run(None, {"features": features})
    said = demo.whole_model(path, features)
    assert said.shape == (3,)
    np.testing.assert_allclose(said, np.asarray(whole)[:, 0], rtol=1e-5)
