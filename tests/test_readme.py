"""The README does what it says: its files and commands are run as they stand there.

A fenced block with a second word, such as ``python service.py``, is a file of that
name; ``console NAME`` are commands. Those on proofs take too long to be run each time:
their options are read, and ``make test-slow`` runs the set-up. Links between documents
lead somewhere.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner

from bentoml_secure.cli import main
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.receipt import ENTRY, parse_receipt
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.scenario import Configuration, Proving, Scenario, parse_scenarios
from tests.harness import REPOSITORY, Project, Served, free_port, running

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])

_BLOCK = re.compile(r"^```(\w+) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_PORT = 3000


def blocks(text: str) -> dict[str, tuple[str, str]]:
    """Return (language, content) of each named block."""
    return {name: (language, body) for language, name, body in _BLOCK.findall(text)}


def read_command(line: str) -> click.Command:
    """Return the command that a line names, if it takes all that stands there.

    Whether its files exist is not asked.
    """
    program, *rest = shlex.split(line)
    assert program == "bentoml-secure"
    command: click.Command = main
    # Commands remember the help option of the first context that they see.
    context = click.Context(main, info_name=program, **main.context_settings)
    while isinstance(command, click.Group):
        name, below, rest = command.resolve_command(context, rest)
        assert below is not None
        command, context = below, click.Context(below, parent=context, info_name=name)
    given, extra, _ = command.make_parser(context).parse_args(list(rest))
    assert extra == []
    for parameter in command.params:
        value = given.get(parameter.name or "")
        if parameter.required and (value is None or parameter.value_is_missing(value)):
            raise click.MissingParameter(ctx=context, param=parameter)
    return command


def without_figures(text: str) -> str:
    """Return a program's output without what another run measures anew."""
    return re.sub(r"[0-9a-f]{64}|\d[\d.,]*(e-\d+)?", "0", text)


README = (REPOSITORY / "README.md").read_text()
BLOCKS = blocks(README)


class QuickStart:
    """The README's files in a folder, and its commands run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        for name, (language, body) in BLOCKS.items():
            if language != "console":
                path = folder / name
                path.write_text(body.replace(f"http://127.0.0.1:{_PORT}", self.url))

    def run(self, script: str) -> str:
        """Run lines of shell as a reader would, up to the first that fails."""
        scripts = Path(sys.executable).parent
        done = subprocess.run(
            ["bash", "-ec", script],
            cwd=self.folder,
            env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, name: str) -> str:
        return self.run(f"{sys.executable} {name}")

    def commands(self, name: str) -> list[str]:
        return BLOCKS[name][1].splitlines()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> QuickStart:
    start = QuickStart(tmp_path_factory.mktemp("readme"))
    start.python("make_plan.py")
    return start


@pytest.fixture(scope="module")
def served(start: QuickStart) -> Iterator[Served]:
    make_root, export, serve = start.commands("serve")
    start.run(make_root)
    assert export == "export BENTOML_SECURE_DEV_ROOT=$PWD/dev-root"
    folder = start.folder
    project = Project(
        folder=folder,
        model=folder / "unused",
        plan=folder / "models/flowers",
        dev_root=folder / "dev-root",
    )
    command = [sys.executable, "-m", *serve.split(), "--host", "127.0.0.1"]
    command += ["--port", start.url.rsplit(":", 1)[1]]
    with running(command, project, url=start.url, home=folder / "home") as served:
        yield served


def test_quick_start(start: QuickStart, served: Served) -> None:
    (trust,) = start.commands("trust")
    start.run(trust)
    said = start.python("client.py")
    assert re.fullmatch(r"\[\[(-?[\d.]+(, )?){3}\]\] accepted \[\]\n", said)
    verified = start.run("\n".join(start.commands("verify")))
    assert verified.count("ACCEPTED") == 2
    assert verified.count("SIMULATED - NOT HARDWARE") == 2


def test_a_plain_call_gets_a_receipt_too(start: QuickStart, served: Served) -> None:
    answer = httpx.post(f"{served.url}/scores", json={"x": [[5.1, 3.5, 1.4, 0.2]]})
    assert answer.status_code == 200
    assert answer.headers["bsec-simulated"] == "true"
    path = f"/bsec/v1/receipts/{answer.headers['bsec-receipt-id']}?wait=5"
    bundle = parse_bundle(httpx.get(f"{served.url}{path}", timeout=10).content)
    receipt = parse_receipt(bundle.receipt)
    assert (receipt.nonce_drawn_by, receipt.salt_drawn_by) == (ENTRY, ENTRY)


def test_quick_start_with_an_onnx_file(start: QuickStart) -> None:
    (command,) = re.findall(r"`(bentoml-secure split [^`]+)`", README)
    make = (
        "import torch\n"
        "torch.onnx.export(torch.nn.Sequential(torch.nn.Linear(4, 8),\n"
        "    torch.nn.ReLU(), torch.nn.Linear(8, 3)), (torch.zeros(2, 4),),\n"
        "    'flowers.onnx', dynamo=True, verbose=False)\n"
    )
    (start.folder / "make_onnx.py").write_text(make)
    start.python("make_onnx.py")
    said = start.run(command.replace("models/flowers", "models/from-onnx"))
    assert "2 segments in models/from-onnx" in said


def test_every_file_that_the_quick_start_needs_is_there() -> None:
    assert BLOCKS.keys() == {
        "make_plan.py",
        "scenarios.toml",
        "service.py",
        "serve",
        "trust",
        "client.py",
        "verify",
        "careful.toml",
        "rows.py",
        "calibrate",
        "proven.toml",
        "prove",
        "proven",
    }


def test_the_scenarios_that_it_shows_are_served() -> None:
    scenarios = parse_scenarios(BLOCKS["careful.toml"][1].encode())
    assert [scenarios.select(name).name for name in (None, "careful")] == [
        "general",
        "careful",
    ]
    # Refuses a scenario that five replicas and a referee cannot serve.
    Configuration(
        service="Flowers",
        replicas=5,
        segments=2,
        scenarios=scenarios,
        policy={"allow": ["simulated"]},
        referees=True,
    )


def test_the_scenarios_with_proofs_are_served_with_a_set_up_only() -> None:
    scenarios = parse_scenarios(BLOCKS["proven.toml"][1].encode())
    assert scenarios.select(None).proof is Proving.NONE
    assert scenarios.select("critical").proof is Proving.EVERY
    deployed = Configuration(
        service="Flowers",
        replicas=3,
        segments=2,
        scenarios=scenarios,
        policy={"allow": ["simulated"]},
        proofs=digest_json({}),
    )
    with pytest.raises(ConfigurationError, match="has no proof set-up"):
        replace(deployed, proofs=None)


def test_commands_on_proofs_are_read_as_they_stand(start: QuickStart) -> None:
    lines = [*start.commands("prove")[1:], *start.commands("proven")]
    assert [read_command(line).name for line in lines] == [
        "generate",
        "setup",
        "vk",
        "seal-proofs",
        "trust",
        "receipt",
        "proof",
        "proof",
    ]
    with pytest.raises(click.NoSuchOption, match="--unsave"):
        read_command("bentoml-secure prove srs generate 11 --folder srs --unsave")
    with pytest.raises(click.MissingParameter, match="logrows"):
        read_command("bentoml-secure prove srs generate --folder srs")


@pytest.mark.slow
def test_a_proof_set_up_is_made_as_it_shows(start: QuickStart, tmp_path: Path) -> None:
    shutil.copytree(start.folder / "models", tmp_path / "models")
    beside = QuickStart(tmp_path)
    beside.run(start.commands("serve")[0])
    beside.python("rows.py")
    said = beside.run("\n".join(beside.commands("prove")))
    assert "ACCEPTED  verification keys" in said
    trust = parse_trust((tmp_path / "proven-trust.toml").read_bytes())
    assert trust.unsafe_srs


def test_the_table_of_scenarios_has_every_option_and_its_default() -> None:
    (table,) = re.findall(r"<!-- table: scenarios -->\n((?:\|.*\n)+)", README)
    rows = [
        [cell.strip(" `") for cell in row.split("|")[1:3]]
        for row in table.splitlines()[2:]
    ]
    least = {"replicas": 3, "quorum": 2, "deadline_ms": 1, "grace_ms": 1}
    scenario = Scenario.from_json(
        {"name": "least", **least, "evidence_max_age_seconds": 1}
    )
    document = scenario.to_json()
    del document["name"]
    assert [name for name, _ in rows] != []
    assert {name: default for name, default in rows if default != "-"} == {
        name: json.dumps(value)
        for name, value in document.items()
        if name not in (*least, "evidence_max_age_seconds")
    }
    assert {name for name, _ in rows} == document.keys()


def test_calibration_and_known_answers(start: QuickStart, tmp_path: Path) -> None:
    # Of a copy: what is served must stay as it is.
    shutil.copytree(start.folder / "models", tmp_path / "models")
    beside = QuickStart(tmp_path)
    beside.python("rows.py")
    said = beside.run("\n".join(beside.commands("calibrate")))
    (shown,) = re.findall(
        r"<!-- output: calibrate -->\n```\n(.*?)```", README, re.DOTALL
    )
    assert without_figures(said) == without_figures(shown)


def test_the_plan_of_audits_that_it_shows() -> None:
    ((command, shown),) = re.findall(
        r"<!-- console: plan-audit -->\n```\n\$ bentoml-secure (.*)\n([^`]*)```", README
    )
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 0
    assert result.stdout == shown


def test_reputations_are_listed_as_it_shows(start: QuickStart, served: Served) -> None:
    answer = httpx.post(f"{served.url}/scores", json={"x": [[5.1, 3.5, 1.4, 0.2]]})
    assert answer.status_code == 200
    list_them = "export BENTOML_HOME=$PWD/home\nbentoml-secure reputation list"
    shown = README.split("$ bentoml-secure reputation list\n")[1].splitlines()[:2]
    said = start.run(list_them).splitlines()
    assert without_figures(said[0]) == without_figures(shown[0])
    assert without_figures(said[1]) == without_figures(shown[1])
    reset = "bentoml-secure reputation reset FlowersSegment0Replica1"
    assert f"$ {reset}\n" in README
    assert start.run(f"export BENTOML_HOME=$PWD/home\n{reset}").endswith(
        "home/bentoml_secure/flowers.reputation.sqlite\n"
    )


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY))
)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [
        target
        for target in _LINK.findall(page.read_text())
        if not target.startswith(("http://", "https://", "mailto:"))
    ]
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_links_are_found() -> None:
    text = "[a](b.md) [c](d/e.md#part) [f](#g) `[h](`"
    assert _LINK.findall(text) == ["b.md", "d/e.md"]
