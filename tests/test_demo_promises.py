"""What the demo promises of evidence, sealed weights and releases; each can break."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bentoml_secure.attestation.appraisal import parse_policy
from bentoml_secure.attestation.attesters.tpm import KnownTpm
from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.attestation.tees.tpm_enrolment import ENROLMENT_TYPE
from bentoml_secure.receipts.verify import State, Verdict
from bentoml_secure.testing.swtpm import missing_tools
from examples.diagnosis import demo, kinds
from examples.diagnosis.asking import Asked
from examples.diagnosis.attested import audit_table, roster, short
from examples.diagnosis.commands import command, verdict_of
from examples.diagnosis.owner import Owner, Withdrawal, files_with, windows_of
from examples.diagnosis.processes import Served
from examples.diagnosis.promises import (
    Check,
    check_attested,
    check_released,
    check_sealed,
    check_withdrawal,
)
from examples.diagnosis.report import Run, Verifications
from tests.harness import REPOSITORY, write_model

KINDS = dict(zip(demo.NAMES, ("simulated", "simulated-tdx", "tpm") * 2, strict=True))
VICTIM = demo.VICTIM
PLATFORMS = {"simulated": "simulated-host", "simulated-tdx": "5b" * 16}


def party(name: str, kind: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "role": "runner",
        "platform": kind,
        "platform_id": PLATFORMS.get(kind, f"sha256:{name[-9:]}"),
        "vendor": "none (simulated)",
        "root": "sha256:" + "ab" * 32,
        "evidence": "sha256-jcs-v1:" + "cd" * 32,
        "verified_at": "2026-03-01T12:00:00Z",
        "expires_at": "2026-03-01T12:04:30Z",
        "simulated": True,
        **changes,
    }


def asked(
    kinds_shown: Mapping[str, str] = KINDS,
    *,
    absent: Sequence[str] = (),
    dissenters: Sequence[str] = (),
    malignant: float = 0.25,
) -> Asked:
    verdict = Verdict(
        state=State.ACCEPTED,
        receipt_id="00" * 16,
        receipt_digest="sha256-jcs-v1:" + "0" * 64,  # type: ignore[arg-type]
        simulated=True,
        claims={
            "parties": [
                party("Diagnosis", "simulated", role="entry"),
                *(party(name, kind) for name, kind in kinds_shown.items()),
            ],
            "segments": 2,
            "absent": [{"replica": name} for name in absent],
            "dissenters": [{"replica": name} for name in dissenters],
        },
        unchecked=(),
    )
    return Asked(
        malignant=np.float32(malignant),
        verdict=verdict,
        answer_seconds=0.01,
        verified_seconds=0.03,
        bundle=Path("000.bundle.json"),
    )


def run(*all_asked: Asked) -> Run:
    count = len(all_asked)
    return Run(
        title="run",
        asked=all_asked,
        expected=np.zeros(count, np.float32),
        labels=np.zeros(count, np.float32),
        reverified=count,
        verifications=Verifications(passed=1, all=1),
    )


def broken(checks: Sequence[Check]) -> list[str]:
    return [check.promise for check in checks if not check.holds]


OWN_KIND = "run: every replica shows its own kind of evidence, always"
APART = "run: those who agreed sit on two platforms"


@pytest.mark.parametrize(
    ("receipts", "promises"),
    [
        pytest.param([asked(), asked(absent=[VICTIM])], [], id="as it should be"),
        pytest.param(
            [asked(KINDS | {VICTIM: "simulated-tdx"})], [OWN_KIND], id="another kind"
        ),
        pytest.param(
            [asked(), asked(KINDS | {VICTIM: "simulated"})],
            [OWN_KIND],
            id="another kind in one receipt",
        ),
        pytest.param(
            [asked({n: k for n, k in KINDS.items() if n != VICTIM})],
            [OWN_KIND],
            id="a replica that was never attested",
        ),
        pytest.param(
            [
                asked(
                    KINDS | {demo.RUNNERS[0][1]: "simulated"},
                    absent=[demo.RUNNERS[0][2]],
                )
            ],
            [OWN_KIND, APART],
            id="two who agree on one platform",
        ),
        pytest.param(
            [asked(dissenters=demo.RUNNERS[1][:2])], [APART], id="one who agrees"
        ),
        pytest.param([asked(absent=demo.RUNNERS[1])], [APART], id="a segment of none"),
    ],
)
def test_kinds_and_platforms(receipts: list[Asked], promises: list[str]) -> None:
    assert broken(list(check_attested(run(*receipts), KINDS))) == promises


def test_weights_are_found_where_they_lie(tmp_path: Path) -> None:
    model, host = tmp_path / "model.onnx", tmp_path / "host"
    write_model(model)
    (host / "deep").mkdir(parents=True)
    (host / "log").write_bytes(b"nothing of it")
    windows = windows_of(model)
    assert len(windows) >= 3
    assert files_with(windows, host) == ()
    leak = host / "deep" / "leak"
    leak.write_bytes(b"before" + windows[1] + b"after")
    assert files_with(windows, host, tmp_path / "nowhere") == (leak,)
    assert model in files_with(windows, tmp_path)


FILES = (Path("segment-0.onnx"), Path("segment-1.onnx"))


@pytest.mark.parametrize(
    ("plain", "at_owner", "at_host", "holds"),
    [
        pytest.param(FILES, FILES, (), True, id="as it should be"),
        pytest.param(FILES, FILES, (Path("core"),), False, id="a leak"),
        pytest.param(FILES, FILES[:1], (), False, id="a search that is half blind"),
        pytest.param((), (), (), False, id="nothing to look for"),
    ],
)
def test_sealed(
    plain: Sequence[Path],
    at_owner: Sequence[Path],
    at_host: Sequence[Path],
    holds: bool,
) -> None:
    check = check_sealed(plain=plain, at_owner=at_owner, at_host=at_host)
    assert check.holds is holds


def released(*names: str) -> list[dict[str, Any]]:
    return [{"event": "released", "details": {"service": name}} for name in names]


@pytest.mark.parametrize(
    ("log", "holds"),
    [
        pytest.param(released(*demo.NAMES, *demo.NAMES), True, id="twice each"),
        pytest.param(released(*demo.NAMES, *demo.NAMES, VICTIM), True, id="and again"),
        pytest.param(released(*demo.NAMES, *demo.NAMES[1:]), False, id="one only once"),
        pytest.param(
            released(*demo.NAMES, *demo.NAMES, "Stranger"), False, id="a stranger"
        ),
        pytest.param([], False, id="none"),
    ],
)
def test_releases(log: list[dict[str, Any]], holds: bool) -> None:
    log.append({"event": "refused", "details": {"service": "Somebody"}})
    assert check_released(log, demo.NAMES).holds is holds


REFUSED = {
    "event": "refused",
    "details": {"service": VICTIM, "findings": [{"field": "revoked_platform"}]},
}
NO_KEY = "a machine that was withdrawn gets no key, for that reason alone"
GO_ON = "the other replicas go on without it, bit for bit"


@pytest.mark.parametrize(
    ("refusal", "after", "promises"),
    [
        pytest.param(REFUSED, asked(absent=[VICTIM]), [], id="as it should be"),
        pytest.param(None, asked(absent=[VICTIM]), [NO_KEY], id="nothing refused"),
        pytest.param(
            {"details": {"findings": [{"field": "plan"}]}},
            asked(absent=[VICTIM]),
            [NO_KEY],
            id="another reason",
        ),
        pytest.param(REFUSED, None, [GO_ON], id="no answer"),
        pytest.param(REFUSED, asked(), [GO_ON], id="the machine still answers"),
        pytest.param(
            REFUSED,
            asked(absent=[VICTIM], malignant=0.5),
            [GO_ON],
            id="another answer",
        ),
    ],
)
def test_a_machine_is_withdrawn(
    refusal: Mapping[str, Any] | None, after: Asked | None, promises: list[str]
) -> None:
    checks = check_withdrawal(refusal, after, victim=VICTIM, expected=np.float32(0.25))
    assert broken(list(checks)) == promises


def test_a_machine_that_no_receipt_names_is_not_withdrawn(tmp_path: Path) -> None:
    owner = Owner(folder=tmp_path, deployment=())
    withdrawal = Withdrawal(owner=owner, victim="Stranger")
    served = Served(url="http://127.0.0.1:1", process=psutil.Process())
    with pytest.raises(RuntimeError, match="Stranger stands in no receipt"):
        withdrawal.act(served, [asked()])


def test_the_roster_has_a_row_for_each_party() -> None:
    lines = roster(asked().verdict).splitlines()
    assert len(lines) == 4 + 7
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[-2].split("|")[1:-1]]
    assert cells == [
        "Segment1Replica2",
        "runner",
        "tpm",
        "1Replica2",
        "none (simulated)",
        "abababababab..",
        "cdcdcdcdcdcd..",
        "simulated",
        "12:00:00Z",
        "270 s",
    ]


def test_long_names_are_cut() -> None:
    assert short("sha256:" + "0123456789" * 6) == "012345678901.."
    assert short("host-a") == "host-a"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    create_dev_root(Path("dev-root"), now=datetime.now(UTC))
    return tmp_path


def test_the_owner_seals_and_reads_the_log(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(REPOSITORY / "services", project / "services")
    named = ["--scenarios", "services/scenarios.toml", "--service", "Diagnosis"]
    named += ["--policy", "dev-root/policy.toml", "--replicas", "3"]
    owner = Owner(folder=Path("owner"), deployment=tuple(named))
    owner.folder.mkdir()
    write_model(Path("model.onnx"))
    owner.seal(Path("model.onnx"), Path("sealed"))
    assert not (owner.folder / "plan.keys").exists()
    windows = windows_of(Path("model.onnx"))
    assert len(files_with(windows, owner.plan)) == 2
    assert files_with(windows, Path("sealed"), owner.broker) == ()
    first = owner.audit()
    assert [entry["event"] for entry in first] == ["created", "key-added", "key-added"]
    revoked = ["broker", "revoke", str(owner.store), "platform", "host-a"]
    command(*revoked, "--reason", "two words")
    assert "--reason 'two words'\n" in capsys.readouterr().out
    log = owner.audit(first[-1]["digest"])
    lines = audit_table(log).splitlines()
    assert "platform host-a: two words" in lines[-2]
    assert f"key {log[1]['details']['key_id'][:12]}.." in lines[4]
    with pytest.raises(RuntimeError, match=r"broker audit .*head"):
        owner.audit("sha256-jcs-v1:" + "0" * 64)


def test_releases_and_refusals_in_a_table() -> None:
    details = {
        "service": VICTIM,
        "kind": "tpm",
        "platform_id": "sha256:" + "92" * 32,
        "key_id": "7" * 64,
    }
    at = "2026-03-01T12:00:00.000Z"
    refused = details | {"findings": [{"field": "plan"}, {"field": "package"}]}
    entries = [
        {"sequence": 1, "at": at, "event": "released", "details": details},
        {"sequence": 2, "at": at, "event": "refused", "details": refused},
    ]
    *_, one, two, _ = audit_table(entries).splitlines()
    shown = "| 12:00:00Z | {} | Segment1Replica2 | tpm  | 929292929292.. | {} |"
    assert shown.format("released", "key 777777777777..") in one
    assert shown.format("refused ", "plan, package     ") in two


def test_a_verdict_that_is_no_verdict(project: Path) -> None:
    Path("nowhere").write_text("{}")
    trust = REPOSITORY / "docs" / "receipt-example" / "trust.toml"
    with pytest.raises(RuntimeError, match="verify receipt nowhere"):
        verdict_of("verify", "receipt", "nowhere", "--trust", trust)


def test_without_a_software_tpm_the_demo_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with kinds.machines(project, Path("dev-root"), demo.RUNNERS) as made:
        policy = parse_policy(made.policy.read_bytes())
    assert made.kinds == ("simulated", "simulated-tdx", "simulated-tdx")
    assert "swtpm is not installed" in made.note
    assert "apt-get install swtpm swtpm-tools tpm2-tools" in made.note
    assert policy.allow == ("simulated", "simulated-tdx")
    shown = {
        name.partition("__")[2]: value
        for name, value in made.environment.items()
        if name.startswith("BENTOML_SECURE_SIMULATED_PLATFORM__")
    }
    assert len(set(shown.values())) == 2
    assert shown.keys() == {demo.RUNNERS[0][2], demo.RUNNERS[1][2]}


@pytest.mark.skipif(bool(missing_tools()), reason="swtpm or tpm2-tools not installed")
def test_each_tpm_is_enrolled_and_the_policy_accepts_both(project: Path) -> None:
    with kinds.machines(project, Path("dev-root"), demo.RUNNERS) as made:
        policy = parse_policy(made.policy.read_bytes())
    assert made.note == ""
    assert policy.allow == ("simulated", "simulated-tdx", "tpm")
    table = policy.to_json()["tpm"]
    assert len(table["ek_roots"]) == 2
    assert len(table["enrolment"]) == 1
    for names in demo.RUNNERS:
        folder = made.environment[f"BENTOML_SECURE_TPM_FOLDER__{names[2]}"]
        known = KnownTpm.from_folder(Path(folder))
        assert known.enrolment["payloadType"] == ENROLMENT_TYPE
        assert known.endorsements
