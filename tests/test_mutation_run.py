"""The mutation run finds checks that no test would miss, on a kind made for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bentoml_secure.attestation.tees import TEES
from tests.mutation.groups import all_groups, calls_in

ROOT = Path(__file__).parents[1]

SOURCE = """\
from bentoml_secure.attestation import reference_values
from bentoml_secure.attestation.checks import compare
from bentoml_secure.attestation.checks import require as demand, requiring
from bentoml_secure.attestation.reference_values import compare_reference


def verify(size, text):
    demand("size", size == 4, got=size, want=4)
    for index, character in enumerate(text):
        demand(f"text.{index}", character != "!", got=character, want="another")
    with requiring("number", ValueError, want="a number"):
        return int(text)
    return 0


def verify_more(size):
    demand("size", size < 9, got=size, want="less than 9")
    demand("untested", size != 3, got=size, want="not 3")


def judge(size, text):
    return (
        compare("odd", size % 2 == 1, got=size, want="odd")
        + compare_reference("text", text, ("7",))
        + compare_reference("noted", "", reference_values.Unchecked("a note"))
    )


def never():
    demand("unreached", False, got=1, want=2)
"""

TESTS = """\
import pytest

from bentoml_secure.attestation.checks import Finding
from bentoml_secure.errors import CheckFailedError
from kind_made_for_it import judge, verify, verify_more


def refused(field, size, text):
    with pytest.raises(CheckFailedError) as caught:
        verify(size, text)
    assert caught.value.findings[0].field == field


def test_good():
    assert verify(4, "7") == 7
    assert not judge(7, "7").findings


@pytest.mark.parametrize(
    ("field", "size", "text"),
    [("size", 3, "7"), ("text.1", 4, "7!"), ("number", 4, "seven")],
)
def test_refused(field, size, text):
    refused(field, size, text)


def test_more_refuses_something():
    with pytest.raises(CheckFailedError):
        verify_more(9)
    # A poor test: whatever it is that refuses.
    try:
        verify_more(3)
    except CheckFailedError:
        pass


def test_judged():
    assert [finding.field for finding in judge(2, "8").findings] == ["odd", "text"]
"""


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    source, tests = tmp_path / "kind_made_for_it.py", tmp_path / "test_made_for_it.py"
    source.write_text(SOURCE)
    tests.write_text(TESTS)
    return source, tests


def mutate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.mutation", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def lines_of(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


def test_survivors_are_named_and_guarded_checks_too(made: tuple[Path, Path]) -> None:
    source, tests = made
    done = mutate("--source", source, "--test", tests, "--verbose")
    said = {words[1]: words[0] for words in lines_of(done.stdout) if len(words) > 2}
    assert done.returncode == 1, done.stdout + done.stderr
    assert {name for name, word in said.items() if word == "SURVIVES"} == {
        "untested",
        "unreached",
    }
    assert {name for name, word in said.items() if word == "guarded"} == {
        "number",
        "odd",
        "size",
        "text",
        "text.#",
    }


def test_each_call_by_itself(made: tuple[Path, Path]) -> None:
    source, tests = made
    tests.write_text(TESTS.replace('("size", 3, "7"), ', ""))
    done = mutate("--source", source, "--test", tests, "--each-call")
    assert "SURVIVES  size kind_made_for_it.py:8 " in done.stdout
    assert "SURVIVES  size kind_made_for_it.py:17 " not in done.stdout


def test_all_guarded_is_success(made: tuple[Path, Path]) -> None:
    source, tests = made
    kept = SOURCE.partition("def never")[0].replace(
        '    demand("untested", size != 3, got=size, want="not 3")\n', ""
    )
    source.write_text(kept)
    done = mutate("--source", source, "--test", tests)
    assert done.returncode == 0, done.stdout
    assert "files: 5 of 5 checks guarded" in done.stdout


def test_tests_that_fail_as_they_are_are_trouble(made: tuple[Path, Path]) -> None:
    source, tests = made
    tests.write_text(
        TESTS + "\n\ndef test_wrong():\n    assert judge(1, '7') is None\n"
    )
    done = mutate("--source", source, "--test", tests)
    assert done.returncode == 2
    assert "do not pass as they are" in done.stdout
    assert "test_wrong" in done.stdout


def test_an_unknown_kind_is_trouble() -> None:
    done = mutate("--kind", "no-such")
    assert done.returncode == 2
    assert "simulated" in done.stdout


def test_every_kind_has_its_file_and_its_tests() -> None:
    groups = {group.name: group for group in all_groups()}
    assert set(groups) == set(TEES) | {"attestation", "keys"}
    for kind, target in TEES.items():
        stem = target.partition(":")[0].rpartition(".")[2]
        assert stem in [path.stem for path in groups[kind].sources]
        assert groups[kind].tests, kind


def test_calls_are_found_by_the_names_they_are_imported_by(
    made: tuple[Path, Path],
) -> None:
    source, _ = made
    names = [call.name for call in calls_in(source)]
    assert names.count("size") == 2
    assert None in names
    assert "noted" not in names
    assert {"number", "odd", "text", "unreached", "untested"} < set(names)
