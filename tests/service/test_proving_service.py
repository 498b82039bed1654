"""Requests that are proven, by a deployment as ``bentoml serve`` starts it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from bentoml_secure.cli import main as cli
from bentoml_secure.client import Answer, SecureClient
from bentoml_secure.client.auditing import ChallengeAuditor
from bentoml_secure.errors import (
    ConfigurationError,
    ReceiptError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.proofs.links import Link
from bentoml_secure.receipts.epoch_root import EpochAuditor, parse_epoch_envelope
from bentoml_secure.signing import SigningKey, VerificationKey
from tests.harness import client_of
from tests.proof_case import INPUT, measurements
from tests.service.counters import Key, scrape, series
from tests.service.deployments import eventually
from tests.service.faulting import suspended
from tests.service.proving import SECONDS, Proving, proven_places, proving

_KEY = Ed25519PrivateKey.generate()
AUDITOR = SigningKey(_KEY)
AUDITOR_PEM = _KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proving]:
    auditors = (AUDITOR.public.key_id,)
    with proving(tmp_path_factory.mktemp("proving"), auditors=auditors) as running:
        yield running


def scores_of(answer: Answer) -> np.ndarray:
    return np.asarray(answer.value["scores"], np.float32)


def verified(answer: Answer, running: Proving, folder: Path, *opened: str) -> str:
    """Verify a receipt offline, by the command line; return what it prints."""
    bundle = folder / "bundle.json"
    bundle.write_text(json.dumps(answer.bundle.to_json()))
    (folder / "request").write_bytes(answer.question.body)
    (folder / "response").write_bytes(answer.body)
    words = ["verify", "receipt", str(bundle), "--trust", str(running.trust)]
    done = CliRunner().invoke(cli, [*words, "--json", *opened])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_answered_at_once_and_proven_afterwards(
    running: Proving, tmp_path: Path
) -> None:
    with running.client("critical") as client:
        answer, features = running.ask(client)
        assert answer.is_provisional
        assert answer.verdict.claims["missing_attachments"] == ["proof"]
        np.testing.assert_array_equal(scores_of(answer), running.expected(features))
        answer = running.confirmed(client, answer)
    claims = answer.verdict.claims
    proofs = claims["proofs"]
    assert (proofs["verified"], proofs["of"]) == (2, 2)
    assert [p["name"] for p in proofs["provers"]] == [
        running.prover(segment) for segment in running.segments
    ]
    assert proofs["manifest"] == running.case.manifest.digest
    assert proofs["signer"] == running.case.owner.public.key_id
    assert 0 < proofs["deviation"]["scores"] <= proofs["bound"]
    assert (claims["proof_opening"], claims["unsafe_srs"]) == ("checked", True)
    running.require_each_once(answer)
    # The receipt alone says as much as is open, and the salt opens the rest.
    said = json.loads(verified(answer, running, tmp_path))
    assert (said["verdict"], said["proof_opening"]) == ("accepted", "not checked")
    opened = ["--salt", answer.root_salt.hex(), "--input", f"{tmp_path}/request"]
    opened += ["--output", f"{tmp_path}/response"]
    said = json.loads(verified(answer, running, tmp_path, *opened))
    assert (said["verdict"], said["proof_opening"]) == ("accepted", "checked")


def test_what_is_served_is_what_is_proven(running: Proving) -> None:
    with running.client("served") as client:
        answer, features = running.ask(client)
        assert answer.is_provisional
        answer = running.confirmed(client, answer)
    claims = answer.verdict.claims
    assert claims["proof_opening"] == "checked"
    # Integers over 2**scale, and not what the replicas computed in floats.
    scale = running.case.manifest.scale
    scores, floats = scores_of(answer), running.expected(features)
    np.testing.assert_array_equal(scores * 2**scale, np.rint(scores * 2**scale))
    assert 0 < np.abs(scores - floats).max() <= running.case.manifest.accuracy.bound
    running.require_each_once(answer)


def test_an_answer_that_waits_for_its_proofs(running: Proving) -> None:
    with running.client("patient") as client:
        answer, _ = running.ask(client)
    assert not answer.is_provisional
    assert answer.verdict.claims["proofs"]["verified"] == 2
    running.require_each_once(answer)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (measurements(2)[INPUT], "shape"),
        (np.full((1, 4), 2e6, np.float32), "want less than"),
    ],
    ids=["another shape", "out of range"],
)
def test_what_no_circuit_takes_is_refused_before_anybody_is_asked(
    running: Proving, features: np.ndarray, said: str
) -> None:
    before = settled(running)
    with (
        running.client("critical") as client,
        pytest.raises(ConfigurationError, match=said),
    ):
        client.call("score", {INPUT: features.tolist()})
    # No replica was asked, nothing was signed, and nothing is owed.
    assert of_proofs(settled(running) - before) == Counter()
    assert running.owed() == 0


def settled(running: Proving, *, but: Sequence[str] = ("general",)) -> Counter[Key]:
    """Scrape when nothing is owed, and every receipt issued has come to one end.

    Args:
        running: Which.
        but: Scenarios whose receipts wait for a draw.
    """
    waiting = {f"scenario={name}" for name in but}

    def look() -> Counter[Key] | None:
        counts = scrape(running.entry.metrics())
        issued = ended = 0
        for key, value in counts.items():
            if key[0] == "receipts_total" and waiting.isdisjoint(key):
                issued += value if "state=issued" in key else 0
                ended += 0 if "state=issued" in key else value
        depth = counts[series("proof_queue_depth")]
        return counts if issued == ended and not depth else None

    return eventually(look, seconds=SECONDS, what="every receipt has ended", every=0.5)


def of_proofs(counts: Counter[Key]) -> Counter[Key]:
    """Return what requests and their proofs count, but no attestation."""
    kept = ("receipts_total", "quorum_total", "proof_seconds_count")
    return Counter(
        {
            key: value
            for key, value in counts.items()
            if value and (key[0] in kept or "mechanism=proof" in key)
        }
    )


def test_what_is_counted_is_what_was_done(running: Proving) -> None:
    before, asked = settled(running), 3
    with running.client("critical") as client:
        answers = [running.ask(client)[0] for _ in range(asked)]
        depth = scrape(running.entry.metrics())[series("proof_queue_depth")]
        for answer in answers:
            running.confirmed(client, answer)
    assert depth > 0
    counts = settled(running)
    want: Counter[Key] = Counter()
    for state in ("issued", "completed"):
        want[series("receipts_total", scenario="critical", state=state)] = asked
    for segment in map(str, running.segments):
        want[series("quorum_total", segment=segment, outcome="agreed")] = asked
        for phase in ("execute", "prove"):
            labels = {"segment": segment, "phase": phase}
            want[series("proof_seconds_count", **labels)] = asked
        labels = {"mechanism": "proof", "segment": segment}
        # By the prover's child, and by the entry before it is attached.
        passed = series("verifications_total", result="pass", **labels)
        want[passed] = 2 * asked
        want[series("verification_seconds_count", **labels)] = asked
    assert of_proofs(counts - before) == want
    # Provers show the same: BentoML's workers of one host count together.
    urls = running.entry.replica_urls()
    for index in running.segments:
        with client_of(urls[running.prover(index)]) as http:
            assert of_proofs(scrape(http.get("/metrics").text) - before) == want


def challenged(
    running: Proving, auditor: ChallengeAuditor, client: SecureClient
) -> Iterator[Answer]:
    """Ask four times; yield each answer once it is known who is challenged."""
    answers = [running.ask(client)[0] for _ in range(4)]
    assert all(answer.is_provisional for answer in answers)
    # Nothing is drawn, so nothing is proven, before the auditor has spoken.
    assert not any(proven_places(answer.bundle) for answer in answers)
    for answer in answers:
        while answer.is_provisional:
            assert not any(each.refusal for each in auditor.answer_roots())
            answer = client.confirm(answer)
        yield answer


def test_who_is_challenged_is_proven_and_others_when_they_are(
    running: Proving, tmp_path: Path
) -> None:
    found: dict[bool, Answer] = {}
    done = series("receipts_total", scenario="general", state="completed")
    before, asked = scrape(running.entry.metrics())[done], 0
    with (
        running.client("general") as client,
        ChallengeAuditor(
            running.entry.url, running.trust, AUDITOR, seen=tmp_path / "seen"
        ) as auditor,
    ):
        while len(found) < 2:
            for answer in challenged(running, auditor, client):
                asked += 1
                found[answer.verdict.claims["epoch"]["challenged"]] = answer
        for drawn, answer in found.items():
            claims = answer.verdict.claims
            assert claims["epoch"]["auditors"] == [AUDITOR.public.key_id]
            assert ("proofs" in claims) is drawn
        # Whether it was challenged or not, nothing is missing from it any more.
        eventually(
            lambda: scrape(running.entry.metrics())[done] - before >= asked,
            seconds=SECONDS,
            what="all are counted as completed",
        )
        running.require_each_once(found[True])
        assert proven_places(found[False].bundle) == []
        # Later, for a reason of the auditor's own.
        count = len(running.segments)
        assert auditor.challenge(found[False].bundle.receipt) == count
        assert auditor.challenge(found[False].bundle.receipt) <= count
        later = eventually(
            lambda: (
                answer
                if "proofs" in (answer := client.confirm(found[False])).verdict.claims
                else None
            ),
            seconds=SECONDS,
            what="a receipt that was challenged later is proven",
        )
        running.require_each_once(later)
        # It was completed before, and ends once as all do.
        settled(running, but=())
        with pytest.raises(ConfigurationError, match="no orders of its proofs"):
            auditor.challenge(later.bundle.receipt)


def test_an_auditor_takes_part_by_the_command_line(
    running: Proving, tmp_path: Path
) -> None:
    (key := tmp_path / "auditor.pem").write_bytes(AUDITOR_PEM)
    words = [str(running.entry.url), "--trust", str(running.trust), "--key", str(key)]
    watch = ["auditor", "watch", *words, "--seen", str(tmp_path / "seen"), "--once"]
    with running.client("general") as client:
        answer, said = running.ask(client)[0], ""
        while answer.is_provisional:
            # Its root, and those of what others asked before.
            done = CliRunner().invoke(cli, watch)
            assert done.exit_code == 0, done.output
            said += done.stdout
            answer = client.confirm(answer)
    epoch = answer.verdict.claims["epoch"]
    assert epoch["auditors"] == [AUDITOR.public.key_id]
    assert f"signed   {epoch['root']}" in said.splitlines()
    (bundle := tmp_path / "bundle.json").write_text(json.dumps(answer.bundle.to_json()))
    url, *options = words
    challenge = ["auditor", "challenge", url, str(bundle), *options]
    done = CliRunner().invoke(cli, challenge)
    if epoch["challenged"]:
        assert "no orders of its proofs are held" in done.output
    else:
        assert done.stdout == f"{len(running.segments)} proofs are owed\n"


def test_a_stranger_draws_nothing(running: Proving) -> None:
    auditor = EpochAuditor(SigningKey.generate(), draw=lambda: bytes(32))
    with running.client("general") as client:
        entry = VerificationKey.from_hex(client.attest().document.ed25519)
        running.ask(client)
    with httpx.Client(base_url=running.entry.url, timeout=60) as http:
        (document, *_) = eventually(
            lambda: http.get("/bsec/v1/epochs").json()["roots"],
            seconds=SECONDS,
            what="a root is shown",
        )
        nonce = auditor.answer(parse_epoch_envelope(document, what="root"), entry)
        said = http.post("/bsec/v1/epochs", json=nonce.to_json())
    assert said.status_code >= 400
    assert "is no auditor here" in said.text


def test_a_stranger_has_nothing_proven(running: Proving) -> None:
    with (
        running.client("general") as client,
        ChallengeAuditor(
            running.entry.url, running.trust, SigningKey.generate()
        ) as auditor,
    ):
        receipt = running.ask(client)[0].bundle.receipt
        with pytest.raises(SecureError, match="is no auditor here"):
            auditor.challenge(receipt)
    with (
        ChallengeAuditor(running.entry.url, running.trust, AUDITOR) as auditor,
        pytest.raises(ConfigurationError, match="its epoch is not drawn yet"),
    ):
        auditor.challenge(receipt)


@pytest.mark.parametrize("scenario", ["hasty", "hasty-patient"])
def test_a_proof_that_comes_too_late(running: Proving, scenario: str) -> None:
    before = settled(running)
    with suspended([running.process(running.prover(1))]):
        with running.client(scenario) as client:
            if scenario == "hasty":
                answer, _ = running.ask(client)
                assert answer.is_provisional
                with pytest.raises(ReceiptError, match="proof"):
                    until_judged(client, answer)
            else:
                with pytest.raises(UnavailableError, match="not proven within 3 s"):
                    running.ask(client)
        failed = series("receipts_total", scenario=scenario, state="failed")
        eventually(
            lambda: (scrape(running.entry.metrics()) - before)[failed] == 1,
            seconds=SECONDS,
            what="the receipt has failed",
        )
        # Its orders are given up, so nothing that comes later is attached.
        assert running.owed() == 0
    counts = settled(running) - before
    lost = {"mechanism": "proof", "segment": "1", "result": "error"}
    assert counts[series("verifications_total", **lost)] == 1
    with running.client("critical") as client:
        running.confirmed(client, running.ask(client)[0])


def until_judged(client: SecureClient, answer: Answer) -> None:
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        assert client.confirm(answer).is_provisional


@pytest.mark.slow
@pytest.mark.parametrize(
    ("segments", "link"), [(1, Link.HASHED), (3, Link.HASHED), (3, Link.POLYCOMMIT)]
)
def test_plans_of_other_lengths_and_links(
    tmp_path: Path, segments: int, link: Link
) -> None:
    with proving(tmp_path, segments=segments, replicas=1, link=link) as running:
        with running.client("critical") as client:
            answer, features = running.ask(client)
            np.testing.assert_array_equal(scores_of(answer), running.expected(features))
            answer = running.confirmed(client, answer)
        assert answer.verdict.claims["proofs"]["verified"] == segments
        assert answer.verdict.claims["proofs"]["links"] == link
        assert answer.verdict.claims["proof_opening"] == "checked"
        running.require_each_once(answer)
