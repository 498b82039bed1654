"""Sessions under attack: handshakes and records that are not what they claim."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from bentoml_secure.attestation.evidence import Evidence, EvidenceRecord
from bentoml_secure.attestation.key_document import Role, report_data
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.digest import digest_json
from bentoml_secure.serving.exchange import Exchange
from bentoml_secure.session.http import Inner
from bentoml_secure.session.identity import Keys
from bentoml_secure.session.suites import CLASSIC, HYBRID, HpkeKeys
from bentoml_secure.signing import SigningKey
from bentoml_secure.split.plan import load_plan
from bentoml_secure.statements import utc_now
from bentoml_secure.tensors import encode
from bentoml_secure.testing.dcap_pki import EVALUATION
from bentoml_secure.testing.simulated_tdx import SimulatedTdxAttester
from tests.attacks import raw
from tests.attacks.raiders import (
    FINISH,
    INFER_PATH,
    JSON,
    SEALED,
    Raider,
    ask,
    new_call,
    opened,
    sealed,
)
from tests.attacks.targets import REPLICAS, Target
from tests.evidence_vectors import vector
from tests.harness import sample


@pytest.fixture
def raider(target: Target) -> Raider:
    return Raider.of(target.project)


@pytest.fixture
def runner(target: Target) -> str:
    return target.served.replica_urls()[REPLICAS[0]]


def message_of(target: Target, call: Any) -> bytes:
    """Return an honest exchange with the first segment."""
    plan = load_plan(target.project.plan)
    segment = plan.segments[0]
    exchange = Exchange(
        request_id=call.request_id.hex(),
        nonce="0" * 64,
        infer_index=0,
        exchange_id=call.exchange_id.hex(),
        plan_digest=plan.digest,
        segment=segment.identity,
        input_salts={spec.name: bytes(32) for spec in segment.inputs},
        output_salts={spec.name: bytes(32) for spec in segment.outputs},
    )
    return exchange.encode() + encode({"features": sample(2)})


def finish_of(raider: Raider, url: str) -> dict[str, Any]:
    """Return a finish that would be accepted."""
    initiator = raider.begin()
    offer = raider.offer(url, initiator)
    record = raider.identity.attest(offer.nonce, raider.identity.keys)
    return initiator.finish(record)


def refused(said: raw.Said, status: int, reason: str) -> None:
    assert said.status == status, said
    assert reason in said.message, said.message


class TestHandshakes:
    def test_an_honest_one(self, raider: Raider, runner: str) -> None:
        """What those below differ from."""
        assert raider.finish(runner, finish_of(raider, runner)).status == 200

    def test_one_nonce_used_twice(self, raider: Raider, runner: str) -> None:
        finish = finish_of(raider, runner)
        assert raider.finish(runner, finish).status == 200
        refused(raider.finish(runner, finish), 400, "no handshake is open under it")

    def test_a_nonce_is_used_up_by_a_failure_too(
        self, raider: Raider, runner: str
    ) -> None:
        finish = finish_of(raider, runner)
        broken = {**finish, "signature": "00" * 64}
        refused(raider.finish(runner, broken), 502, "signature does not verify")
        refused(raider.finish(runner, finish), 400, "no handshake is open under it")

    def test_evidence_recorded_from_another_handshake(
        self, raider: Raider, runner: str
    ) -> None:
        """A stolen quote, shown again by whoever stole it."""
        stolen = raider.identity.attest(bytes(32), raider.identity.keys)
        initiator = raider.begin()
        raider.offer(runner, initiator)
        said = raider.finish(runner, initiator.finish(stolen))
        refused(said, 502, "not acceptable in report_data")

    def test_a_key_swapped_in_the_key_document(
        self, raider: Raider, runner: str
    ) -> None:
        """Evidence of the entry's keys beside a document with the raider's own."""
        own = raider.identity.keys
        signing = SigningKey.generate()
        document = replace(own.document, ed25519=signing.public.raw.hex())
        swapped = Keys(signing, own.hpke, document, document.digest)
        initiator = raider.begin(swapped)
        offer = raider.offer(runner, initiator)
        record = raider.identity.attest(offer.nonce, own)
        said = raider.finish(runner, initiator.finish(record))
        # What would have been accepted is for the log only.
        refused(said, 502, "not acceptable in report_data; the log says why")

    def test_a_relay_that_seals_a_secret_of_its_own(
        self, raider: Raider, runner: str
    ) -> None:
        """Genuine messages both ways, but the master secret is the relay's."""
        finish, other = finish_of(raider, runner), finish_of(raider, runner)
        relayed = {**finish, "sealed": other["sealed"]}
        refused(raider.finish(runner, relayed), 502, "signature does not verify")

    def test_a_finish_for_another_replica(self, target: Target, raider: Raider) -> None:
        urls = target.served.replica_urls()
        finish = finish_of(raider, urls[REPLICAS[0]])
        elsewhere = raider.finish(urls[REPLICAS[1]], finish)
        refused(elsewhere, 400, "no handshake is open under it")

    def test_what_a_runner_showed_is_reflected(
        self, target: Target, runner: str
    ) -> None:
        """The runner's own document and evidence come back as its caller's."""
        raider = Raider.of(target.project)
        initiator = raider.begin()
        offer = raider.offer(runner, initiator)
        finish = initiator.finish(offer.record)
        finish["key_document"] = offer.key_document.to_json()
        refused(raider.finish(runner, finish), 502, "signature does not verify")

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"role": Role.RUNNER}, "role: got runner, want entry"),
            ({"service": "Somebody"}, "entry service: got Somebody"),
            # An entry whose host started it with a policy or scenarios of his own.
            ({"config_digest": digest_json("own")}, "config_digest: got"),
            ({"plan": digest_json("another model")}, "plan: got"),
        ],
    )
    def test_an_entry_of_anything_else(
        self, target: Target, runner: str, changes: dict[str, Any], reason: str
    ) -> None:
        segment = load_plan(target.project.plan).segments[0].identity
        if changes.get("role") is Role.RUNNER:
            changes = {**changes, "segment": segment}
        raider = Raider.of(target.project, **changes)
        refused(raider.finish(runner, finish_of(raider, runner)), 502, reason)

    def test_a_caller_without_evidence_is_no_entry(
        self, raider: Raider, runner: str
    ) -> None:
        initiator = raider.begin()
        raider.offer(runner, initiator)
        said = raider.finish(runner, initiator.finish(None))
        refused(said, 502, "got no evidence")

    def test_an_entry_takes_no_caller_with_a_role(
        self, target: Target, raider: Raider
    ) -> None:
        """Evidence at the client's door would be taken for a right to something."""
        finish = finish_of(raider, target.url)
        refused(raider.finish(target.url, finish), 502, "want a client without")

    def test_a_downgrade_of_the_suite(self, raider: Raider, runner: str) -> None:
        finish = finish_of(raider, runner)
        assert finish["suite"] == HYBRID
        lower = {**finish, "suite": CLASSIC}
        lower["sealed"] = base64.b64encode(bytes(32 + 32 + 16)).decode()
        refused(raider.finish(runner, lower), 502, "signature does not verify")

    def test_a_lower_suite_signed_by_the_caller_itself(
        self, raider: Raider, runner: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from bentoml_secure.session import handshake

        monkeypatch.setattr(handshake, "choose", lambda offered: CLASSIC)
        refused(
            raider.finish(runner, finish_of(raider, runner)), 502, "want the best of"
        )

    def test_a_hybrid_key_stripped_from_the_offer(
        self, raider: Raider, runner: str
    ) -> None:
        """Who stands between cannot take it away: evidence binds what is offered."""
        initiator = raider.begin()
        body = json.dumps(initiator.hello()).encode()
        said = raw.post(runner, "/bsec/v1/session/hello", body, JSON)
        stripped = json.loads(said.body)
        del stripped["key_document"]["hpke"][HYBRID]
        from bentoml_secure.attestation.appraisal import parse_policy
        from bentoml_secure.errors import PolicyRejected
        from bentoml_secure.session.judging import judge
        from bentoml_secure.statements import utc_now

        text = (raider.project.dev_root / "policy.toml").read_bytes()
        with pytest.raises(PolicyRejected, match="report_data"):
            initiator.read_offer(
                stripped,
                lambda shown: judge(shown, parse_policy(text), now=utc_now()),
            )

    @pytest.mark.parametrize("name", ["entry", "runner"])
    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"{}", b"\x80\x04N.", b"[" * 60_000, b"9" * 5000]
    )
    @pytest.mark.parametrize("step", ["hello", "finish"])
    def test_bytes_that_are_no_message(
        self, target: Target, runner: str, name: str, step: str, body: bytes
    ) -> None:
        url = target.url if name == "entry" else runner
        said = raw.post(url, f"/bsec/v1/session/{step}", body, JSON)
        assert said.status in (400, 413), said
        assert said.code in ("malformed-input", "too-large")

    def test_a_message_over_the_cap(self, target: Target, runner: str) -> None:
        with target.watched():
            for url, most in ((runner, 4 << 20), (target.url, 16 << 10)):
                said = raw.post(url, FINISH, b"[" + b" " * most, JSON)
                assert (said.status, said.code) == (413, "too-large")


class RolledBack(SimulatedTdxAttester):
    """Sends collateral of last year's evaluation, signed and in date."""

    @property
    def endorsements(self) -> tuple[bytes, ...]:
        self._pki.now = utc_now()

        def older(document: dict[str, Any]) -> None:
            document["tcbEvaluationDataNumber"] = EVALUATION - 1

        return (self._pki.collateral("TDX", edit_tcb=older, edit_qe=older),)


class TestEvidence:
    def tdx(
        self, target: Target, kind: type[SimulatedTdxAttester] = SimulatedTdxAttester
    ) -> Raider:
        attester = kind(target.project.dev_root, machine="raider's", clock=utc_now)
        return Raider.of(target.project, attester=attester)

    def test_quotes_that_the_policy_accepts(self, target: Target, runner: str) -> None:
        """What those below differ from."""
        raider = self.tdx(target)
        assert raider.finish(runner, finish_of(raider, runner)).status == 200

    def test_collateral_that_is_rolled_back(self, target: Target, runner: str) -> None:
        raider = self.tdx(target, RolledBack)
        said = raider.finish(runner, finish_of(raider, runner))
        refused(said, 502, "not acceptable in tcb_evaluation")

    def test_quotes_without_collateral(self, target: Target, runner: str) -> None:
        raider = self.tdx(target)
        finish = finish_of(raider, runner)
        initiator = raider.begin()
        offer = raider.offer(runner, initiator)
        record = raider.identity.attest(offer.nonce, raider.identity.keys)
        bare = initiator.finish(EvidenceRecord(evidence=record.evidence))
        assert bare.keys() == finish.keys()
        refused(raider.finish(runner, bare), 503, "collateral")

    def test_a_kind_that_the_policy_does_not_name(
        self, target: Target, runner: str
    ) -> None:
        """Real evidence of a real machine, and nobody asked for its kind."""
        raider = Raider.of(target.project)
        initiator = raider.begin()
        raider.offer(runner, initiator)
        evidence = Evidence(kind="nitro", blob=vector("nitro/ok.cose"))
        said = raider.finish(
            runner, initiator.finish(EvidenceRecord(evidence=evidence))
        )
        refused(said, 502, "not acceptable in kind")

    def test_a_gpu_of_another_machine(self, target: Target, runner: str) -> None:
        """Genuine H100s, asked by somebody else, beside the raider's own evidence."""
        gpu = Evidence(kind="nvidia-gpu", blob=vector("nvidia/gpu_evidence.json"))
        raider = Raider.of(target.project)
        initiator, keys = raider.begin(), raider.identity.keys
        offer = raider.offer(runner, initiator)
        covered = report_data(offer.nonce, keys.document, gpu.blob)
        attester = SimulatedAttester.from_folder(target.project.dev_root, clock=utc_now)
        record = EvidenceRecord(evidence=attester.attest(covered), gpu=gpu)
        said = raider.finish(runner, initiator.finish(record))
        refused(said, 502, "not acceptable in gpu.report_data")


class TestRecords:
    def test_a_record_replayed(
        self, target: Target, raider: Raider, runner: str
    ) -> None:
        session = raider.session(runner)
        call = new_call(session)
        body = sealed(call, message_of(target, call))
        first = opened(call, raw.post(runner, INFER_PATH, body, SEALED))
        assert (first.status, first.was_sealed) == (200, True)
        # A retry under one id, or a recording: answered once, whoever sends it.
        again = raw.post(runner, INFER_PATH, body, SEALED)
        refused(again, 502, "this exchange id was used before")
        assert target.is_whole()

    def test_a_record_replayed_after_the_replica_was_left(
        self, target: Target, raider: Raider, runner: str
    ) -> None:
        call = new_call(raider.session(runner))
        body = sealed(call, message_of(target, call))
        other = target.served.replica_urls()[REPLICAS[1]]
        said = raw.post(other, INFER_PATH, body, SEALED)
        refused(said, 401, "none is held here under this id")
        assert said.code == "unknown-session"

    @pytest.mark.parametrize("at", [0, 16, 32, 48, 55, 60, -20, -1])
    def test_a_flipped_bit(
        self, target: Target, raider: Raider, runner: str, at: int
    ) -> None:
        call = new_call(raider.session(runner))
        body = bytearray(sealed(call, message_of(target, call)))
        body[at] ^= 1
        with target.watched():
            said = raw.post(runner, INFER_PATH, bytes(body), SEALED)
        assert said.status in (400, 401, 502), said
        assert target.is_whole()

    @pytest.mark.parametrize("keep", [0, 16, 55, 56, 60, 100, -1])
    def test_a_record_cut_off(
        self, target: Target, raider: Raider, runner: str, keep: int
    ) -> None:
        call = new_call(raider.session(runner))
        body = sealed(call, message_of(target, call))[:keep]
        said = raw.post(runner, INFER_PATH, body, SEALED)
        assert said.status == 400, said

    def test_a_record_for_another_operation(
        self, target: Target, raider: Raider, runner: str
    ) -> None:
        call = new_call(raider.session(runner), "release")
        body = sealed(call, message_of(target, call))
        refused(raw.post(runner, INFER_PATH, body, SEALED), 502, "not authentic")

    def test_a_record_under_another_request_id(
        self, target: Target, raider: Raider, runner: str
    ) -> None:
        call = new_call(raider.session(runner))
        body = bytearray(sealed(call, message_of(target, call)))
        body[32:48] = b"\7" * 16
        refused(raw.post(runner, INFER_PATH, bytes(body), SEALED), 502, "not authentic")

    def test_a_record_of_another_session(
        self, target: Target, raider: Raider, runner: str
    ) -> None:
        one, other = new_call(raider.session(runner)), new_call(raider.session(runner))
        body = bytearray(sealed(one, message_of(target, one)))
        body[:16] = other.session.secrets.session_id
        refused(raw.post(runner, INFER_PATH, bytes(body), SEALED), 502, "not authentic")


def inner(**headers: str) -> bytes:
    """Return a request to the entry as it stands inside a sealed body."""
    body = json.dumps({"features": sample(2).tolist()}).encode()
    stated = {"content-type": "application/json", **headers}
    return b"".join(Inner(headers=stated, body=body).encode())


class TestTheFirstHop:
    def test_an_honest_request(self, target: Target, raider: Raider) -> None:
        """What those below differ from."""
        call = new_call(
            raider.client_session(target.url), "POST /diagnose", request_id=None
        )
        said = ask(target.url, call, inner(), "/diagnose")
        assert (said.status, said.was_sealed) == (200, True)

    def test_a_request_moved_to_another_api(
        self, target: Target, raider: Raider
    ) -> None:
        call = new_call(
            raider.client_session(target.url), "POST /diagnose", request_id=None
        )
        body = sealed(call, inner())
        refused(raw.post(target.url, "/boast", body, SEALED), 502, "not authentic")

    def test_a_request_replayed(self, target: Target, raider: Raider) -> None:
        call = new_call(
            raider.client_session(target.url), "POST /diagnose", request_id=None
        )
        body = sealed(call, inner())
        assert raw.post(target.url, "/diagnose", body, SEALED).status == 200
        again = raw.post(target.url, "/diagnose", body, SEALED)
        refused(again, 502, "this exchange id was used before")

    def test_headers_outside_the_seal_say_nothing(
        self, target: Target, raider: Raider
    ) -> None:
        """A downgrade of the scenario, a nonce of the network's choice."""
        call = new_call(
            raider.client_session(target.url), "POST /diagnose", request_id=None
        )
        body = sealed(call, inner(**{"bsec-scenario": "unanimous"}))
        outside = [("Bsec-Scenario", "general"), ("Bsec-Nonce", "0" * 64), *SEALED]
        said = opened(call, raw.post(target.url, "/diagnose", body, outside))
        answer = Inner.decode(said.body, is_answer=True)
        scenarios = target.project.folder / "attacked.toml"
        assert scenarios.exists()
        receipt = target.http.get(
            f"/bsec/v1/receipts/{answer.headers['bsec-receipt-id']}"
        ).json()
        payload = json.loads(base64.b64decode(receipt["receipt"]["payload"]))
        assert payload["predicate"]["scenario"]["name"] == "unanimous"
        assert payload["predicate"]["client_nonce"] != "0" * 64

    def test_a_pickle_inside_is_not_read(self, target: Target, raider: Raider) -> None:
        call = new_call(
            raider.client_session(target.url), "POST /diagnose", request_id=None
        )
        message = inner(**{"content-type": "application/vnd.bentoml+pickle"})
        said = ask(target.url, call, message, "/diagnose")
        assert said.was_sealed
        answer = Inner.decode(said.body, is_answer=True)
        assert answer.status == 400
        assert b"pickle is never read" in answer.body

    @pytest.mark.parametrize(
        "message", [b"", b"\xff\xff\xff\xff", bytes(4) + b"{}", b"\0\0\0\2[]"]
    )
    def test_a_message_inside_that_is_none(
        self, target: Target, raider: Raider, message: bytes
    ) -> None:
        call = new_call(
            raider.client_session(target.url), "POST /diagnose", request_id=None
        )
        said = ask(target.url, call, message, "/diagnose")
        assert said.was_sealed
        assert Inner.decode(said.body, is_answer=True).status == 400


def test_a_client_session_opens_no_runner(target: Target, raider: Raider) -> None:
    runner = target.served.replica_urls()[REPLICAS[0]]
    call = new_call(raider.client_session(target.url))
    body = sealed(call, message_of(target, call))
    refused(raw.post(runner, INFER_PATH, body, SEALED), 401, "none is held here")


def test_keys_of_two_processes_differ(target: Target, raider: Raider) -> None:
    """So that evidence of one is worth nothing to the other."""
    urls = target.served.replica_urls()
    shown = [
        copy.copy(raider.offer(urls[name], raider.begin()).key_document)
        for name in REPLICAS
    ]
    assert len({document.ed25519 for document in shown}) == len(REPLICAS)
    assert len({key for document in shown for _, key in document.hpke}) == 12
    assert HpkeKeys.generate().public != shown[0].hpke
