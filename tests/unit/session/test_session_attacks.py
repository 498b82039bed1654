"""Attacks on handshakes by name, and what stops each."""

from __future__ import annotations

import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    AttestationError,
    MalformedInputError,
    PolicyRejected,
    VerificationError,
)
from bentoml_secure.session.suites import CLASSIC, HYBRID
from tests.unit.session import session_attacks as attacks
from tests.unit.session.session_attacks import SMALL_ORDER, Attack
from tests.unit.session.session_parts import OTHER_SEGMENT, Ground


def swapped(name: str, value: object) -> Attack:
    return attacks.swapped_document_field(name, value)


OVER_ANOTHER_NONCE = [
    attacks.stolen_quote,
    attacks.quote_over_an_old_nonce,
    attacks.own_evidence_for_anothers_document,
    attacks.replayed_offer,
    attacks.stripped_suite,
    swapped("ed25519", "11" * 32),
    swapped("hpke", {CLASSIC: "11" * 32}),
    swapped("boot_id", "11" * 16),
    swapped("plan", digest_json("another")),
    swapped("package", digest_json("another")),
    swapped("config_digest", digest_json("another")),
    swapped("not_after", "2027-01-01T00:00:00Z"),
]


@pytest.mark.parametrize("attack", OVER_ANOTHER_NONCE)
def test_evidence_covers_another_nonce_or_document(
    ground: Ground, attack: Attack
) -> None:
    with pytest.raises(PolicyRejected) as refused:
        attack(ground)
    assert [finding.field for finding in refused.value.findings] == ["report_data"]


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (attacks.relay_by_a_genuine_host, "Runner1"),
        (swapped("service", "Runner1"), "Runner1"),
        (swapped("segment", OTHER_SEGMENT), OTHER_SEGMENT),
        (attacks.client_at_a_runner, Role.CLIENT),
        (attacks.reflected_hello, Role.ENTRY),
    ],
)
def test_somebody_else_is_at_the_other_end(
    ground: Ground, attack: Attack, says: str
) -> None:
    with pytest.raises(AttestationError, match=f"peer: got .*{says}"):
        attack(ground)


def test_a_callers_evidence_covers_another_nonce(ground: Ground) -> None:
    with pytest.raises(VerificationError, match="signature does not verify"):
        attacks.callers_stolen_quote(ground)
    with pytest.raises(PolicyRejected) as refused:
        attacks.callers_stolen_quote_under_own_key(ground)
    assert [finding.field for finding in refused.value.findings] == ["report_data"]


@pytest.mark.parametrize(
    "attack",
    [
        attacks.replayed_finish,
        attacks.finish_after_a_failed_one,
        attacks.late_finish,
        attacks.finish_of_another_responder,
    ],
)
def test_no_handshake_is_open_under_the_nonce(ground: Ground, attack: Attack) -> None:
    with pytest.raises(MalformedInputError, match="no handshake is open"):
        attack(ground)


@pytest.mark.parametrize(
    "attack",
    [
        attacks.finish_signed_by_another_key,
        attacks.finish_signed_as_a_responder,
        attacks.endorsements_added,
        attacks.confirm_signed_by_another_key,
        attacks.reflected_signature,
    ],
)
def test_a_signature_is_another_keys_or_of_other_messages(
    ground: Ground, attack: Attack
) -> None:
    with pytest.raises(VerificationError, match="signature does not verify"):
        attack(ground)


@pytest.mark.parametrize(
    "attack",
    [
        attacks.relay_of_genuine_evidence,
        attacks.replayed_confirm,
        attacks.confirm_without_the_secret,
        attacks.mac_of_another_handshake,
        attacks.draw_swapped,
    ],
)
def test_the_other_end_does_not_know_the_secret(ground: Ground, attack: Attack) -> None:
    with pytest.raises(VerificationError, match="does not know the master secret"):
        attack(ground)


@pytest.mark.parametrize(
    "attack",
    [
        attacks.misbinding,
        attacks.ciphertext_of_another_handshake,
        *(
            attacks.small_order_ciphertext(suite, point)
            for suite in (HYBRID, CLASSIC)
            for point in SMALL_ORDER
        ),
    ],
)
def test_the_sealed_secret_does_not_open(ground: Ground, attack: Attack) -> None:
    with pytest.raises(VerificationError, match="sealed master secret does not open"):
        attack(ground)


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_nothing_is_sealed_to_a_point_of_small_order(
    ground: Ground, point: str
) -> None:
    with pytest.raises(MalformedInputError, match="public key X25519"):
        attacks.small_order_key(point)(ground)


def test_less_than_the_best_suite_is_a_downgrade(ground: Ground) -> None:
    with pytest.raises(VerificationError, match=r"suite: got X25519.*want the best of"):
        attacks.lower_suite_chosen(ground)


def test_without_a_known_suite_there_is_no_session(ground: Ground) -> None:
    with pytest.raises(MalformedInputError, match="session suites: got"):
        attacks.unknown_suites_only(ground)


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (attacks.entry_without_evidence, "an? entry without evidence"),
        (attacks.responder_without_evidence, "the responder has no evidence"),
    ],
)
def test_only_clients_lack_evidence(ground: Ground, attack: Attack, says: str) -> None:
    with pytest.raises(VerificationError, match=says):
        attack(ground)


def test_a_confirmation_is_no_finish(ground: Ground) -> None:
    with pytest.raises(MalformedInputError, match="session confirm: unknown field"):
        attacks.reflected_finish(ground)


def test_keys_end_with_their_document(ground: Ground) -> None:
    with pytest.raises(PolicyRejected) as refused:
        attacks.keys_that_have_ended(ground)
    assert "not_after" in [finding.field for finding in refused.value.findings]
