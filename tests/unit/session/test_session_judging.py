"""What a peer shows is judged: evidence there at all, and the same deployment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import AttestationError
from bentoml_secure.session.judging import judge, require_same_deployment
from bentoml_secure.session.keys import Shown
from tests.unit.session.session_parts import Ground, policy


def test_no_evidence_is_not_acceptable(ground: Ground) -> None:
    shown = Shown(
        document=ground.entry().keys.document,
        record=None,
        nonce=bytes(32),
        nonce_issued_at=ground.clock(),
    )
    with pytest.raises(AttestationError, match="entry Entry: got no evidence"):
        judge(shown, policy(), now=ground.clock())


def test_the_same_deployment_passes(ground: Ground) -> None:
    runner, entry = ground.identity().keys.document, ground.entry().keys.document
    require_same_deployment(runner, entry, role=Role.RUNNER)


@pytest.mark.parametrize("field", ["plan", "config_digest", "package"])
def test_another_deployment_is_named(ground: Ground, field: str) -> None:
    other: Any = digest_json("another")
    runner = replace(ground.identity().keys.document, **{field: other})
    with pytest.raises(AttestationError, match=f"Runner0 {field}: got {other}"):
        require_same_deployment(runner, ground.entry().keys.document, role=Role.RUNNER)


def test_another_role_is_named(ground: Ground) -> None:
    entry = ground.entry().keys.document
    with pytest.raises(AttestationError, match="role: got entry, want runner"):
        require_same_deployment(entry, entry, role=Role.RUNNER)


def test_every_difference_is_named(ground: Ground) -> None:
    own = ground.entry().keys.document
    other = replace(own, plan=digest_json("x"), package=digest_json("y"))
    with pytest.raises(AttestationError, match=r"role: .*; .* plan: .*; .* package: "):
        require_same_deployment(other, own, role=Role.RUNNER)
