"""``reputation``: listing and resetting a ledger, also one that an entry keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bentoml_secure.consensus.accounts import Entry
from bentoml_secure.consensus.ledger import Ledger
from bentoml_secure.consensus.reputation import Outcome, newcomer
from tests.unit.cli.conftest import Run

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "diagnosis.reputation.sqlite"
    entries = [
        Entry(replica=replica, segment=segment, outcome=outcome, request_id=of, at=NOW)
        for replica, segment, outcome, of in [
            ("good", 1, Outcome.AGREED, "r0"),
            ("good", 1, Outcome.ABSENT, "r1"),
            *[("bad", 0, Outcome.DISSENTED, f"r{i}") for i in range(8)],
        ]
    ]
    with closing(Ledger(path)) as ledger:
        ledger.post(entries, roster={"new": 1}, opening=newcomer(on_trial=False))
    return path


def test_everybody_is_listed(run: Run, store: Path) -> None:
    result = run("reputation", "list", "--store", store)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "bad  segment 0  weight 0.084  quarantined, 0 of 8 trials passed",
        "    agreed 0, dissented 8, in doubt 0, absent 0, trials 0, quarantines 1",
        "    dissent at 2026-01-02T03:04:05.000Z, r7",
        "    dissent at 2026-01-02T03:04:05.000Z, r6",
        "    dissent at 2026-01-02T03:04:05.000Z, r5",
        "good  segment 1  weight 0.505  voting",
        "    agreed 1, dissented 0, in doubt 0, absent 1, trials 0, quarantines 0",
        "new  segment 1  weight 0.500  voting",
        "    agreed 0, dissented 0, in doubt 0, absent 0, trials 0, quarantines 0",
    ]


def test_json_has_all_of_it(run: Run, store: Path) -> None:
    result = run("reputation", "list", "--store", store, "--json")
    document = json.loads(result.stdout)
    assert document["store"] == str(store)
    bad, good, _ = document["replicas"]
    assert [d["request_id"] for d in bad.pop("dissents")] == [
        f"r{i}" for i in reversed(range(8))
    ]
    assert bad == {
        "replica": "bad",
        "segment": 0,
        "weight": pytest.approx(0.5 * 0.8**8),
        "status": "quarantined",
        "passed": 0,
        "quarantines": 1,
        "agreed": 0,
        "dissented": 8,
        "in_doubt": 0,
        "absent": 0,
        "trials": 0,
    }
    assert good["absent"] == 1


def test_one_is_reset(run: Run, store: Path) -> None:
    result = run("reputation", "reset", "bad", "--store", store)
    assert result.exit_code == 0
    assert result.stdout == f"bad reset in {store}\n"
    assert "bad" not in run("reputation", "list", "--store", store).stdout
    again = run("reputation", "reset", "bad", "--store", store)
    assert again.exit_code == 2
    assert "replica 'bad': the ledger" in again.stderr


def test_all_are_reset(run: Run, store: Path) -> None:
    result = run("reputation", "reset", "--all", "--store", store)
    assert result.stdout == f"3 replicas reset in {store}\n"
    assert run("reputation", "list", "--store", store).stdout == ""


@pytest.mark.parametrize("arguments", [[], ["bad", "--all"]])
def test_whom_to_reset_is_said_once(
    run: Run, store: Path, arguments: list[str]
) -> None:
    result = run("reputation", "reset", *arguments, "--store", store)
    assert result.exit_code == 2
    assert "want a REPLICA, or --all" in result.stderr


def test_the_entry_s_variable_names_the_ledger(run: Run, store: Path) -> None:
    environment = {"BENTOML_SECURE_REPUTATION": str(store)}
    assert "bad  segment 0" in run("reputation", "list", env=environment).stdout


def test_the_only_ledger_of_a_user_needs_no_name(
    run: Run, store: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "home" / "bentoml_secure"
    folder.mkdir(parents=True)
    environment = {"BENTOML_HOME": str(tmp_path / "home")}
    none = run("reputation", "list", env=environment)
    assert none.exit_code == 2
    assert "got none in" in none.stderr
    store.rename(folder / store.name)
    assert "bad  segment 0" in run("reputation", "list", env=environment).stdout
    Ledger(folder / "other.reputation.sqlite").close()
    two = run("reputation", "list", env=environment)
    assert two.exit_code == 2
    assert "Name it with --store" in two.stderr


def test_what_is_no_ledger_is_usage(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "none"
    missing = run("reputation", "list", "--store", path)
    assert missing.exit_code == 2
    assert "is not there" in missing.stderr
    assert not path.exists()
    path.write_text("text " * 100)
    other = run("reputation", "list", "--store", path)
    assert other.exit_code == 2
    assert "is not a ledger" in other.stderr


_ENTRY = """
import sys, time
from pathlib import Path
from bentoml_secure.consensus.ledger import Ledger
from bentoml_secure.consensus.reputation import Outcome
from bentoml_secure.serving.standing import Standing

standing = Standing(Ledger(Path(sys.argv[1])), [["good", "bad"]])
for number in range(8):
    standing.record(str(number), 0, {"good": Outcome.AGREED, "bad": Outcome.DISSENTED})
standing.flush()
said = None
while True:
    # Rounds go on all the while.
    standing.record("more", 0, {"good": Outcome.AGREED})
    now = standing.barred("bad")
    if now != said:
        said = now
        print(now, flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def entry(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that keeps the ledger and says when somebody's vote changes."""
    with subprocess.Popen(
        [sys.executable, "-c", _ENTRY, tmp_path / "kept"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("whom", ["bad", "--all"])
def test_a_running_entry_follows_a_reset(
    run: Run, entry: subprocess.Popen[str], tmp_path: Path, whom: str
) -> None:
    assert entry.stdout is not None
    assert entry.stdout.readline().startswith("in quarantine: reputation 0.084")
    listed = run("reputation", "list", "--store", tmp_path / "kept")
    assert "bad  segment 0  weight 0.084  quarantined" in listed.stdout
    assert run("reputation", "reset", whom, "--store", tmp_path / "kept").exit_code == 0
    # The entry's own word: the newcomer has a vote.
    assert entry.stdout.readline() == "None\n"
    listed = run("reputation", "list", "--store", tmp_path / "kept")
    assert "bad  segment 0  weight 0.500  voting" in listed.stdout
