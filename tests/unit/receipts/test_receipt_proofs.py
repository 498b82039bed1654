"""The attachment "proof": its form, who signs it, when it is due, what it claims."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.errors import (
    MalformedInputError,
    MissingDependencyError,
    MissingEndorsementError,
    ReceiptError,
    UnavailableError,
)
from bentoml_secure.proofs.proof import Facts, Limits, ProofBackend, SegmentProof
from bentoml_secure.receipts import proving
from bentoml_secure.receipts.attachments import (
    parse_attachment,
    read_attachment,
    signer_of,
)
from bentoml_secure.receipts.bundle import Bundle, parse_bundle
from bentoml_secure.receipts.proofs import (
    PROOF,
    ProofRecord,
    evidence_nonce,
    issue_proof,
    longest_proof,
)
from bentoml_secure.receipts.proving import Checker
from bentoml_secure.receipts.verify import State, Verdict, verify_bundle
from bentoml_secure.signing import Envelope
from bentoml_secure.testing.deployment import Deployment, build_deployment
from bentoml_secure.testing.proof_set_up import LIMITS
from bentoml_secure.testing.proofs import Records, attach, attested
from bentoml_secure.testing.receipts import Draft, build_draft
from tests import proven_case

HASH = "0" * 64


@pytest.fixture
def draft() -> Draft:
    return proven_case.proven()[0]


@pytest.fixture
def records() -> Records:
    return dict(proven_case.proven()[1])


@pytest.fixture
def whole(draft: Draft, records: Records) -> Bundle:
    return attach(draft.bundle(), draft.deployment, records)


def judge(bundle: Bundle, deployment: Deployment, **options: Any) -> Verdict:
    now = deployment.now + timedelta(seconds=5)
    return verify_bundle(bundle, deployment.trust, now=now, **options)


def content_of(envelope: Envelope) -> dict[str, Any]:
    return dict(read_attachment(envelope).content)


def test_a_record_parses_back(draft: Draft, records: Records) -> None:
    for place, record in records.items():
        key = draft.deployment.provers[place[1]].signing
        attachment = read_attachment(issue_proof(record, key))
        assert attachment.kind == PROOF
        assert ProofRecord.from_attachment(attachment) == record
        signer = signer_of(attachment)
        assert signer is not None
        assert signer.key_id == key.public.key_id
        assert record.place == (record.about.infer, record.about.segment) == place


def test_the_nonce_is_of_one_proof_of_one_receipt(draft: Draft) -> None:
    digest = draft.bundle(attach=False).receipt.payload_digest
    seen = {
        evidence_nonce(d, infer, segment)
        for d in (digest, draft.deployment.plan.digest)
        for infer in range(3)
        for segment in range(3)
    }
    assert len(seen) == 18
    assert {len(nonce) for nonce in seen} == {32}


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("infer",), -1, "infer"),
        (("infer",), True, "infer"),
        (("infer",), 1024, "infer"),
        (("segment",), 256, "segment"),
        (("nonce",), "00", "nonce"),
        (("manifest",), "sha256:" + HASH, "manifest"),
        (("proof",), None, "proof"),
        (("proof", "backend"), "../ezkl", "backend"),
        (("proof", "instances"), {}, "instances"),
        (("proof", "instances", "salt"), "f" * 64, "below the field's modulus"),
        (("proof", "proof"), "", "empty"),
        (("proof", "proof"), "AA", "base64"),
        (("prover",), {}, "prover"),
        (("prover", "key_document"), {}, "key document"),
        (("prover", "evidence"), {}, "evidence"),
        (("inputs",), [], "inputs"),
        (("outputs",), None, "deviation"),
        (("outputs",), {"y": "sha256:" + HASH}, "outputs"),
        (("deviation",), None, "deviation"),
        (("deviation",), {}, "deviation"),
        (("deviation",), {"z": 0.0}, "deviation"),
        (("deviation",), {"y": -0.5}, "below zero"),
        (("deviation",), {"y": True}, "deviation"),
        (("opening",), "?", "opening"),
        (("opening",), 1, "opening"),
    ],
)
def test_what_is_refused(
    draft: Draft,
    records: Records,
    path: tuple[str, ...],
    value: object,
    match: str,
) -> None:
    envelope = issue_proof(records[0, 1], draft.deployment.provers[1].signing)
    statement = parse_json(envelope.payload, what="statement", max_bytes=1 << 24)
    inner = statement["predicate"]
    for name in path[:-1]:
        inner = inner[name]
    assert path[-1] in inner
    inner[path[-1]] = value
    with pytest.raises(MalformedInputError, match=match):
        ProofRecord.from_attachment(parse_attachment(statement))


def test_a_time_out_of_all_proportion(draft: Draft, records: Records) -> None:
    odd = replace(records[0, 0], issued_at="9999-01-01T00:00:00.000Z")
    bundle = attach(draft.bundle(), draft.deployment, [odd])
    with pytest.raises(ReceiptError, match="want a year from 2000"):
        judge(bundle, draft.deployment)


def test_a_bundle_with_keys_parses_back(whole: Bundle) -> None:
    document = whole.to_json()
    assert parse_bundle(canonical_json(document)) == whole
    assert document["verification_keys"] == whole.verification_keys
    document["verification_keys"] = []
    with pytest.raises(MalformedInputError, match="verification_keys: want an object"):
        parse_bundle(canonical_json(document))


def test_a_deployment_that_proves_nothing_has_none(draft: Draft) -> None:
    bundle = build_draft(build_deployment()).bundle()
    assert "verification_keys" not in bundle.to_json()
    assert longest_proof(draft.deployment.scenario) == timedelta(seconds=600)


class TestClaims:
    def test_who_proved_what(self, whole: Bundle, draft: Draft) -> None:
        verdict = judge(whole, draft.deployment)
        manifest = proven_case.set_up().manifest
        proofs = verdict.claims["proofs"]
        assert proofs["manifest"] == manifest.digest
        assert proofs["signer"] == manifest.signer_id
        assert proofs["verified"] == proofs["of"] == 2
        assert [prover["name"] for prover in proofs["provers"]] == [
            "DProver0",
            "DProver1",
        ]
        assert verdict.simulated
        # The nonce follows from the receipt: there is no age to leave out.
        assert not [left for left in verdict.unchecked if left.field.endswith(" age")]

    def test_without_proofs_nothing_is_said(self) -> None:
        deployment = build_deployment()
        verdict = judge(build_draft(deployment).bundle(), deployment)
        assert {"proofs", "proof_opening", "unsafe_srs"}.isdisjoint(verdict.claims)

    def test_some_of_them(self, draft: Draft, records: Records) -> None:
        bundle = attach(draft.bundle(), draft.deployment, [records[0, 1]])
        verdict = judge(bundle, draft.deployment)
        assert verdict.state is State.PROVISIONAL
        assert verdict.claims["missing_attachments"] == [PROOF]
        assert verdict.claims["proofs"]["verified"] == 1
        assert verdict.claims["proofs"]["of"] == 2

    def test_none_of_them(self, draft: Draft) -> None:
        verdict = judge(draft.bundle(), draft.deployment)
        assert verdict.state is State.PROVISIONAL
        assert "proofs" not in verdict.claims

    def test_proofs_that_nobody_asked_for_are_judged_all_the_same(
        self, draft: Draft, records: Records
    ) -> None:
        deployment = proven_case.deploy(proof="none")
        digest = (own := build_draft(deployment)).bundle().receipt.payload_digest
        foreign = replace(records[0, 0], receipt_digest=digest)
        bundle = attach(own.bundle(), deployment, [foreign])
        with pytest.raises(ReceiptError, match="prover config_digest"):
            judge(bundle, deployment)


class TestPlacement:
    def test_a_prover_shows_what_its_segments_runners_must(self) -> None:
        left = {"unchecked": "made up"}
        deployment = build_deployment(
            segments=2,
            set_up=proven_case.set_up(),
            terms={"placement": {"0": ("tdx",)}},
            kinds={"tdx": {"status": left, "mr_td": left, "rtmr": left}},
        )
        draft = build_draft(deployment)
        record = replace(
            proven_case.proven()[1][0, 0],
            receipt_digest=draft.bundle().receipt.payload_digest,
        )
        record = attested(record, deployment.provers[0])
        bundle = attach(draft.bundle(), deployment, [record])
        with pytest.raises(ReceiptError, match="segment 0 prover placement"):
            judge(bundle, deployment)


class TestWhatVerifies:
    """What cannot be verified here is neither accepted nor rejected."""

    @staticmethod
    def absent(name: str) -> ProofBackend:
        raise MissingDependencyError(f"{name} is not installed.", remedy="Install it.")

    def test_it_is_not_installed(self, whole: Bundle, draft: Draft) -> None:
        with pytest.raises(MissingDependencyError, match="ezkl is not installed"):
            judge(whole, draft.deployment, checker=Checker(open=self.absent))

    def test_what_is_wrong_besides_rejects(
        self, draft: Draft, records: Records
    ) -> None:
        records[0, 0] = replace(records[0, 0], nonce=HASH)
        bundle = attach(draft.bundle(), draft.deployment, records)
        with pytest.raises(ReceiptError, match="nonce"):
            judge(bundle, draft.deployment, checker=Checker(open=self.absent))

    @pytest.mark.parametrize(
        "limits",
        [
            Limits(memory_bytes=4 << 30, seconds=0.01),
            Limits(memory_bytes=4 << 20, seconds=60),
        ],
        ids=["time", "memory"],
    )
    def test_it_ended_before_it_was_done(
        self, whole: Bundle, draft: Draft, limits: Limits
    ) -> None:
        with pytest.raises(UnavailableError, match="verify"):
            judge(whole, draft.deployment, checker=Checker(limits=limits))

    def test_evidence_lacks_an_endorsement(
        self, whole: Bundle, draft: Draft, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def judged(*arguments: object, **named: object) -> None:
            raise MissingEndorsementError("no certificate of this chip")

        monkeypatch.setattr(proving, "verify_key_document", judged)
        with pytest.raises(MissingEndorsementError, match="no certificate"):
            judge(whole, draft.deployment)

    def test_another_backend(self, draft: Draft, records: Records) -> None:
        own = proven_case.set_up().altered(backend="groth")
        deployment = proven_case.deploy(own)
        made = build_draft(deployment)
        bundle = attach(made.bundle(), deployment, records)
        with pytest.raises(ReceiptError, match="unknown kind 'groth'"):
            judge(bundle, deployment)


def test_hashes_are_computed_as_circuits_do() -> None:
    backend = proven_case.set_up().backend
    first, again, other = backend.hash([(1, 2), (1, 2), (2, 1)], LIMITS)
    assert first == again != other
    proof = SegmentProof(backend="ezkl", facts=Facts(first, again, other), proof=b"x")
    assert SegmentProof.from_json(proof.to_json()) == proof
