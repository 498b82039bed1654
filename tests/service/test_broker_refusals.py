"""A running broker, asked by attested processes for what it must not release."""

from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.attestation.appraisal import parse_policy
from bentoml_secure.attestation.dev_root import create_dev_root
from bentoml_secure.attestation.evidence import AttestationResult
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import PolicyRejected
from bentoml_secure.keys.audit_log import AuditEntry, Event
from bentoml_secure.keys.broker_store import Revoked
from bentoml_secure.keys.release import (
    RELEASE_PATH,
    Patience,
    fetch_segment_key,
    require_broker,
)
from bentoml_secure.keys.release_messages import (
    OPERATION,
    ReleasedKey,
    ReleaseRequest,
)
from bentoml_secure.serving.broker_app import MAX_EXCHANGES
from bentoml_secure.session.bodies import SealedCall
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.judging import judge
from bentoml_secure.session.keys import Shown
from bentoml_secure.statements import utc_now
from tests.attacks import raw
from tests.attacks.raiders import FINISH, HELLO, JSON, SEALED, Opened, Raider, sealed
from tests.attacks.raiders import ask as ask_sealed
from tests.attacks.raiders import opened as open_sealed
from tests.service.brokers import BrokerHost, Vault


def released(vault: Vault, answer: Opened, index: int = 0) -> ReleasedKey:
    """Return the key that came back; it must be the segment's."""
    assert answer.was_sealed
    assert answer.status == 200, answer.body
    key = ReleasedKey.from_bytes(answer.body, request=vault.request(index))
    assert key.key == vault.keys.keys[index][1]
    return key


def refused(vault: Vault, answer: Opened) -> list[str]:
    """Return the fields of a refusal, which must be sealed, and in the log."""
    assert answer.was_sealed
    assert (answer.status, answer.error["code"]) == (403, "policy-rejected")
    entry = vault.audit()[-1]
    assert entry.event is Event.REFUSED
    fields = [finding["field"] for finding in entry.details["findings"]]
    for field in fields:
        assert f"{field}: got" in answer.error["message"]
    return fields


def finish(host: BrokerHost, raider: Raider) -> raw.Said:
    """Go through a handshake up to the broker's answer to message (c)."""
    initiator = raider.begin()
    offer = raider.offer(host.url, initiator)
    record = raider.identity.attest(offer.nonce, raider.identity.keys)
    return raider.finish(host.url, initiator.finish(record))


def last(vault: Vault) -> AuditEntry:
    return vault.audit()[-1]


def test_a_segments_runner_gets_its_key_and_the_log_has_it(
    broker: BrokerHost, vault: Vault
) -> None:
    for index, role in enumerate((Role.RUNNER, Role.PROVER)):
        raider = vault.raider(index, role=role, service=f"Asker{index}")
        key = released(vault, broker.ask(raider, vault.request(index)), index)
        entry = last(vault)
        assert (entry.event, entry.digest) == (Event.RELEASED, key.audit)
        assert entry.details["service"] == f"Asker{index}"
        assert entry.details["segment"] == vault.plan.segments[index].identity
        assert entry.details["key_document"] == raider.identity.keys.digest


def test_the_same_through_what_runners_call(broker: BrokerHost, vault: Vault) -> None:
    raider = vault.raider()
    own = raider.identity.keys.document
    policy = parse_policy((vault.project.dev_root / "policy.toml").read_bytes())
    judged: list[str] = []

    def judge_broker(shown: Shown) -> AttestationResult:
        require_broker(shown.document, own)
        judged.append(shown.document.service)
        return judge(shown, policy, now=utc_now())

    got = fetch_segment_key(
        broker.url, raider.identity, judge_broker, vault.request(0), max_age_seconds=300
    )
    assert got.key == vault.keys.keys[0][1]
    assert got.audit == last(vault).digest
    assert judged == ["Broker"]
    with pytest.raises(PolicyRejected, match="segment: got asked for") as caught:
        fetch_segment_key(
            broker.url,
            raider.identity,
            judge_broker,
            vault.request(1),
            max_age_seconds=300,
            # A refusal is not asked about again.
            patience=Patience(sleep=lambda _: pytest.fail("asked again")),
        )
    assert [finding.field for finding in caught.value.findings] == ["broker"]


OTHERS: dict[str, tuple[dict[str, Any], int, list[str]]] = {
    "another segment's runner": ({}, 1, ["segment"]),
    "another configuration": (
        {"config_digest": digest_json("another")},
        0,
        ["config_digest"],
    ),
    "another plan": ({"plan": digest_json("another")}, 0, ["plan", "key_plan"]),
    "a segment of none": (
        {"segment": digest_json("none")},
        0,
        ["segment"],
    ),
}


@pytest.mark.parametrize(
    ("changes", "index", "fields"), OTHERS.values(), ids=OTHERS.keys()
)
def test_attested_processes_that_get_no_key(
    broker: BrokerHost,
    vault: Vault,
    changes: dict[str, Any],
    index: int,
    fields: list[str],
) -> None:
    raider = vault.raider(**changes)
    assert refused(vault, broker.ask(raider, vault.request(index))) == fields


def test_a_key_that_the_files_do_not_name_and_one_of_no_segment(
    broker: BrokerHost, vault: Vault
) -> None:
    raider, request = vault.raider(), vault.request(0)
    other = dataclasses.replace(request, key_id=vault.request(1).key_id)
    assert refused(vault, broker.ask(raider, other)) == ["key"]
    nowhere = ReleaseRequest(segment=digest_json("none"), key_id=request.key_id)
    assert refused(vault, broker.ask(raider, nowhere)) == ["segment", "key"]


@pytest.mark.parametrize("role", [Role.ENTRY, Role.BROKER])
def test_roles_without_a_use_for_weights_get_no_session(
    broker: BrokerHost, vault: Vault, role: Role
) -> None:
    before = len(vault.audit())
    said = finish(broker, vault.raider(role=role, service="Raider", segment=None))
    assert (said.status, said.code) == (403, "verification")
    assert "not acceptable in role" in said.message
    assert f"role: got {role}, want runner or prover" in broker.log()
    # Strangers do not write in the log of keys.
    assert len(vault.audit()) == before


def test_a_client_gets_no_session(broker: BrokerHost, vault: Vault) -> None:
    with pytest.raises(AssertionError, match="not acceptable in role"):
        vault.raider().client_session(broker.url)
    assert "role: got client, want runner or prover" in broker.log()


def attester(vault: Vault, **changes: str) -> SimulatedAttester:
    return SimulatedAttester.from_folder(
        vault.project.dev_root, clock=utc_now, **changes
    )


def attested_by(vault: Vault, made: SimulatedAttester) -> Raider:
    identity = Identity(
        made,
        role=Role.RUNNER,
        service="Raider",
        segment=vault.plan.segments[0].identity,
        plan=vault.plan.digest,
        config_digest=vault.config_digest,
    )
    return Raider(project=vault.project, identity=identity)


def test_another_measurement_gets_no_session(broker: BrokerHost, vault: Vault) -> None:
    said = finish(broker, attested_by(vault, attester(vault, measurement="ab" * 32)))
    assert (said.status, said.code) == (403, "verification")
    assert "not acceptable in measurement" in said.message
    assert f"measurement: got {'ab' * 32}" in broker.log()


def test_evidence_of_another_root_gets_no_session(
    broker: BrokerHost, vault: Vault, tmp_path: Path
) -> None:
    create_dev_root(tmp_path / "other", now=datetime.now(UTC))
    made = SimulatedAttester.from_folder(tmp_path / "other", clock=utc_now)
    said = finish(broker, attested_by(vault, made))
    assert said.status == 403
    assert "root" in said.message


def test_a_revoked_platform(broker: BrokerHost, vault: Vault) -> None:
    made = attester(vault, platform_id="stolen-machine")
    raider = attested_by(vault, made)
    released(vault, broker.ask(raider, vault.request(0)))
    # The session goes on; the next request in it is refused all the same.
    session = broker.session(raider)
    vault.revoke(Revoked.PLATFORM, last(vault).details["platform_id"])
    call = SealedCall.begin(session, OPERATION)
    answer = ask_sealed(broker.url, call, vault.request(0).to_bytes(), RELEASE_PATH)
    assert refused(vault, answer) == ["revoked_platform"]
    again = broker.ask(raider, vault.request(0))
    assert refused(vault, again) == ["revoked_platform"]


def test_a_revoked_segment_and_then_its_plan(broker: BrokerHost, vault: Vault) -> None:
    keys, served = vault.retired, {segment for segment, _ in vault.keys.keys}
    # Where both plans are cut alike they share a segment, and its revocation.
    one, other = (
        i for i, (segment, _) in enumerate(keys.keys) if segment not in served
    )

    def ask(index: int) -> Opened:
        raider = vault.raider(plan=keys.plan, segment=keys.keys[index][0])
        return broker.ask(raider, vault.request(index, keys))

    assert [ask(index).status for index in range(3)] == [200, 200, 200]
    vault.revoke(Revoked.SEGMENT, keys.keys[one][0])
    assert refused(vault, ask(one)) == ["revoked_segment"]
    assert ask(other).status == 200
    vault.revoke(Revoked.PLAN, keys.plan)
    assert refused(vault, ask(other)) == ["revoked_plan"]
    assert refused(vault, ask(one)) == ["revoked_segment", "revoked_plan"]
    released(vault, broker.ask(vault.raider(), vault.request(0)))


def test_a_revoked_key_document(broker: BrokerHost, vault: Vault) -> None:
    raider = vault.raider(service="Suspect")
    released(vault, broker.ask(raider, vault.request(0)))
    vault.revoke(Revoked.KEY_DOCUMENT, raider.identity.keys.digest)
    answer = broker.ask(raider, vault.request(0))
    assert refused(vault, answer) == ["revoked_key_document"]
    # A new process of the same service is another document.
    fresh = vault.raider(service="Suspect")
    released(vault, broker.ask(fresh, vault.request(0)))


def test_a_replayed_request_gets_nothing(broker: BrokerHost, vault: Vault) -> None:
    raider = vault.raider()
    call = SealedCall.begin(broker.session(raider), OPERATION)
    body = sealed(call, vault.request(0).to_bytes())
    first = open_sealed(call, raw.post(broker.url, RELEASE_PATH, body, SEALED))
    released(vault, first)
    before = len(vault.audit())
    said = raw.post(broker.url, RELEASE_PATH, body, SEALED)
    assert said.status == 403
    assert "this exchange id was used before" in said.message
    assert len(vault.audit()) == before


def test_a_session_has_few_exchanges(broker: BrokerHost, vault: Vault) -> None:
    session = broker.session(vault.raider())
    before = len(vault.audit())
    codes = []
    for _ in range(MAX_EXCHANGES + 2):
        call = SealedCall.begin(session, OPERATION)
        message = vault.request(1).to_bytes()
        answer = ask_sealed(broker.url, call, message, RELEASE_PATH)
        codes.append(answer.error["code"])
    assert codes == ["policy-rejected"] * MAX_EXCHANGES + ["unknown-session"] * 2
    assert len(vault.audit()) == before + MAX_EXCHANGES


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/bsec/v1/infer",
        "/bsec/v1/attest",
        "/bsec/v1/keys",
        "/bsec/v1/release/",
        "/bsec/v1/session",
        "/docs.json",
        "/schema.json",
    ],
)
def test_no_other_path_is_there(broker: BrokerHost, path: str) -> None:
    for method in ("GET", "POST"):
        assert raw.post(broker.url, path, b"", [], method=method).status == 404


BODIES: dict[str, tuple[list[tuple[str, str]], bytes, int]] = {
    "unsealed": (JSON, json.dumps({"version": 1}).encode(), 400),
    "a pickle": (
        [("Content-Type", "application/vnd.bentoml+pickle")],
        b"\x80\x04N.",
        400,
    ),
    "nothing": (SEALED, b"", 400),
    "noise": (SEALED, bytes(range(256)) * 2, 401),
    "too much": (SEALED, bytes(100_000), 413),
}


@pytest.mark.parametrize(("headers", "body", "status"), BODIES.values(), ids=BODIES)
def test_bodies_that_are_no_release(
    broker: BrokerHost, headers: list[tuple[str, str]], body: bytes, status: int
) -> None:
    assert raw.post(broker.url, RELEASE_PATH, body, headers).status == status


def test_a_sealed_message_that_is_no_request(broker: BrokerHost, vault: Vault) -> None:
    session = broker.session(vault.raider())
    for message in (b"", b"{}", b"\x80\x04N.", vault.request(0).to_bytes()[:-1]):
        call = SealedCall.begin(session, OPERATION)
        answer = ask_sealed(broker.url, call, message, RELEASE_PATH)
        assert answer.was_sealed or not message
        assert answer.status == 400
    # Sealed as something else it does not open.
    call = SealedCall.begin(session, "infer")
    message = vault.request(0).to_bytes()
    assert ask_sealed(broker.url, call, message, RELEASE_PATH).status == 403


def test_handshakes_that_are_none(broker: BrokerHost) -> None:
    for path in (HELLO, FINISH):
        for body in (b"", b"{}", b"[]", b"\x80\x04N."):
            assert raw.post(broker.url, path, body, JSON).status == 400


def test_metrics_and_health_answer(broker: BrokerHost) -> None:
    for path in ("/metrics", "/livez", "/readyz"):
        assert raw.post(broker.url, path, b"", [], method="GET").status == 200


def test_no_key_is_in_the_brokers_log_or_files(
    broker: BrokerHost, vault: Vault
) -> None:
    released(vault, broker.ask(vault.raider(), vault.request(0)))
    written = [path for path in vault.broker_folder.rglob("*") if path.is_file()]
    written += [p for p in (vault.folder / "home-broker").rglob("*") if p.is_file()]
    assert len(written) > 3
    for path in written:
        data = path.read_bytes()
        for _, key in vault.keys.keys:
            assert key.reveal() not in data, path
            assert key.reveal().hex().encode() not in data, path
    assert not (vault.folder / "plan.keys").exists()
    assert shutil.which("shred")
