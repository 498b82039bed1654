"""Real bundles of a running service, tampered with and judged offline.

An altered receipt is refused for its signature, and the change itself is named as
well. What a dishonest entry could sign is judged in tests/unit/receipts.
"""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentoml_secure.client import Answer
from bentoml_secure.digest import Digest, derive_salt, digest_json
from bentoml_secure.errors import MalformedInputError, ReceiptError
from bentoml_secure.receipts.bundle import parse_bundle
from bentoml_secure.receipts.receipt import Receipt, parse_receipt
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.receipts.verify import State, Verdict, verify_bundle
from bentoml_secure.signing import SigningKey
from bentoml_secure.tensors import commit
from tests.attacks.forgeries import EDITS, LATE, Edit, Forgery, payload_of
from tests.attacks.targets import SERVICE, Rogues, Target
from tests.harness import FEATURES


@pytest.fixture(scope="module")
def answers(besieged: Target, rogues: Rogues) -> tuple[Answer, Answer]:
    """Two answers, each with a vote that never came and an attachment that says so."""
    with rogues.behaving(**{LATE: "slow-body"}):
        pair = besieged.ask(), besieged.ask()
    besieged.wait_until_whole()
    for answer in pair:
        assert answer.verdict.state is State.ACCEPTED
        assert len(answer.bundle.attachments) == 1
    return pair


@pytest.fixture
def forgery(answers: tuple[Answer, Answer]) -> Forgery:
    first, second = (copy.deepcopy(answer.bundle.to_json()) for answer in answers)
    return Forgery(first, payload_of(first["receipt"]), second)


def judge(target: Target, data: bytes, *, late: bool = False) -> Verdict:
    trust = parse_trust(target.trust.read_bytes())
    # Beyond the deadline of what a receipt requires: half a minute and the grace.
    now = datetime.now(UTC) + timedelta(minutes=5 if late else 0)
    return verify_bundle(parse_bundle(data), trust, now=now)


def findings_of(target: Target, data: bytes, *, late: bool = False) -> dict[str, str]:
    with pytest.raises(ReceiptError, match="receipt") as rejected:
        judge(target, data, late=late)
    return {finding.field: finding.got for finding in rejected.value.findings}


def test_the_bundle_as_it_is_holds(besieged: Target, forgery: Forgery) -> None:
    # The spelling that the edits start from is the signed one.
    assert judge(besieged, forgery.unsigned()).state is State.ACCEPTED


@pytest.mark.parametrize(("edit", "field"), EDITS.values(), ids=EDITS)
def test_an_edited_receipt_is_refused(
    besieged: Target, forgery: Forgery, edit: Edit, field: str
) -> None:
    edit(forgery)
    found = findings_of(besieged, forgery.unsigned())
    assert "does not verify" in found["receipt signature"]
    assert field in found


@pytest.mark.parametrize(("edit", "field"), EDITS.values(), ids=EDITS)
def test_signing_the_edit_with_another_key_helps_nobody(
    besieged: Target, forgery: Forgery, edit: Edit, field: str
) -> None:
    edit(forgery)
    found = findings_of(besieged, forgery.signed(SigningKey.generate()))
    assert "keyid: got" in found["receipt signature"]
    assert field in found


def test_an_unknown_key_is_not_attested_by_being_in_the_bundle(
    besieged: Target, forgery: Forgery
) -> None:
    """All is made anew but the evidence: that speaks of the entry's real key."""
    key = SigningKey.generate()
    (document,) = [
        d for d in forgery.bundle["key_documents"] if d["service"] == SERVICE
    ]
    document["ed25519"] = key.public.raw.hex()
    (party,) = [p for p in forgery.predicate["parties"] if p["name"] == SERVICE]
    party["key_document"] = digest_json(document)
    found = findings_of(besieged, forgery.signed(key))
    assert "receipt signature" not in found
    assert f"party {SERVICE} evidence report_data" in found


@pytest.mark.parametrize("where", ["payload", "predicate", "tally", "bundle", "party"])
def test_an_unknown_field_is_refused(
    besieged: Target, forgery: Forgery, where: str
) -> None:
    places: dict[str, dict[str, Any]] = {
        "payload": forgery.statement,
        "predicate": forgery.predicate,
        "tally": forgery.segments[0]["tally"],
        "party": forgery.predicate["parties"][0],
        "bundle": forgery.bundle,
    }
    places[where]["approved"] = True
    data = forgery.signed(SigningKey.generate())
    if where == "bundle":
        with pytest.raises(MalformedInputError, match="unknown field 'approved'"):
            judge(besieged, data)
    else:
        refusal = findings_of(besieged, data)["receipt"]
        assert "unknown field 'approved'" in refusal or "want" in refusal


def drop_attachment(forgery: Forgery) -> None:
    forgery.bundle["attachments"] = []


def borrow_attachment(forgery: Forgery) -> None:
    forgery.bundle["attachments"] = forgery.other["attachments"]


def double_attachment(forgery: Forgery) -> None:
    forgery.bundle["attachments"] *= 2


def borrow_receipt(forgery: Forgery) -> None:
    forgery.bundle["receipt"] = forgery.other["receipt"]


def drop_evidence(forgery: Forgery) -> None:
    forgery.bundle["evidence"].pop()


def drop_key_document(forgery: Forgery) -> None:
    forgery.bundle["key_documents"].pop()


def edit_plan(forgery: Forgery) -> None:
    for segment in forgery.bundle["plan"]["segments"]:
        segment["tolerance"] = 1e9


def edit_scenario(forgery: Forgery) -> None:
    forgery.bundle["scenario"]["deadline_ms"] = 1


BUNDLES: dict[str, tuple[Callable[[Forgery], None], str]] = {
    "attachment removed": (drop_attachment, "late-votes"),
    "attachment of another receipt": (borrow_attachment, "subject"),
    "attachment twice": (double_attachment, "attachment"),
    "receipt of another": (borrow_receipt, "subject"),
    "evidence removed": (drop_evidence, "evidence"),
    "key document removed": (drop_key_document, "key_document"),
    "plan edited": (edit_plan, "plan_digest"),
    "scenario edited": (edit_scenario, "scenario digest"),
}


@pytest.mark.parametrize(("edit", "field"), BUNDLES.values(), ids=BUNDLES)
def test_a_receipt_with_other_papers_is_refused(
    besieged: Target, forgery: Forgery, edit: Edit, field: str
) -> None:
    edit(forgery)
    found = findings_of(besieged, json.dumps(forgery.bundle).encode(), late=True)
    assert any(field in name for name in found), found
    assert "receipt signature" not in found or edit is drop_key_document


def test_a_missing_attachment_is_provisional_until_its_deadline(
    besieged: Target, forgery: Forgery
) -> None:
    drop_attachment(forgery)
    verdict = judge(besieged, json.dumps(forgery.bundle).encode())
    assert verdict.state is State.PROVISIONAL


def run_cli(target: Target, bundle: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("bentoml-secure"))]
    command += ["verify", "receipt", str(bundle), "--trust", str(target.trust)]
    return subprocess.run(
        [*command, "--json"], capture_output=True, text=True, check=False
    )


def test_the_command_line_tells_them_apart(
    besieged: Target, forgery: Forgery, tmp_path: Path
) -> None:
    path = tmp_path / "bundle.json"
    path.write_bytes(forgery.unsigned())
    accepted = run_cli(besieged, path)
    assert (accepted.returncode, json.loads(accepted.stdout)["verdict"]) == (
        0,
        "accepted",
    )
    edit, field = EDITS["statement of another request"]
    edit(forgery)
    path.write_bytes(forgery.unsigned())
    rejected = run_cli(besieged, path)
    verdict = json.loads(rejected.stdout)
    assert (rejected.returncode, verdict["verdict"]) == (1, "rejected")
    assert field in {finding["field"] for finding in verdict["findings"]}


# A request with few possible inputs: what a stranger with the receipt would try.
CANDIDATES = [np.full((1, FEATURES), value, np.float32) for value in range(8)]
CHOSEN = 5


def receipt_of(target: Target, headers: dict[str, str]) -> Receipt:
    response = target.post(features=CANDIDATES[CHOSEN].tolist(), headers=headers)
    receipt_id = response.headers["bsec-receipt-id"]
    bundle = target.http.get(f"/bsec/v1/receipts/{receipt_id}")
    return parse_receipt(parse_bundle(bundle.content).receipt)


def public_salts(receipt: Receipt) -> list[bytes]:
    """Return every salt that follows from what a receipt says, and some constants."""
    texts = [receipt.receipt_id * 2, receipt.client_nonce, receipt.draw.r]
    roots = [bytes(32), b"\xff" * 32, *map(bytes.fromhex, texts)]
    derived = [
        derive_salt(
            root,
            request_id=bytes.fromhex(receipt.receipt_id),
            infer_index=0,
            purpose="tensor",
            name="features",
        )
        for root in roots
    ]
    return [*roots, *derived]


def guess(receipt: Receipt) -> list[int]:
    wanted: Digest = receipt.infers[0].inputs["features"]
    tried = itertools.product(range(len(CANDIDATES)), public_salts(receipt))
    return [
        index
        for index, salt in tried
        if commit({"features": CANDIDATES[index]}, {"features": salt})["features"]
        == wanted
    ]


def test_a_low_entropy_input_cannot_be_guessed(besieged: Target) -> None:
    assert guess(receipt_of(besieged, {})) == []


def test_without_salting_it_is_guessed_at_once(besieged: Target) -> None:
    """A root salt that everybody knows is none."""
    receipt = receipt_of(besieged, {"bsec-root-salt": "0" * 64})
    assert guess(receipt) == [CHOSEN]
