"""Keys of a process: renewed in time, bound by evidence to each nonce."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bentoml_secure.attestation.key_document import Role, package_digest
from bentoml_secure.attestation.verification import verify_key_document
from bentoml_secure.errors import MalformedInputError, PolicyRejected
from bentoml_secure.session.identity import KEY_LIFETIME
from bentoml_secure.session.suites import CLASSIC, HYBRID
from bentoml_secure.statements import utc_now
from tests.unit.serving.serving_parts import Ground


def test_a_key_document_says_who_this_process_is(ground: Ground) -> None:
    segment = ground.plan.segments[1].identity
    keys = ground.identity(Role.RUNNER, "R", segment).keys
    document = keys.document
    assert (document.role, document.service) == (Role.RUNNER, "R")
    assert document.segment == segment
    assert document.plan == ground.plan.digest
    assert document.config_digest == ground.configuration.digest
    assert document.package == package_digest()
    assert document.platform == "simulated"
    assert [suite for suite, _ in document.hpke] == [HYBRID, CLASSIC]
    assert document.not_after == ground.clock() + KEY_LIFETIME
    assert document.ed25519 == keys.signing.public.raw.hex()
    assert keys.digest == document.digest


def test_keys_are_renewed_before_their_document_ends(ground: Ground) -> None:
    identity = ground.identity()
    first = identity.keys
    ground.clock.now += KEY_LIFETIME * 7 / 8
    assert identity.keys is first
    ground.clock.advance(microseconds=1)
    second = identity.keys
    assert second is not first
    assert second.signing.public.raw != first.signing.public.raw
    assert not {key for _, key in second.document.hpke} & {
        key for _, key in first.document.hpke
    }
    # The same process all the same.
    assert second.document.boot_id == first.document.boot_id
    assert second.document.not_after == (ground.clock() + KEY_LIFETIME).replace(
        microsecond=0
    )
    assert identity.keys is second


@pytest.mark.parametrize(
    ("evidence_seconds", "used_seconds"),
    [(0, 70), (9, 70), (10, 70), (20, 60), (40, 40), (300, 40)],
)
def test_keys_are_replaced_as_long_before_their_end_as_evidence_is_used(
    ground: Ground, evidence_seconds: int, used_seconds: int
) -> None:
    identity = ground.identity(
        key_lifetime=timedelta(seconds=80),
        evidence_age=timedelta(seconds=evidence_seconds),
    )
    first = identity.keys
    ground.clock.advance(seconds=used_seconds)
    assert identity.keys is first
    ground.clock.advance(microseconds=1)
    assert identity.keys is not first


def test_two_processes_share_neither_keys_nor_boot_id(ground: Ground) -> None:
    one, other = ground.identity().keys, ground.identity().keys
    assert one.document.ed25519 != other.document.ed25519
    assert one.document.boot_id != other.document.boot_id


def test_evidence_binds_the_keys_to_the_nonce(ground: Ground) -> None:
    identity = ground.identity()
    keys = identity.keys
    record = identity.attest(b"n" * 32, keys)

    def verify(document: object, nonce: bytes) -> str:
        return verify_key_document(
            keys.document if document is None else ground.identity().keys.document,
            record.evidence,
            record.endorsements,
            ground.policy,
            nonce=nonce,
            now=ground.clock(),
            nonce_issued_at=ground.clock(),
        ).kind

    assert verify(None, b"n" * 32) == "simulated"
    with pytest.raises(PolicyRejected, match="report_data"):
        verify(None, b"m" * 32)
    with pytest.raises(PolicyRejected, match="report_data"):
        verify("another", b"n" * 32)


def test_a_nonce_of_another_length_is_refused(ground: Ground) -> None:
    identity = ground.identity()
    with pytest.raises(MalformedInputError, match="got 31 bytes, want 32"):
        identity.attest(b"n" * 31, identity.keys)


def test_the_clock_of_the_machine_is_in_utc() -> None:
    assert utc_now().tzinfo is UTC
    assert abs((utc_now() - datetime.now(UTC)).total_seconds()) < 5
