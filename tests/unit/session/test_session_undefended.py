"""The same attacks succeed where the one thing that stops them is taken away."""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest

from bentoml_secure.attestation import appraisal, verification
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.session import handshake, responders
from bentoml_secure.session.suites import CLASSIC
from bentoml_secure.signing import VerificationKey
from tests.unit.session import session_attacks as attacks
from tests.unit.session.session_attacks import Attack
from tests.unit.session.session_parts import Ground

Patch = Callable[[pytest.MonkeyPatch], None]


def no_report_data(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(appraisal, "_compare_report_data", lambda *_: Comparison())


def no_identity(patch: pytest.MonkeyPatch) -> None:
    """Accept whatever is genuine, whoever it is."""
    for name in ("judge_runner", "judge_entry"):
        patch.setattr(Ground, name, Ground.judge_anybody)


def no_signature(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VerificationKey, "verify", lambda *_: None)


def no_mac(patch: pytest.MonkeyPatch) -> None:
    always = types.SimpleNamespace(compare_digest=lambda *_: True)
    patch.setattr(handshake, "hmac", always)


def no_info(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(handshake, "_info", lambda *_: b"")


def no_labels(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(handshake, "_RESPONDER", handshake._CALLER)


def no_preference(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(handshake, "choose", lambda _: CLASSIC)


def no_deadline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(responders, "HANDSHAKE_SECONDS", 1e6)


def no_single_use(patch: pytest.MonkeyPatch) -> None:
    class Kept(OrderedDict[bytes, Any]):
        def pop(self, key: bytes, default: Any = None) -> Any:
            return self.get(key, default)

    patch.setattr(responders, "OrderedDict", Kept)


def no_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification, "_document_findings", lambda *_: [])
    patch.setattr(handshake, "_end", lambda *times, now: max(times))


def no_transcript(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(handshake, "transcript", lambda *_: b"")


@pytest.mark.parametrize(
    ("attack", "undefended"),
    [
        (
            attacks.swapped_document_field("boot_id", "11" * 16),
            [no_report_data, no_transcript, no_info],
        ),
        (attacks.quote_over_an_old_nonce, [no_report_data, no_transcript]),
        (attacks.own_evidence_for_anothers_document, [no_report_data, no_transcript]),
        (attacks.relay_by_a_genuine_host, [no_identity]),
        (attacks.reflected_hello, [no_identity]),
        (attacks.client_at_a_runner, [no_identity]),
        (attacks.misbinding, [no_info]),
        (attacks.ciphertext_of_another_handshake, [no_info]),
        (attacks.replayed_finish, [no_single_use]),
        (attacks.finish_after_a_failed_one, [no_single_use]),
        (attacks.late_finish, [no_deadline]),
        (attacks.lower_suite_chosen, [no_preference]),
        (attacks.finish_signed_by_another_key, [no_signature]),
        (attacks.finish_signed_as_a_responder, [no_labels]),
        (attacks.reflected_signature, [no_labels]),
        (attacks.confirm_signed_by_another_key, [no_signature]),
        (attacks.confirm_without_the_secret, [no_mac]),
        (attacks.endorsements_added, [no_transcript]),
        (attacks.callers_stolen_quote_under_own_key, [no_report_data]),
        (attacks.keys_that_have_ended, [no_end]),
    ],
)
def test_an_attack_works_where_nothing_stops_it(
    ground: Ground,
    monkeypatch: pytest.MonkeyPatch,
    attack: Attack,
    undefended: list[Patch],
) -> None:
    for patch in undefended:
        patch(monkeypatch)
    attack(ground)
