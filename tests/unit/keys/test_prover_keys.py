"""Keys that provers alone may have: their file, the broker's table, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import CheckFailedError, MalformedInputError
from bentoml_secure.keys.audit_log import Event
from bentoml_secure.keys.broker_policy import parse_broker_policy
from bentoml_secure.keys.broker_store import BrokerStore
from bentoml_secure.keys.key_file import PlanKeys, keys_to_bytes, parse_keys
from bentoml_secure.keys.release_messages import ReleaseRequest
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.keys.wrapping_key import WrappingKey
from bentoml_secure.testing.deployment import NOW, Deployment, build_deployment
from tests.unit.keys.test_keys_broker import Desk, policy_file, tampered


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    return build_deployment(segments=2, replicas=1, quorum=1)


def keys_of(deployment: Deployment, role: Role | None) -> PlanKeys:
    return PlanKeys(
        plan=deployment.plan.digest,
        keys=tuple(
            (segment.identity, SegmentKey.generate())
            for segment in deployment.plan.segments
        ),
        role=role,
    )


@pytest.fixture
def desk(tmp_path: Path, deployment: Deployment) -> Iterator[Desk]:
    """A broker with the weights' keys, and the prover's, of the same segments."""
    path, wrapping = tmp_path / "broker.db", WrappingKey(SegmentKey.generate())
    store = BrokerStore.create(path, wrapping, now=NOW)
    store.add_keys(keys_of(deployment, None), wrapping, now=NOW)
    keys = keys_of(deployment, Role.PROVER)
    store.add_keys(keys, wrapping, now=NOW)
    policy = parse_broker_policy(policy_file(deployment))
    yield Desk(deployment, policy, store, wrapping, keys, path)
    store.close()


def test_a_prover_gets_the_prover_key_of_its_segment(desk: Desk) -> None:
    released = desk.release(desk.asker(role=Role.PROVER))
    assert released.key == desk.keys.keys[0][1]
    entry = desk.store.audit()[-1]
    assert (entry.event, entry.details["role"]) == (Event.RELEASED, "prover")


def test_a_runner_that_asks_for_it_is_refused_and_the_log_says_so(desk: Desk) -> None:
    assert desk.refused(desk.asker()) == ["key_role"]
    (finding,) = desk.store.audit()[-1].details["findings"]
    assert finding == {"field": "key_role", "got": "runner", "want": "prover"}


def test_no_policy_makes_a_prover_of_a_runner(
    desk: Desk, deployment: Deployment
) -> None:
    wide = policy_file(deployment, roles=["runner"])
    desk = replace(desk, policy=parse_broker_policy(wide))
    assert desk.refused(desk.asker()) == ["key_role"]
    assert desk.refused(desk.asker(role=Role.PROVER)) == ["role"]


def test_another_segments_prover_is_refused(desk: Desk) -> None:
    asker = desk.asker(1, role=Role.PROVER)
    assert desk.refused(asker) == ["segment"]


def test_keys_taken_in_for_provers_are_logged_as_such(desk: Desk) -> None:
    added = [e.details for e in desk.store.audit() if e.event is Event.KEY_ADDED]
    assert [details.get("role") for details in added] == [None, None, *["prover"] * 2]


def test_who_owns_the_file_cannot_give_a_provers_key_to_others(desk: Desk) -> None:
    tampered(desk, "UPDATE keys SET role = NULL")
    with pytest.raises(CheckFailedError, match="wrapped_key"):
        desk.release(desk.asker())


def test_nor_say_that_a_key_of_weights_is_a_provers(desk: Desk) -> None:
    first = desk.store.audit()[1].details
    request = ReleaseRequest(segment=first["segment"], key_id=first["key_id"])
    asker = desk.asker(role=Role.PROVER)
    # Policy lets provers have it; the row was edited all the same.
    tampered(desk, "UPDATE keys SET role = 'prover'")
    with pytest.raises(CheckFailedError, match="wrapped_key"):
        desk.broker.release(request, asker, now=NOW)


def test_a_role_that_no_broker_wrote(desk: Desk) -> None:
    tampered(desk, "UPDATE keys SET role = 'entry'")
    with pytest.raises(MalformedInputError, match="stored key role: got 'entry'"):
        desk.release(desk.asker(role=Role.PROVER))


def test_a_wrapped_key_is_bound_to_who_may_have_it() -> None:
    wrapping, key = WrappingKey(SegmentKey.generate()), SegmentKey.generate()
    about = {"segment": digest_json("segment"), "plan": digest_json("plan")}
    for wrote, reads in ((Role.PROVER, None), (None, Role.PROVER)):
        wrapped = wrapping.wrap(key, role=wrote, **about)
        assert wrapping.unwrap(wrapped, key_id=key.key_id, role=wrote, **about) == key
        with pytest.raises(CheckFailedError, match="wrapped_key"):
            wrapping.unwrap(wrapped, key_id=key.key_id, role=reads, **about)


def test_a_key_file_says_whose_its_keys_are(deployment: Deployment) -> None:
    for role in (None, Role.PROVER):
        keys = keys_of(deployment, role)
        data = keys_to_bytes(keys)
        assert json.loads(data)["role"] == (role and role.value)
        assert parse_keys(data) == keys


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"role": "runner"}, "role: got 'runner'"),
        ({"role": ["prover"]}, r"role: got \['prover'\]"),
        ({"role": 0}, "role: got 0"),
        ({"version": 1}, "version: got 1"),
    ],
)
def test_a_key_file_for_nobody_known(
    deployment: Deployment, fields: dict[str, object], said: str
) -> None:
    document = json.loads(keys_to_bytes(keys_of(deployment, Role.PROVER))) | fields
    with pytest.raises(MalformedInputError, match=said):
        parse_keys(json.dumps(document).encode())
    document.pop("role")
    with pytest.raises(MalformedInputError, match="'role' is missing"):
        parse_keys(json.dumps(document).encode())
