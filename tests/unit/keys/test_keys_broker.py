"""Which key goes to whom: each reason for a refusal, and the log of it all."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bentoml_secure.attestation.key_document import Role, report_data
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    PolicyRejected,
    UnavailableError,
)
from bentoml_secure.keys.audit_log import Event
from bentoml_secure.keys.broker import Asker, Broker
from bentoml_secure.keys.broker_policy import BrokerPolicy, parse_broker_policy
from bentoml_secure.keys.broker_store import BrokerStore, Revoked
from bentoml_secure.keys.key_file import PlanKeys
from bentoml_secure.keys.release_messages import ReleasedKey, ReleaseRequest
from bentoml_secure.keys.segment_key import KeyId, SegmentKey
from bentoml_secure.keys.wrapping_key import WrappingKey
from bentoml_secure.testing.deployment import (
    NOW,
    Deployment,
    build_deployment,
    key_of,
    make_plan,
)

NONCE = bytes(range(32))


@dataclass(frozen=True)
class Desk:
    """A broker with the keys of a deployment's plan, and who may ask it."""

    deployment: Deployment
    policy: BrokerPolicy
    store: BrokerStore
    wrapping: WrappingKey
    keys: PlanKeys
    path: Path

    @property
    def broker(self) -> Broker:
        return Broker(self.policy, self.store, self.wrapping)

    def request(self, index: int = 0) -> ReleaseRequest:
        segment, key = self.keys.keys[index]
        return ReleaseRequest(segment=segment, key_id=key.key_id)

    def asker(
        self,
        index: int = 0,
        *,
        exchange: int = 1,
        now: datetime = NOW,
        deployment: Deployment | None = None,
        **fields: Any,
    ) -> Asker:
        """Return a runner whose evidence is genuine; keywords replace fields."""
        place = deployment or self.deployment
        process = place.runners[index][0]
        document = replace(process.document, **fields)
        evidence = process.attest(report_data(NONCE, document))
        result = verify_key_document(
            document,
            evidence,
            (),
            place.policy,
            nonce=NONCE,
            now=now,
            nonce_issued_at=now,
        )
        return Asker(document=document, result=result, exchange_id=f"{exchange:032x}")

    def release(
        self, asker: Asker, *, index: int = 0, now: datetime = NOW
    ) -> ReleasedKey:
        return self.broker.release(self.request(index), asker, now=now)

    def refused(
        self,
        asker: Asker,
        request: ReleaseRequest | None = None,
        *,
        now: datetime = NOW,
    ) -> list[str]:
        before = len(self.store.audit())
        with pytest.raises(PolicyRejected, match="key of") as caught:
            self.broker.release(request or self.request(), asker, now=now)
        fields = [finding.field for finding in caught.value.findings]
        last = self.store.audit()[-1]
        assert (last.sequence, last.event) == (before + 1, Event.REFUSED)
        assert [finding["field"] for finding in last.details["findings"]] == fields
        return fields


def policy_file(deployment: Deployment, **fields: object) -> bytes:
    """Return a policy that releases to exactly this deployment."""
    model = {
        "plan": deployment.plan.digest,
        "roles": ["runner", "prover"],
        "config_digests": [deployment.config_digest],
        "package_digests": [deployment.entry.document.package],
    } | fields
    lines = ["version = 1", "[[models]]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in model.items()]
    appraisal = deployment.policy.to_json()
    simulated = appraisal.pop("simulated")
    lines.append("[appraisal]")
    lines += [f"{name} = {json.dumps(value)}" for name, value in appraisal.items()]
    lines.append("[appraisal.simulated]")
    lines += [f"{name} = {json.dumps(value)}" for name, value in simulated.items()]
    return "\n".join(lines).encode()


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    return build_deployment(segments=2, replicas=1, quorum=1)


@pytest.fixture
def desk(tmp_path: Path, deployment: Deployment) -> Iterator[Desk]:
    path, wrapping = tmp_path / "broker.db", WrappingKey(SegmentKey.generate())
    store = BrokerStore.create(path, wrapping, now=NOW)
    keys = PlanKeys(
        plan=deployment.plan.digest,
        keys=tuple(
            (segment.identity, SegmentKey.generate())
            for segment in deployment.plan.segments
        ),
    )
    store.add_keys(keys, wrapping, now=NOW)
    policy = parse_broker_policy(policy_file(deployment))
    yield Desk(deployment, policy, store, wrapping, keys, path)
    store.close()


def test_a_runner_gets_the_key_of_its_segment(desk: Desk) -> None:
    for index in range(2):
        released = desk.release(desk.asker(index, exchange=index), index=index)
        assert (released.segment, released.key) == desk.keys.keys[index]
        entry = desk.broker.audit()[-1]
        assert entry.digest == released.audit
        assert entry.event is Event.RELEASED
        document = desk.deployment.runners[index][0].document
        assert entry.details["key_document"] == document.digest
        assert entry.details["simulated"] is True


def test_so_does_its_prover(desk: Desk) -> None:
    assert desk.release(desk.asker(role=Role.PROVER)).key == desk.keys.keys[0][1]


def test_no_key_and_no_wrapping_key_stands_in_file_or_log(desk: Desk) -> None:
    released = desk.release(desk.asker())
    desk.store.close()
    data = b"".join(
        path.read_bytes() for path in desk.path.parent.iterdir() if path.is_file()
    )
    assert desk.request().segment.encode() in data
    for _, key in desk.keys.keys:
        assert key.reveal() not in data
        assert key.reveal().hex().encode() not in data
    assert released.key == desk.keys.keys[0][1]
    assert desk.path.stat().st_mode & 0o777 == 0o600


# Wrong segment.


def test_the_key_of_another_segment(desk: Desk) -> None:
    assert desk.refused(desk.asker(), desk.request(1)) == ["segment"]


def test_a_segment_without_a_key(desk: Desk) -> None:
    unknown = digest_json("another segment")
    request = ReleaseRequest(segment=unknown, key_id=desk.request().key_id)
    assert desk.refused(desk.asker(segment=unknown), request) == ["key"]


def test_a_key_from_before_the_model_was_sealed_again(desk: Desk) -> None:
    old = replace(desk.request(), key_id=SegmentKey.generate().key_id)
    assert desk.refused(desk.asker(), old) == ["key"]


def test_a_plan_that_was_sealed_again_has_both_keys_until_one_is_revoked(
    desk: Desk,
) -> None:
    again = replace(
        desk.keys,
        keys=tuple((segment, SegmentKey.generate()) for segment, _ in desk.keys.keys),
    )
    desk.store.add_keys(again, desk.wrapping, now=NOW)
    new = replace(desk, keys=again)
    for exchange, which in enumerate((desk, new), start=1):
        got = which.release(which.asker(exchange=exchange))
        assert got.key == which.keys.keys[0][1]
    old = desk.request().key_id
    desk.store.revoke(Revoked.KEY, old, reason="leaked", now=NOW)
    assert desk.refused(desk.asker(exchange=3)) == ["revoked_key"]
    assert new.release(new.asker(exchange=4)).key == again.keys[0][1]


def test_plans_that_share_a_segment_have_a_key_of_it_each(desk: Desk) -> None:
    plan, (segment, _) = digest_json("another plan"), desk.keys.keys[0]
    shared = PlanKeys(plan=plan, keys=((segment, SegmentKey.generate()),))
    desk.store.add_keys(shared, desk.wrapping, now=NOW)
    request = replace(desk.request(), key_id=shared.keys[0][1].key_id)
    assert desk.refused(desk.asker(), request) == ["key_plan"]


def test_a_segment_of_another_plan_that_is_served_too(
    desk: Desk, deployment: Deployment
) -> None:
    other = make_plan(3)
    text = policy_file(deployment).decode()
    more = text.replace("[appraisal]\n", "", 1).partition("[[models]]")[2]
    second = more.partition("version")[0].replace(deployment.plan.digest, other.digest)
    both = text.replace("[[models]]", f"[[models]]{second}[[models]]", 1)
    desk = replace(desk, policy=parse_broker_policy(both.encode()))
    assert len(desk.policy.models) == 2
    assert desk.refused(desk.asker(plan=other.digest)) == ["key_plan"]


# Wrong measurement, wrong machine.


def test_another_measurement(desk: Desk) -> None:
    other = build_deployment(
        segments=2, replicas=1, quorum=1, package=digest_json("another release")
    )
    document = desk.deployment.runners[0][0].document
    asker = desk.asker(
        deployment=other,
        package=document.package,
        config_digest=document.config_digest,
    )
    fields = desk.refused(asker)
    # Made anew, the root is another as well.
    assert "measurement" in fields


def measured(desk: Desk, measurement: str, **changes: Any) -> Asker:
    """Return a runner under the deployment's root with a measurement of its own."""
    process = desk.deployment.runners[0][0]
    root = process.attest(bytes(64)).blob
    certificates = json.loads(root)["certificates"]
    attester = SimulatedAttester(
        key_of("root"),
        base64.b64decode(certificates[1]),
        platform_id=changes.get("platform_id", "host-z"),
        measurement=measurement,
        clock=lambda: NOW,
    )
    table = desk.deployment.policy.to_json()
    table["simulated"]["measurement"] = [measurement]
    policy = type(desk.deployment.policy).from_table(table)
    result = verify_key_document(
        process.document,
        attester.attest(report_data(NONCE, process.document)),
        (),
        policy,
        nonce=NONCE,
        now=NOW,
        nonce_issued_at=NOW,
    )
    return Asker(document=process.document, result=result, exchange_id="ab" * 16)


def test_a_measurement_that_somebody_elses_policy_accepted(desk: Desk) -> None:
    assert desk.refused(measured(desk, "cd" * 32)) == ["measurement"]
    good = desk.deployment.entry.document.package.partition(":")[2]
    assert desk.release(measured(desk, good)).key == desk.keys.keys[0][1]


def test_a_kind_that_is_not_allowed(desk: Desk) -> None:
    asker = desk.asker()
    claims = replace(asker.result.claims, kind="tdx")
    other = replace(asker, result=replace(asker.result, claims=claims))
    assert desk.refused(other) == ["kind"]


def test_evidence_that_has_grown_old(desk: Desk) -> None:
    later = NOW + timedelta(seconds=400)
    assert desk.refused(desk.asker(), now=later) == ["session", "issued_at"]


def test_a_session_that_has_ended(desk: Desk) -> None:
    asker = desk.asker()
    ended = replace(asker, result=replace(asker.result, expires_at=NOW))
    assert desk.refused(ended) == ["session"]


# Wrong configuration, role, plan, package.


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"config_digest": digest_json("another configuration")}, "config_digest"),
        ({"package": digest_json("another release")}, "package"),
        ({"plan": digest_json("another plan")}, "plan"),
    ],
)
def test_a_document_that_says_something_else(
    desk: Desk, fields: dict[str, Any], finding: str
) -> None:
    want = [finding, "key_plan"] if finding == "plan" else [finding]
    assert desk.refused(desk.asker(**fields)) == want


def test_a_package_that_the_policy_leaves_unchecked(
    desk: Desk, deployment: Deployment
) -> None:
    text = policy_file(deployment).replace(
        json.dumps([deployment.entry.document.package]).encode(),
        b'{ unchecked = "built from source each night" }',
    )
    desk = replace(desk, policy=parse_broker_policy(text))
    asker = desk.asker(package=digest_json("another release"))
    assert desk.release(asker).key == desk.keys.keys[0][1]


def test_an_entry_has_no_use_for_weights(desk: Desk) -> None:
    entry = desk.deployment.entry
    result = verify_key_document(
        entry.document,
        entry.attest(report_data(NONCE, entry.document)),
        (),
        desk.deployment.policy,
        nonce=NONCE,
        now=NOW,
        nonce_issued_at=NOW,
    )
    asker = Asker(document=entry.document, result=result, exchange_id="0" * 32)
    assert desk.refused(asker) == ["role", "segment"]


def test_a_role_that_the_policy_does_not_list(
    desk: Desk, deployment: Deployment
) -> None:
    policy = parse_broker_policy(policy_file(deployment, roles=["prover"]))
    desk = replace(desk, policy=policy)
    assert desk.refused(desk.asker()) == ["role"]


def test_keys_that_have_ended(desk: Desk) -> None:
    asker = desk.asker()
    ended = replace(asker.document, not_after=NOW)
    assert desk.refused(replace(asker, document=ended)) == ["not_after"]


def test_every_reason_is_told_at_once(desk: Desk) -> None:
    asker = desk.asker(config_digest=digest_json("x"), package=digest_json("y"))
    assert desk.refused(asker, desk.request(1)) == [
        "config_digest",
        "package",
        "segment",
    ]


# Replay, restart.


def test_a_replayed_exchange(desk: Desk) -> None:
    desk.release(desk.asker(exchange=7))
    assert desk.refused(desk.asker(exchange=7)) == ["exchange_id"]
    desk.release(desk.asker(exchange=8))


def test_a_replayed_exchange_after_a_restart(desk: Desk) -> None:
    first = desk.release(desk.asker(exchange=7))
    desk.store.close()
    desk = replace(desk, store=BrokerStore(desk.path))
    assert desk.refused(desk.asker(exchange=7)) == ["exchange_id"]
    again = desk.release(desk.asker(exchange=8))
    assert again.key == first.key
    assert [entry.event for entry in desk.store.audit()] == [
        Event.CREATED,
        Event.KEY_ADDED,
        Event.KEY_ADDED,
        Event.RELEASED,
        Event.REFUSED,
        Event.RELEASED,
    ]
    desk.store.close()


def test_a_refused_exchange_is_not_spent(desk: Desk) -> None:
    assert desk.refused(desk.asker(exchange=7), desk.request(1)) == ["segment"]
    desk.release(desk.asker(exchange=7))


@pytest.mark.parametrize("exchange_id", ["", "00", "G" * 32, "AB" * 16])
def test_an_exchange_id_out_of_its_form(desk: Desk, exchange_id: str) -> None:
    asker = replace(desk.asker(), exchange_id=exchange_id)
    with pytest.raises(MalformedInputError, match="exchange id"):
        desk.release(asker)


# Revocation.


@pytest.mark.parametrize(
    ("kind", "value_of", "field"),
    [
        (Revoked.SEGMENT, lambda a: a.document.segment, "revoked_segment"),
        (Revoked.PLAN, lambda a: a.document.plan, "revoked_plan"),
        (Revoked.PLATFORM, lambda a: a.result.claims.platform_id, "revoked_platform"),
        (Revoked.KEY_DOCUMENT, lambda a: a.document.digest, "revoked_key_document"),
    ],
)
def test_what_is_revoked_gets_nothing(
    desk: Desk, kind: Revoked, value_of: Callable[[Asker], str], field: str
) -> None:
    desk.release(desk.asker(exchange=1))
    value = value_of(desk.asker())
    desk.store.revoke(kind, value, reason="stolen", now=NOW)
    assert desk.store.audit()[-1].details == {
        "kind": kind.value,
        "value": value,
        "reason": "stolen",
    }
    assert desk.refused(desk.asker(exchange=2)) == [field]
    with pytest.raises(ConfigurationError, match="it exists"):
        desk.store.revoke(kind, value, reason="again", now=NOW)


def test_a_revocation_by_another_process_holds_at_once(desk: Desk) -> None:
    other = BrokerStore(desk.path)
    other.revoke(Revoked.PLAN, desk.keys.plan, reason="flawed", now=NOW)
    other.close()
    assert desk.refused(desk.asker()) == ["revoked_plan"]


def test_the_others_are_released_still(desk: Desk) -> None:
    segment = desk.request(0).segment
    desk.store.revoke(Revoked.SEGMENT, segment, reason="leaked", now=NOW)
    assert desk.release(desk.asker(1), index=1).key == desk.keys.keys[1][1]


# The store.


def test_another_wrapping_key(desk: Desk) -> None:
    other = WrappingKey(SegmentKey.generate())
    with pytest.raises(ConfigurationError, match="was made with"):
        Broker(desk.policy, desk.store, other)
    with pytest.raises(ConfigurationError, match="was made with"):
        desk.store.add_keys(desk.keys, other, now=NOW)


def test_keys_are_taken_in_once_and_all_or_none(desk: Desk) -> None:
    with pytest.raises(ConfigurationError, match="keys: it exists"):
        desk.store.add_keys(desk.keys, desk.wrapping, now=NOW)
    new, key = digest_json("new segment"), SegmentKey.generate()
    mixed = PlanKeys(plan=desk.keys.plan, keys=((new, key), desk.keys.keys[0]))
    with pytest.raises(ConfigurationError, match="keys: it exists"):
        desk.store.add_keys(mixed, desk.wrapping, now=NOW)
    assert desk.store.key(new, key.key_id) is None
    assert len(desk.store.audit()) == 3


TABLES = {
    "facts": "value = ''",
    "keys": "plan = ''",
    "revocations": "value = ''",
    "exchanges": "exchange_id = ''",
    "audit": "details = ''",
}


@pytest.mark.parametrize("table", TABLES)
def test_the_file_itself_refuses_changes(desk: Desk, table: str) -> None:
    desk.release(desk.asker())
    desk.store.revoke(Revoked.PLATFORM, "host-x", reason="sold", now=NOW)
    connection = sqlite3.connect(desk.path)
    for statement in (
        f"UPDATE {table} SET {TABLES[table]}",  # noqa: S608
        f"DELETE FROM {table}",  # noqa: S608
        f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}",  # noqa: S608
    ):
        with pytest.raises(sqlite3.IntegrityError, match=f"{table}: "):
            connection.execute(statement)
    connection.close()


def tampered(desk: Desk, *statements: str) -> None:
    """Do what the file's owner can: take the triggers out, then edit."""
    connection = sqlite3.connect(desk.path)
    triggers = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    ).fetchall()
    for (name,) in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "field"),
    [
        ("UPDATE audit SET details = '{}' WHERE sequence = 2", "column"),
        ("UPDATE audit SET details = x'7b7d' WHERE sequence = 2", "digest"),
        ("UPDATE audit SET at = '2020' WHERE sequence = 4", "digest"),
        ("UPDATE audit SET digest = 'x' WHERE sequence = 4", "digest"),
        ("UPDATE audit SET event = 'revoked' WHERE sequence = 4", "digest"),
        ("DELETE FROM audit WHERE sequence = 1", "sequence"),
        ("DELETE FROM audit WHERE sequence = 2", "sequence"),
        ("DELETE FROM audit", "log"),
    ],
)
def test_a_log_that_was_edited(desk: Desk, statement: str, field: str) -> None:
    desk.release(desk.asker())
    tampered(desk, statement)
    with pytest.raises((CheckFailedError, MalformedInputError)) as caught:
        desk.store.audit()
    if isinstance(caught.value, CheckFailedError):
        assert [finding.field for finding in caught.value.findings] == [field]
    else:
        assert field in str(caught.value)


def test_a_log_whose_numbers_were_closed_up(desk: Desk) -> None:
    desk.release(desk.asker())
    entries = desk.store.audit()
    third = entries[2]
    closed = replace(entries[3], sequence=3)
    tampered(
        desk,
        "DELETE FROM audit WHERE sequence = 3",
        f"UPDATE audit SET sequence = 3, digest = '{closed.digest}'"  # noqa: S608
        " WHERE sequence = 4",
    )
    with pytest.raises(CheckFailedError, match="previous") as caught:
        desk.store.audit()
    assert [finding.field for finding in caught.value.findings] == ["previous"]
    assert third.digest in str(caught.value)


def test_a_log_whose_end_was_cut_off(desk: Desk) -> None:
    released = desk.release(desk.asker())
    assert desk.store.audit(head=released.audit)
    tampered(desk, "DELETE FROM audit WHERE sequence = 4")
    assert len(desk.store.audit()) == 3
    with pytest.raises(CheckFailedError, match="head") as caught:
        desk.store.audit(head=released.audit)
    assert [finding.field for finding in caught.value.findings] == ["head"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET event = 'forgotten'",
        "UPDATE audit SET event = 7",
        "UPDATE audit SET at = x'07'",
        "UPDATE audit SET previous = x'00'",
        "UPDATE audit SET details = x'5b5d'",
        "UPDATE audit SET details = x'ff'",
    ],
)
def test_a_log_that_no_broker_wrote(desk: Desk, statement: str) -> None:
    tampered(desk, statement)
    with pytest.raises(MalformedInputError, match="audit log"):
        desk.store.audit()


@pytest.mark.parametrize(
    "statement",
    [
        # The key of segment 0 under the name of segment 1, and the other way round.
        "UPDATE keys SET wrapped = (SELECT k.wrapped FROM keys k"
        " WHERE k.segment != keys.segment)",
        "UPDATE keys SET wrapped = x'00'",
        "UPDATE keys SET wrapped = zeroblob(60)",
    ],
)
def test_a_key_that_was_edited_in_the_file(desk: Desk, statement: str) -> None:
    tampered(desk, statement)
    with pytest.raises(CheckFailedError, match="wrapped_key") as caught:
        desk.release(desk.asker())
    assert [finding.field for finding in caught.value.findings] == ["wrapped_key"]
    # No entry says that it was released.
    assert desk.store.audit()[-1].event is Event.KEY_ADDED


def test_a_key_column_of_another_type(desk: Desk) -> None:
    tampered(desk, "UPDATE keys SET wrapped = 'text'")
    with pytest.raises(MalformedInputError, match="another type"):
        desk.release(desk.asker())


def test_no_log_no_key(desk: Desk) -> None:
    asker = desk.asker()
    connection = sqlite3.connect(desk.path)
    connection.execute("DROP TABLE audit")
    connection.commit()
    connection.close()
    with pytest.raises(UnavailableError, match="no such table"):
        desk.release(asker)
    assert not desk.store.is_spent(asker.exchange_id)


def test_a_closed_store(desk: Desk) -> None:
    desk.store.close()
    with pytest.raises(UnavailableError, match="closed"):
        desk.release(desk.asker())


def test_files_that_are_no_store(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not there"):
        BrokerStore(tmp_path / "none")
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(ConfigurationError, match="no broker's file"):
        BrokerStore(tmp_path / "text")
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigurationError, match="got version 0"):
        BrokerStore(tmp_path / "empty")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        BrokerStore.create(desk.path, desk.wrapping, now=NOW)


# Messages.


def test_messages_are_read_back(desk: Desk) -> None:
    request = desk.request()
    assert ReleaseRequest.from_bytes(request.to_bytes()) == request
    released = desk.release(desk.asker())
    assert ReleasedKey.from_bytes(released.to_bytes(), request=request) == released
    assert released.key.reveal().hex() not in repr(released)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"version": 2}, "version: got 2"),
        ({"version": True}, "version: got True"),
        ({"segment": "x"}, "segment"),
        ({"key_id": "x"}, "key_id"),
        ({"more": 1}, "unknown field"),
    ],
)
def test_what_is_no_request(desk: Desk, fields: dict[str, object], said: str) -> None:
    document = json.loads(desk.request().to_bytes()) | fields
    with pytest.raises(MalformedInputError, match=said):
        ReleaseRequest.from_bytes(json.dumps(document).encode())
    with pytest.raises(MalformedInputError, match="at most 4096"):
        ReleaseRequest.from_bytes(b" " * 5000)


def test_an_answer_about_another_key(desk: Desk) -> None:
    released = desk.release(desk.asker())
    with pytest.raises(MalformedInputError, match="asked for"):
        ReleasedKey.from_bytes(released.to_bytes(), request=desk.request(1))
    for fields in (
        {"key": SegmentKey.generate().reveal().hex()},
        {"key_id": KeyId("0" * 64)},
        {"segment": digest_json("x")},
    ):
        document = json.loads(released.to_bytes()) | fields
        with pytest.raises(MalformedInputError, match="asked for") as caught:
            ReleasedKey.from_bytes(
                json.dumps(document).encode(), request=desk.request()
            )
        assert str(document["key"]) not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("key", "00"), ("key", None), ("audit", "x"), ("version", 3)]
)
def test_what_is_no_answer(desk: Desk, field: str, value: object) -> None:
    document = json.loads(desk.release(desk.asker()).to_bytes()) | {field: value}
    with pytest.raises(MalformedInputError, match="released key"):
        ReleasedKey.from_bytes(json.dumps(document).encode(), request=desk.request())
