"""The ledger of reputations: batches, resets, several processes, foreign files."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bentoml_secure.consensus import ledger_file
from bentoml_secure.consensus.accounts import Account, Entry
from bentoml_secure.consensus.ledger import MAX_DISSENTS, Ledger
from bentoml_secure.consensus.reputation import (
    Outcome,
    Reputation,
    Status,
    newcomer,
)
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OPENING = newcomer(on_trial=False)
ROSTER = {"a": 0, "b": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reputation.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with closing(Ledger(path)) as opened:
        yield opened


def entry(
    replica: str = "a",
    outcome: Outcome = Outcome.AGREED,
    *,
    request_id: str = "r",
    is_trial: bool = False,
) -> Entry:
    return Entry(
        replica=replica,
        segment=ROSTER.get(replica, 7),
        outcome=outcome,
        request_id=request_id,
        at=NOW,
        is_trial=is_trial,
    )


def post(ledger: Ledger, *entries: Entry) -> dict[str, Account]:
    return ledger.post(entries, roster=ROSTER, opening=OPENING)


def test_everybody_on_the_roster_gets_an_account(ledger: Ledger) -> None:
    accounts = ledger.post([], roster=ROSTER, opening=newcomer(on_trial=True))
    assert accounts == ledger.accounts()
    assert accounts == {
        "a": Account(
            replica="a", segment=0, reputation=Reputation(status=Status.ON_TRIAL)
        ),
        "b": Account(
            replica="b", segment=1, reputation=Reputation(status=Status.ON_TRIAL)
        ),
    }


def test_entries_add_up_in_their_order(ledger: Ledger) -> None:
    outcomes = [Outcome.DISSENTED, Outcome.AGREED, Outcome.ABSENT, Outcome.IN_DOUBT]
    accounts = post(ledger, *(entry("a", outcome) for outcome in outcomes), entry("b"))
    a = accounts["a"]
    assert a.reputation.weight == 0.5 * 0.8 * 1.01
    assert (a.agreed, a.dissented, a.in_doubt, a.absent, a.trials) == (1, 1, 1, 1, 0)
    assert accounts["b"].reputation.weight == 0.5 * 1.01


def test_trials_count_where_they_are_answered(ledger: Ledger) -> None:
    opening = newcomer(on_trial=True)
    outcomes = [Outcome.AGREED, Outcome.ABSENT, Outcome.DISSENTED, Outcome.AGREED]
    trials = [entry("a", outcome, is_trial=True) for outcome in outcomes]
    account = ledger.post(trials, roster=ROSTER, opening=opening)["a"]
    assert account.trials == 3
    assert (account.agreed, account.dissented, account.absent) == (0, 0, 0)
    assert account.reputation.passed == 1


def test_it_is_there_after_a_restart(path: Path, ledger: Ledger) -> None:
    before = post(ledger, *[entry("a", Outcome.DISSENTED)] * 8, entry("b"))
    assert before["a"].reputation.status is Status.QUARANTINED
    ledger.close()
    with closing(Ledger(path, make=False)) as again:
        assert again.accounts() == before
        assert post(again) == before


def test_dissents_are_kept_with_request_and_time(ledger: Ledger) -> None:
    post(
        ledger,
        entry("a", Outcome.DISSENTED, request_id="first"),
        entry("a", request_id="fine"),
        entry("b", Outcome.DISSENTED, request_id="other"),
        entry("a", Outcome.DISSENTED, request_id="second"),
    )
    got = ledger.dissents("a")
    assert [(d.request_id, d.segment) for d in got] == [("second", 0), ("first", 0)]
    assert got[0].at == "2026-01-02T03:04:05.000Z"
    assert ledger.dissents("nobody") == ()


def test_dissents_are_bounded(ledger: Ledger) -> None:
    for turn in range(3):
        batch = [
            entry("a", Outcome.DISSENTED, request_id=f"{turn}-{i}")
            for i in range(MAX_DISSENTS - 20)
        ]
        post(ledger, *batch, entry("b", Outcome.DISSENTED))
    got = [dissent.request_id for dissent in ledger.dissents("a")]
    assert len(got) == MAX_DISSENTS
    assert (got[0], got[-1]) == ("2-79", "1-60")
    assert len(ledger.dissents("b")) == 3


def test_a_reset_makes_a_newcomer_and_leaves_the_history(ledger: Ledger) -> None:
    post(ledger, entry("a", Outcome.DISSENTED), entry("b"))
    assert ledger.reset("a", now=NOW) == 1
    assert ledger.accounts().keys() == {"b"}
    accounts = post(ledger)
    assert accounts["a"] == Account(replica="a", segment=0, reputation=OPENING)
    assert accounts["b"].agreed == 1
    assert len(ledger.dissents("a")) == 1


def test_all_are_reset_at_once(ledger: Ledger) -> None:
    post(ledger, entry("a"), entry("b"))
    assert ledger.reset(None, now=NOW) == 2
    assert ledger.accounts() == {}
    assert ledger.reset(None, now=NOW) == 0


def test_resetting_nobody_is_a_mistake(ledger: Ledger) -> None:
    post(ledger)
    with pytest.raises(ConfigurationError, match=r"'nobody': the ledger .* no account"):
        ledger.reset("nobody", now=NOW)
    with pytest.raises(ConfigurationError, match="no account"):
        ledger.reset("a' OR '1'='1", now=NOW)
    assert ledger.accounts().keys() == {"a", "b"}


@pytest.mark.parametrize("whom", ["a", None])
def test_what_was_under_way_at_a_reset_is_dropped(
    path: Path, ledger: Ledger, whom: str | None
) -> None:
    post(ledger, *[entry("a", Outcome.DISSENTED)] * 5)
    with closing(Ledger(path)) as other:
        other.reset(whom, now=NOW)
        accounts = post(ledger, *[entry("a", Outcome.DISSENTED)] * 3, entry("b"))
        assert accounts["a"].reputation == OPENING
        assert accounts["b"].agreed == (0 if whom is None else 1)
        assert len(ledger.dissents("a")) == 5
        # Seen once: what happens from now on counts.
        assert post(ledger, entry("a"))["a"].agreed == 1
        # A reset before one's own first batch is nothing to it.
        with closing(Ledger(path)) as late:
            assert post(late, entry("a"))["a"].agreed == 2


def test_processes_add_to_one_account(path: Path, ledger: Ledger) -> None:
    with closing(Ledger(path)) as other:
        post(ledger, entry("a", Outcome.DISSENTED))
        post(other, entry("a", Outcome.DISSENTED))
        account = post(ledger)["a"]
    assert account.dissented == 2
    assert account.reputation.weight == pytest.approx(0.5 * 0.8 * 0.8)


def test_changes_of_others_are_noticed(path: Path, ledger: Ledger) -> None:
    assert ledger.is_changed()
    post(ledger, entry("a"))
    assert not ledger.is_changed()
    post(ledger, entry("a"))
    assert not ledger.is_changed()
    with closing(Ledger(path)) as other:
        other.reset("a", now=NOW)
        assert ledger.is_changed()
        post(ledger)
        assert not ledger.is_changed()


def test_who_left_the_roster_keeps_an_account(ledger: Ledger) -> None:
    post(ledger, entry("a"), entry("b", Outcome.DISSENTED))
    accounts = ledger.post([entry("z")], roster={"a": 3}, opening=OPENING)
    assert accounts["b"].dissented == 1
    assert accounts["a"].segment == 3
    assert accounts["z"] == Account(
        replica="z", segment=7, reputation=Reputation(weight=0.5 * 1.01), agreed=1
    )


def test_only_its_owner_reads_it(path: Path, ledger: Ledger) -> None:
    post(ledger)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_ledger_that_is_not_there_is_not_made_by_readers(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not there"):
        Ledger(path, make=False)
    assert not path.exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        Ledger(tmp_path / "missing" / "reputation.sqlite")


def test_another_file_is_no_ledger(path: Path) -> None:
    path.write_bytes(b"not a database, and longer than a header of one hundred" * 3)
    with pytest.raises(ConfigurationError, match="is not a ledger"):
        Ledger(path)


@pytest.mark.parametrize("version", [0, 1])
def test_another_database_is_left_as_it_was(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE receipts (body BLOB)")
        other.execute(f"PRAGMA user_version={version}")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="a database of another kind"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_new_file_that_others_read_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "BUSY_TIMEOUT_SECONDS", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM sqlite_master").fetchall()
        with pytest.raises(UnavailableError, match="locked"):
            Ledger(path)
        other.execute("COMMIT")
    Ledger(path).close()


def test_a_ledger_without_its_tables_is_unavailable(path: Path) -> None:
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE resets")
    with pytest.raises(UnavailableError, match="no such table: resets"):
        Ledger(path)


def test_a_later_schema_is_refused(path: Path, ledger: Ledger) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version=9")
    with pytest.raises(ConfigurationError, match="got version 9, want 1"):
        Ledger(path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("weight", "'heavy'"),
        ("weight", "1e9"),
        ("weight", "0.0"),
        ("status", "'emperor'"),
        ("passed", "-1"),
        ("agreed", "'many'"),
        ("segment", "x'00'"),
        ("replica", "char(10)"),
        ("replica", "x'41'"),
    ],
)
def test_rows_that_none_wrote_are_refused(
    path: Path, ledger: Ledger, column: str, value: str
) -> None:
    post(ledger)
    with closing(sqlite3.connect(path)) as other:
        statement = f"UPDATE accounts SET {column} = {value} WHERE segment = 0"  # noqa: S608
        other.execute(statement)
        other.commit()
    with pytest.raises(MalformedInputError, match="which none wrote"):
        ledger.accounts()
    with pytest.raises(MalformedInputError, match="which none wrote"):
        post(ledger, entry("b"))
    # The batch that failed left nothing open.
    with closing(sqlite3.connect(path)) as other:
        other.execute("DELETE FROM accounts")
        other.commit()
    assert post(ledger, entry("b"))["b"].agreed == 1


def test_a_locked_file_is_unavailable_and_the_batch_can_be_posted_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_file, "BUSY_TIMEOUT_SECONDS", 0.05)
    with (
        closing(Ledger(path)) as ledger,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        post(ledger)
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO resets (replica, at) VALUES ('b', '')")
        with pytest.raises(UnavailableError, match="locked"):
            post(ledger, entry("a"), entry("b"))
        with pytest.raises(UnavailableError, match="locked"):
            Ledger(path)
        other.execute("COMMIT")
        accounts = post(ledger, entry("a"), entry("b"))
        assert (accounts["a"].agreed, accounts["b"].agreed) == (1, 0)


def test_a_closed_ledger_is_unavailable(path: Path) -> None:
    ledger = Ledger(path)
    ledger.close()
    for call in (
        lambda: post(ledger),
        ledger.is_changed,
        ledger.accounts,
        lambda: ledger.dissents("a"),
        lambda: ledger.reset("a", now=NOW),
    ):
        with pytest.raises(UnavailableError, match="closed"):
            call()


def test_a_killed_process_loses_nothing_that_it_posted(path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from datetime import UTC, datetime\n"
        "from pathlib import Path\n"
        "from bentoml_secure.consensus.accounts import Entry\n"
        "from bentoml_secure.consensus.ledger import Ledger\n"
        "from bentoml_secure.consensus.reputation import Outcome, newcomer\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "e = Entry(replica='a', segment=0, outcome=Outcome.DISSENTED,\n"
        "          request_id='r', at=datetime.now(UTC))\n"
        "for _ in range(8):\n"
        "    ledger.post([e], roster={}, opening=newcomer(on_trial=False))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert done.returncode == -9
    with closing(Ledger(path, make=False)) as ledger:
        account = ledger.accounts()["a"]
        assert account.dissented == 8
        assert account.reputation.status is Status.QUARANTINED
        assert len(ledger.dissents("a")) == 8


def test_processes_that_make_one_file_at_once_take_turns(path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bentoml_secure.consensus.ledger import Ledger\n"
        "sys.stdin.readline()\n"
        "Ledger(Path(sys.argv[1])).close()\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, path], stdin=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in started:
        process.communicate(b"\n", timeout=60)
    assert [process.returncode for process in started] == [0, 0]


def test_a_day_of_dissents_is_told_apart_by_time(ledger: Ledger) -> None:
    for hour in range(3):
        at = NOW + timedelta(hours=hour)
        dissent = Entry(
            replica="a", segment=0, outcome=Outcome.DISSENTED, request_id="r", at=at
        )
        post(ledger, dissent)
    assert [d.at[11:13] for d in ledger.dissents("a")] == ["05", "04", "03"]
