"""An auditor against entries that fail, repeat themselves, or say two things."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from bentoml_secure.client.auditing import EPOCHS, ChallengeAuditor
from bentoml_secure.digest import Digest
from bentoml_secure.errors import MalformedInputError, UnavailableError
from bentoml_secure.receipts.epoch_root import (
    parse_epoch_envelope,
    sign_root,
    verify_nonce,
    verify_root,
)
from bentoml_secure.signing import SigningKey
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.epochs import Gathered, challenging_deployment, gather
from tests import proven_case
from tests.unit.client.conftest import URL, Clock, FakeService, script

KEY = SigningKey.generate()


class Entry(httpx.BaseTransport):
    """Shows roots, and takes nonces or fails as a test says."""

    def __init__(self, service: FakeService) -> None:
        self.service = service
        self.roots: list[Gathered] = []
        self.nonces: list[Digest] = []
        self.failing = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if (request.method, request.url.path) != ("POST", EPOCHS):
            shown = {"roots": [gathered.root.to_json() for gathered in self.roots]}
            self.service.replies[EPOCHS] = 200, [], json.dumps(shown).encode()
            return self.service.handle_request(request)
        if self.failing:
            self.failing -= 1
            raise httpx.ConnectError("it has gone")
        said = parse_epoch_envelope(json.loads(request.content), what="nonce")
        verify_nonce(said)
        self.nonces.append(said.payload_digest)
        return httpx.Response(200, stream=httpx.ByteStream(b"{}"))


@pytest.fixture(scope="session")
def challenging() -> Deployment:
    return challenging_deployment(1.0, proven_case.set_up(), sessions=True)


def gathered(deployment: Deployment, *labels: str) -> Gathered:
    return gather(deployment, labels)


@pytest.fixture
def entry(challenging: Deployment) -> Entry:
    return Entry(FakeService.of(gathered(challenging, "one").drafts[0]))


@pytest.fixture
def auditor(entry: Entry, tmp_path: Path) -> Iterator[ChallengeAuditor]:
    draft = entry.service.draft
    with ChallengeAuditor(
        URL,
        draft.deployment.trust,
        KEY,
        seen=tmp_path / "seen",
        transport=entry,
        clock=Clock(draft.deployment.now + timedelta(seconds=2)),
        random_bytes=script(draft),
    ) as auditor:
        yield auditor


def refusals(answered: Sequence[object]) -> list[str]:
    return [getattr(each, "refusal") for each in answered]  # noqa: B009


def test_a_root_is_answered_once(
    entry: Entry, auditor: ChallengeAuditor, challenging: Deployment
) -> None:
    assert auditor.answer_roots() == ()
    # No evidence is asked for before there is a root to believe.
    assert entry.service.paths == [EPOCHS]
    entry.roots = [gathered(challenging, "one")]
    (answered,) = auditor.answer_roots()
    assert answered.refusal == ""
    assert answered.root == entry.roots[0].root.payload_digest
    assert auditor.answer_roots() == ()
    assert len(entry.nonces) == 1


def test_the_same_nonce_is_handed_in_after_a_failure(
    entry: Entry, auditor: ChallengeAuditor, challenging: Deployment
) -> None:
    entry.roots, entry.failing = [gathered(challenging, "one")], 2
    for _ in range(2):
        with pytest.raises(UnavailableError):
            auditor.answer_roots()
    assert refusals(auditor.answer_roots()) == [""]
    assert len(entry.nonces) == 1


def test_a_second_root_of_an_epoch_is_refused(
    entry: Entry, auditor: ChallengeAuditor, challenging: Deployment
) -> None:
    entry.roots = [gathered(challenging, "one")]
    assert refusals(auditor.answer_roots()) == [""]
    entry.roots.append(gathered(challenging, "two"))
    (refusal,) = refusals(auditor.answer_roots())
    assert "want no root after" in refusal
    # Told once; what comes after it is answered as ever.
    assert auditor.answer_roots() == ()
    assert len(entry.nonces) == 1


def test_a_root_of_somebody_else_is_refused(
    entry: Entry, auditor: ChallengeAuditor, challenging: Deployment
) -> None:
    own = gathered(challenging, "one")
    root = verify_root(own.root, challenging.entry.signing.public)
    entry.roots = [replace(own, root=sign_root(root, SigningKey.generate()))]
    (refusal,) = refusals(auditor.answer_roots())
    assert refusal
    assert entry.nonces == []


def test_what_shows_no_roots_is_refused(
    entry: Entry, auditor: ChallengeAuditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=httpx.ByteStream(b'{"roots": 7}'))

    monkeypatch.setattr(entry, "handle_request", strange)
    with pytest.raises(MalformedInputError, match="epoch roots"):
        auditor.answer_roots()
