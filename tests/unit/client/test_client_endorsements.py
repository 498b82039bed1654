"""A caller's own endorsements, for an entry whose evidence comes without."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from bentoml_secure.attestation.evidence import Evidence, VerifiedClaims
from bentoml_secure.attestation.tees.simulated import Simulated
from bentoml_secure.client import AsyncSecureClient, SecureClient
from bentoml_secure.errors import ConfigurationError, MissingEndorsementError
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.testing.receipts import Draft
from tests.unit.client.conftest import (
    FEATURES,
    FINISH,
    HELLO,
    URL,
    Call,
    Clock,
    FakeService,
    script,
)

NEEDED = b"collateral"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "endorsements"
    made.mkdir()
    (made / "file").write_bytes(NEEDED)
    return made


@pytest.fixture(autouse=True)
def _needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the simulated kind want an endorsement, as real ones do."""
    verify = Simulated.verify

    def wanting(
        self: Simulated,
        evidence: Evidence,
        endorsements: Sequence[bytes],
        *,
        now: datetime,
    ) -> VerifiedClaims:
        if NEEDED not in endorsements:
            raise MissingEndorsementError("simulated: no collateral was given")
        return verify(self, evidence, endorsements, now=now)

    monkeypatch.setattr(Simulated, "verify", wanting)


def test_without_any_nothing_is_asked(call: Call, service: FakeService) -> None:
    with pytest.raises(MissingEndorsementError, match="no collateral"):
        call(service)
    assert service.paths == [HELLO]


def test_with_ones_own(
    call: Call, service: FakeService, draft: Draft, folder: Path
) -> None:
    answer = call(service, endorsements=folder)
    assert answer.verdict.state is State.ACCEPTED
    # What is kept can be judged again without them, and says the same.
    kept = answer.bundle
    assert {record.endorsements[0] for record in kept.evidence} == {NEEDED}
    assert kept.receipt == draft.bundle().receipt
    trust, now = draft.deployment.trust, draft.deployment.now
    assert verify_bundle(kept, trust, now=now).state is State.ACCEPTED
    with pytest.raises(MissingEndorsementError, match="no collateral"):
        verify_bundle(draft.bundle(), trust, now=now)


def test_they_are_read_again(service: FakeService, draft: Draft, folder: Path) -> None:
    client = SecureClient(
        URL,
        draft.deployment.trust,
        transport=service,
        clock=Clock(draft.deployment.now),
        random_bytes=script(draft),
        endorsements=str(folder),
    )
    with client:
        (folder / "file").write_bytes(b"something else")
        with pytest.raises(MissingEndorsementError, match="no collateral"):
            client.call("diagnose", FEATURES)
    assert FINISH not in service.paths


@pytest.mark.parametrize("kind", [SecureClient, AsyncSecureClient])
def test_a_folder_that_does_not_read(
    kind: type[SecureClient] | type[AsyncSecureClient], draft: Draft, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"endorsements: .*No such file"):
        kind(URL, draft.deployment.trust, endorsements=tmp_path / "none")
