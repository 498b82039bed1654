"""Attacks on parties, evidence, signatures and headers, each with its finding.

Every bundle is made by the real code with real keys and simulated evidence, tampered
with, and signed again by whoever could: the entry itself, unless the test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import digest_bytes, digest_json
from bentoml_secure.errors import ReceiptError
from bentoml_secure.receipts.bundle import Bundle
from bentoml_secure.receipts.receipt import (
    Draw,
    derive_request_id,
)
from bentoml_secure.receipts.verify import verify_bundle
from bentoml_secure.signing import SigningKey, sign
from bentoml_secure.statements import (
    INTOTO_TYPE,
    format_time,
)
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Draft, build_draft
from bentoml_secure.testing.tampering import (
    party,
    runners_of,
    with_party,
    with_receipt,
)

Attack = Callable[[Draft], Bundle]


def findings(bundle: Bundle, deployment: Deployment, now: datetime) -> set[str]:
    with pytest.raises(ReceiptError, match=r"rejected|cannot be read") as error:
        verify_bundle(bundle, deployment.trust, now=now)
    return {finding.field for finding in error.value.findings}


# Parties and evidence.


def one_key_two_names(draft: Draft) -> Bundle:
    first, second = draft.deployment.runners
    twin = replace(
        first[1],
        signing=first[0].signing,
        document=replace(first[1].document, ed25519=first[0].document.ed25519),
    )
    return build_draft(runners_of(draft, (first[0], twin, first[2]), second)).bundle()


def with_document(draft: Draft, **changes: Any) -> Draft:
    """A replica whose real, attested document says something else."""
    first, second = draft.deployment.runners
    odd = replace(first[1], document=replace(first[1].document, **changes))
    return build_draft(runners_of(draft, (first[0], odd, first[2]), second))


def prover_as_runner(draft: Draft) -> Bundle:
    odd = with_document(draft, role=Role.PROVER)
    return with_party(odd, "DSegment0Replica1", role="runner").bundle()


def runner_of_another_plan(draft: Draft) -> Bundle:
    return with_document(draft, plan=digest_json("another")).bundle()


def runner_of_another_deployment(draft: Draft) -> Bundle:
    return with_document(draft, config_digest=digest_json("another")).bundle()


def runner_of_another_release(draft: Draft) -> Bundle:
    return with_document(draft, package=digest_json("another")).bundle()


def one_document_two_names(draft: Draft) -> Bundle:
    shown = party(draft, "DSegment0Replica0")
    return with_party(
        draft,
        "DSegment0Replica1",
        key_document=shown.key_document,
        evidence=shown.evidence,
        evidence_nonce=shown.evidence_nonce,
    ).bundle()


def evidence_of_another_party(draft: Draft) -> Bundle:
    shown = party(draft, "DSegment0Replica0")
    return with_party(
        draft,
        "DSegment0Replica1",
        evidence=shown.evidence,
        evidence_nonce=shown.evidence_nonce,
    ).bundle()


def replayed_evidence(draft: Draft) -> Bundle:
    """Evidence over another nonce than the one that the receipt names."""
    return with_party(draft, "DSegment0Replica1", evidence_nonce="00" * 32).bundle()


def without_evidence_of(name: str) -> Attack:
    def attack(draft: Draft) -> Bundle:
        bundle, gone = draft.bundle(), party(draft, name).evidence
        return replace(
            bundle, evidence=tuple(r for r in bundle.evidence if r.digest != gone)
        )

    return attack


def without_document_of(name: str) -> Attack:
    def attack(draft: Draft) -> Bundle:
        bundle = draft.bundle()
        kept = tuple(d for d in bundle.key_documents if d.service != name)
        return replace(bundle, key_documents=kept)

    return attack


def without_entry(draft: Draft) -> Bundle:
    runners = tuple(p for p in draft.receipt.parties if p.role != "entry")
    return with_receipt(draft, parties=runners).bundle()


def without_voter(draft: Draft) -> Bundle:
    rest = tuple(p for p in draft.receipt.parties if p.name != "DSegment0Replica2")
    return with_receipt(draft, parties=rest).bundle()


def uninvited_party(draft: Draft) -> Bundle:
    shown = party(draft, "DSegment0Replica0")
    guest = replace(shown, name="Guest")
    return with_receipt(draft, parties=(*draft.receipt.parties, guest)).bundle()


def stale_evidence(draft: Draft) -> Bundle:
    long_ago = format_time(draft.deployment.now - timedelta(seconds=400))
    return with_party(draft, "DSegment1Replica2", nonce_issued_at=long_ago).bundle()


def evidence_from_the_future(draft: Draft) -> Bundle:
    later = format_time(draft.deployment.now + timedelta(seconds=2))
    return with_party(draft, "DSegment1Replica2", nonce_issued_at=later).bundle()


def runner_as_entry(draft: Draft) -> Bundle:
    """A runner signs a receipt of its own, as the service."""
    rogue = draft.deployment.runners[0][0]
    forged = with_receipt(
        with_party(draft, rogue.name, role="entry"), service=rogue.name
    )
    return forged.bundle(key=rogue.signing)


def other_configuration(draft: Draft) -> Bundle:
    return with_receipt(draft, config_digest=digest_json("another")).bundle()


def padded_bundle(draft: Draft) -> Bundle:
    bundle = draft.bundle()
    stranger = replace(bundle.key_documents[0], service="Stranger")
    return replace(bundle, key_documents=(*bundle.key_documents, stranger))


# Signatures.


def signed_by_a_stranger(draft: Draft) -> Bundle:
    return draft.bundle(key=SigningKey.generate())


def signed_by_a_stranger_who_shows_a_key(draft: Draft) -> Bundle:
    """The thief brings a key document of its own; evidence binds the entry's."""
    key, entry = SigningKey.generate(), draft.deployment.entry
    document = replace(entry.document, ed25519=key.public.raw.hex())
    forged = with_party(draft, entry.name, key_document=document.digest)
    bundle = forged.bundle(key=key)
    rest = bundle.key_documents[1:]
    return replace(bundle, key_documents=(document, *rest))


def edited_after_signing(draft: Draft) -> Bundle:
    bundle = draft.bundle()
    payload = bundle.receipt.payload.replace(b'"status":200', b'"status":201')
    return replace(bundle, receipt=replace(bundle.receipt, payload=payload))


def unknown_field(draft: Draft) -> Bundle:
    document = draft.receipt.to_statement()
    document["predicate"]["note"] = "trust me"
    envelope = sign(draft.deployment.entry.signing, INTOTO_TYPE, document)
    return replace(draft.bundle(), receipt=envelope)


# Request id, plan, scenario, times.


def other_draw(draft: Draft) -> Bundle:
    draw = replace(draft.receipt.draw, commitment=digest_bytes(b"another"))
    return with_receipt(draft, draw=draw).bundle()


def chosen_request_id(draft: Draft) -> Bundle:
    return with_receipt(draft, receipt_id="00" * 16).bundle()


def other_r(draft: Draft) -> Bundle:
    return with_receipt(
        draft, draw=Draw.of(bytes(32), draft.receipt.draw.signed)
    ).bundle()


def other_nonce(draft: Draft) -> Bundle:
    """A receipt made for one caller is shown to another."""
    nonce, r = bytes(32), bytes.fromhex(draft.receipt.draw.r)
    return with_receipt(
        draft, client_nonce=nonce.hex(), receipt_id=derive_request_id(r, nonce).hex()
    ).bundle()


def weaker_scenario_shown(draft: Draft) -> Bundle:
    weak = replace(draft.deployment.scenario, quorum=3)
    return replace(draft.bundle(), scenario=weak)


def scenario_under_another_name(draft: Draft) -> Bundle:
    return with_receipt(draft, scenario_name="critical").bundle()


def other_plan_shown(draft: Draft) -> Bundle:
    bundle = draft.bundle()
    return replace(bundle, plan=replace(bundle.plan, model_name="another"))


def ends_before_it_begins(draft: Draft) -> Bundle:
    late = format_time(draft.deployment.now + timedelta(seconds=2))
    return with_receipt(draft, started_at=late).bundle()


def issued_in_the_future(draft: Draft) -> Bundle:
    later = format_time(draft.deployment.now + timedelta(seconds=200))
    return with_receipt(draft, issued_at=later).bundle()


def evidence_twice(draft: Draft) -> Bundle:
    bundle = draft.bundle()
    return replace(bundle, evidence=(*bundle.evidence, bundle.evidence[0]))


ATTACKS: list[tuple[Attack, str]] = [
    (prover_as_runner, "party DSegment0Replica1 role"),
    (runner_of_another_plan, "party DSegment0Replica1 plan"),
    (runner_of_another_deployment, "party DSegment0Replica1 config_digest"),
    (runner_of_another_release, "party DSegment0Replica1 package"),
    (one_key_two_names, "party DSegment0Replica1 ed25519"),
    (one_document_two_names, "party DSegment0Replica1 key_document"),
    (one_document_two_names, "party DSegment0Replica1 service"),
    (evidence_of_another_party, "party DSegment0Replica1 evidence report_data"),
    (replayed_evidence, "party DSegment0Replica1 evidence report_data"),
    (without_evidence_of("D"), "party D evidence"),
    (
        without_evidence_of("DSegment1Replica0"),
        "party DSegment1Replica0 evidence",
    ),
    (without_document_of("D"), "party D key_document"),
    (without_document_of("D"), "receipt signature"),
    (
        without_document_of("DSegment1Replica0"),
        "party DSegment1Replica0 key_document",
    ),
    (
        without_document_of("DSegment1Replica0"),
        "infer 0 segment 1 statement DSegment1Replica0",
    ),
    (without_entry, "parties entry"),
    (without_voter, "infer 0 segment 0 replica DSegment0Replica2"),
    (uninvited_party, "parties"),
    (stale_evidence, "party DSegment1Replica2 nonce_issued_at"),
    (stale_evidence, "party DSegment1Replica2 evidence nonce_issued_at"),
    (evidence_from_the_future, "party DSegment1Replica2 nonce_issued_at"),
    (runner_as_entry, "party DSegment0Replica0 role"),
    (other_configuration, "config_digest"),
    (other_configuration, "party D config_digest"),
    (padded_bundle, "bundle key_documents"),
    (evidence_twice, "bundle evidence"),
    (signed_by_a_stranger, "receipt signature"),
    (
        signed_by_a_stranger_who_shows_a_key,
        "party D evidence report_data",
    ),
    (edited_after_signing, "receipt signature"),
    (unknown_field, "receipt"),
    (other_draw, "draw commitment"),
    (chosen_request_id, "receipt_id"),
    (other_r, "receipt_id"),
    (other_nonce, "infer 0 segment 0 statement DSegment0Replica0 nonce"),
    (weaker_scenario_shown, "scenario digest"),
    (scenario_under_another_name, "scenario name"),
    (other_plan_shown, "plan_digest"),
    (ends_before_it_begins, "started_at"),
    (issued_in_the_future, "issued_at"),
]


@pytest.mark.parametrize(
    ("attack", "finding"), ATTACKS, ids=lambda value: getattr(value, "__name__", value)
)
def test_attack_is_named(
    attack: Attack,
    finding: str,
    draft: Draft,
    deployment: Deployment,
    now: datetime,
) -> None:
    assert finding in findings(attack(draft), deployment, now)
