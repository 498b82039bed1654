"""``result issue`` and ``result verify``: from evidence to a token and back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.attestation.evidence import Evidence
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from tests.evidence_vectors import vector
from tests.unit.attestation.result_tokens import EC, ED
from tests.unit.cli.conftest import Run

REPORT_DATA = bytes(range(64))
NONCE = "5e" * 32
NAMES = ("--issuer", "https://v.example", "--audience", "ci", "--nonce", NONCE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # Taken here: at collection, a run of minutes would make this evidence old.
    moment = datetime.now(UTC).replace(microsecond=0)
    create_dev_root(tmp_path / "root", now=moment - timedelta(hours=1))
    attester = SimulatedAttester.from_folder(
        tmp_path / "root", clock=lambda: moment, measurement="ab" * 32
    )
    (tmp_path / "evidence").write_bytes(attester.attest(REPORT_DATA).blob)
    (tmp_path / "key.pem").write_bytes(ED.pem)
    (tmp_path / "public.pem").write_bytes(ED.public_pem)
    (tmp_path / "other.pem").write_bytes(EC.public_pem)
    return tmp_path


def issuing(folder: Path, *rest: str | Path) -> tuple[str | Path, ...]:
    return (
        *("result", "issue", "--kind", "simulated", *NAMES),
        *("--evidence", folder / "evidence"),
        *("--policy", folder / "root" / "policy.toml"),
        *("--key", folder / "key.pem", *rest),
    )


COVERED = ("--report-data", REPORT_DATA.hex())


@pytest.fixture
def token(run: Run, folder: Path) -> Path:
    done = run(*issuing(folder, *COVERED))
    assert done.exit_code == 0
    path = folder / "token.jwt"
    path.write_text(done.stdout)
    return path


def verifying(token: Path, *rest: str | Path) -> tuple[str | Path, ...]:
    key = token.parent / "public.pem"
    return ("result", "verify", token, "--key", key, *rest)


def test_the_token_stands_alone(run: Run, folder: Path) -> None:
    done = run(*issuing(folder, *COVERED))
    assert done.exit_code == 0
    assert done.stdout.count("\n") == 1
    assert done.stdout.count(".") == 2
    assert done.stderr.splitlines()[-1] == "ACCEPTED  simulated"
    assert "SIMULATED - NOT HARDWARE" in done.stderr


def test_both_as_one_object(run: Run, folder: Path) -> None:
    document = json.loads(run(*issuing(folder, *COVERED, "--json")).stdout)
    assert (document["verdict"], document["kind"]) == ("accepted", "simulated")
    assert document["token"].count(".") == 2


def test_a_simulation_has_to_be_allowed(run: Run, token: Path) -> None:
    refused = run(*verifying(token, *NAMES, "--json"))
    document = json.loads(refused.stdout)
    assert (refused.exit_code, document["verdict"]) == (1, "rejected")
    assert [each["field"] for each in document["findings"]] == [
        "simulated",
        "status",
        "overall",
    ]
    allowed = run(*verifying(token, *NAMES, "--allow-simulated"))
    assert allowed.exit_code == 0
    assert allowed.stdout.splitlines()[-1] == "ACCEPTED  result"
    assert "SIMULATED - NOT HARDWARE" in allowed.stdout


def test_rejected_evidence_gets_no_token(run: Run, folder: Path) -> None:
    done = run(*issuing(folder, "--report-data", "11" * 64))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "FAILED  report_data" in done.stderr
    found = run(*issuing(folder, "--report-data", "11" * 64, "--json"))
    document = json.loads(found.stdout)
    assert (found.exit_code, document["verdict"]) == (1, "rejected")
    assert "token" not in document


def test_every_demand_is_compared(run: Run, token: Path) -> None:
    names = ("--issuer", "a", "--audience", "b", "--nonce", "c" * 8)
    rest = ("--policy-id", "d", "--allow-simulated", "--json")
    done = run(*verifying(token, *names, *rest))
    fields = [each["field"] for each in json.loads(done.stdout)["findings"]]
    assert (done.exit_code, fields) == (1, ["issuer", "audience", "nonce", "policy"])


def test_a_time_after_its_end(run: Run, token: Path) -> None:
    at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    done = run(*verifying(token, *NAMES, "--allow-simulated", "--at", at))
    assert done.exit_code == 1
    assert "FAILED  expires_at" in done.stdout


def test_demands_left_out_show(run: Run, token: Path) -> None:
    pairs = [("--unchecked", name, "a test") for name in ("issuer", "audience")]
    left = [word for pair in pairs for word in pair]
    rest = ("--nonce", NONCE, "--allow-simulated", "--json")
    done = run(*verifying(token, *left, *rest))
    unchecked = json.loads(done.stdout)["unchecked"]
    assert done.exit_code == 0
    assert [each["field"] for each in unchecked] == ["issuer", "audience", "policy"]


def test_a_key_set(run: Run, token: Path) -> None:
    (key,) = ED.pinned
    path = token.parent / "keys.json"
    path.write_text(json.dumps({"keys": [dict(key.public)]}))
    rest = ("--jwks", path, *NAMES, "--allow-simulated")
    assert run("result", "verify", token, *rest).exit_code == 0


def test_another_key(run: Run, token: Path) -> None:
    rest = ("--key", token.parent / "other.pem", *NAMES)
    done = run("result", "verify", token, *rest)
    assert done.exit_code == 1
    assert "FAILED  header.kid" in done.stdout


@pytest.mark.parametrize("data", [b"", b"a.b.c", b"\xff", b"x" * 300_000])
def test_what_is_no_token(run: Run, token: Path, data: bytes) -> None:
    token.write_bytes(data)
    done = run(*verifying(token, *NAMES, "--json"))
    (finding,) = json.loads(done.stdout)["findings"]
    assert (done.exit_code, finding["want"]) == (1, "well-formed")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--issuer", ""), "issuer is empty"),
        (("--unchecked", "nonce", "why"), "one of --nonce and --unchecked nonce"),
        (("--unchecked", "status", "why"), "'status' is not one of"),
        (("--jwks", "/nowhere"), "one of --key FILE and --jwks FILE"),
        (("--key", "/nowhere"), "cannot be read"),
        (("--at", "2026"), "want RFC 3339"),
    ],
)
def test_usage_of_verify(
    run: Run, token: Path, change: tuple[str, ...], said: str
) -> None:
    done = run(*verifying(token, *NAMES, *change))
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_demand_is_made_or_left_out(run: Run, token: Path) -> None:
    done = run(*verifying(token, *NAMES[:4]))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "want one of --nonce and --unchecked nonce WHY" in done.stderr
    done = run(*verifying(token, *NAMES[:4], "--unchecked", "nonce", " "))
    assert "want a reason" in done.stderr


def test_no_key(run: Run, token: Path) -> None:
    done = run("result", "verify", token, *NAMES)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "one of --key FILE and --jwks FILE" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--nonce", "short"), "token nonce"),
        (("--issuer", "two words"), "token issuer"),
        (("--lifetime", "0"), "--lifetime"),
        (("--lifetime", "9999999"), "token lifetime"),
        (("--unchecked-report-data", "why"), "want one of"),
        (("--kind", "no-such"), "unknown kind"),
        (("--policy", "/nowhere"), "cannot be read"),
        (("--key", "/nowhere"), "cannot be read"),
        (("--evidence", "/nowhere"), "cannot be read"),
    ],
)
def test_usage_of_issue(
    run: Run, folder: Path, change: tuple[str, ...], said: str
) -> None:
    done = run(*issuing(folder, *COVERED, *change))
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_bad_key_is_named(run: Run, folder: Path) -> None:
    path = folder / "public.pem"
    done = run(*issuing(folder, *COVERED, "--key", path))
    assert (done.exit_code, done.stdout) == (2, "")
    assert str(path) in done.stderr


def test_the_environment_allows_nothing(run: Run, token: Path) -> None:
    prefix = "BENTOML_SECURE_RESULT_VERIFY"
    allowed = {f"{prefix}_ALLOW_SIMULATED": "1", f"{prefix}_ALLOW_WARNING": "1"}
    assert run(*verifying(token, *NAMES), env=allowed).exit_code == 1
    left = {f"{prefix}_UNCHECKED": "nonce why"}
    assert run(*verifying(token, *NAMES[:4]), env=left).exit_code == 2


class TestGenuine:
    """A document that AWS's hardware signed, from the file to an affirming token."""

    AT = "2025-12-25T16:05:00Z"

    @pytest.fixture
    def genuine(self, folder: Path) -> Path:
        (folder / "evidence").write_bytes(vector("nitro/ok.cose"))
        return folder

    def test_compared_it_is_affirmed(self, run: Run, genuine: Path) -> None:
        evidence = Evidence(kind="nitro", blob=vector("nitro/ok.cose"))
        at = datetime.fromisoformat(self.AT)
        claims = load_tee("nitro").verify(evidence, (), now=at)
        assert claims.report_data is not None
        policy = genuine / "policy.toml"
        policy.write_text(
            'version = 1\nmax_age_seconds = 300\nallow = ["nitro"]\n'
            f'[nitro]\npcr = {{ 0 = ["{claims.claims["pcrs"]["0"]}"] }}\n'
        )
        kind = ("--kind", "nitro", "--policy", policy, "--at", self.AT)
        rest = ("--report-data", claims.report_data.hex())
        done = run(*issuing(genuine), *kind, *rest)
        assert done.exit_code == 0
        token = genuine / "token.jwt"
        token.write_text(done.stdout)
        found = run(*verifying(token, *NAMES, "--at", self.AT, "--json"))
        document = json.loads(found.stdout)
        assert (found.exit_code, document["status"]) == (0, "affirming")
        assert document["simulated"] is False
        said = document["submods"]["cpu0"]["vector"]
        assert (said["hardware"], said["executables"]) == (2, 3)
