"""Draws that the entry commits to: each call is held against the one it was given."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bentoml_secure.client import AsyncSecureClient, SecureClient
from bentoml_secure.client.draws import Commitments
from bentoml_secure.digest import digest_bytes, digest_json
from bentoml_secure.errors import (
    MalformedInputError,
    PolicyRejected,
    ReceiptError,
    VerificationError,
)
from bentoml_secure.receipts.draw import (
    Commitment,
    Drawn,
    commit_draw,
    derive_request_id,
)
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.session.bodies import Answering
from bentoml_secure.signing import SigningKey
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.receipts import Draft, build_draft
from tests.unit.client.conftest import (
    FEATURES,
    FINISH,
    HELLO,
    URL,
    Answered,
    Call,
    Clock,
    FakeService,
    entry_of,
    script,
    sealed,
    signed_draw,
)

NONCE = b"n" * 32


def commit(deployment: Deployment, key: SigningKey | None = None, **says: Any) -> Any:
    """Return a commitment of the entry's, as it travels."""
    said = Commitment(
        **{
            "commitment": digest_bytes(b"r"),
            "key_document": deployment.entry.document.digest,
            "evidence_nonce": NONCE.hex(),
            **says,
        }
    )
    return commit_draw(key or deployment.entry.signing, said).to_json()


class TestCommitments:
    @pytest.fixture
    def commitments(self, deployment: Deployment) -> Commitments:
        return Commitments(deployment.entry.document, NONCE)

    def test_each_is_taken_once_and_in_order(
        self, commitments: Commitments, deployment: Deployment
    ) -> None:
        digests = [digest_bytes(bytes([n])) for n in range(3)]
        for digest in digests:
            commitments.add(commit(deployment, commitment=digest))
        assert [commitments.take() for _ in range(4)] == [*digests, None]

    def test_one_that_is_given_twice_is_refused(
        self, commitments: Commitments, deployment: Deployment
    ) -> None:
        """Its ``r`` may stand in a receipt already: it would bind nothing."""
        commitments.add(commit(deployment))
        commitments.take()
        with pytest.raises(VerificationError, match=r"gave sha256:.* a second time"):
            commitments.add(commit(deployment))
        assert commitments.take() is None

    @pytest.mark.parametrize(
        ("says", "why"),
        [
            ({"evidence_nonce": "00" * 32}, "and nonce 000000"),
            ({"key_document": digest_json("another")}, "for key document sha256-jcs"),
        ],
    )
    def test_one_of_another_session_or_entry_is_refused(
        self,
        commitments: Commitments,
        deployment: Deployment,
        says: dict[str, Any],
        why: str,
    ) -> None:
        with pytest.raises(VerificationError, match=why):
            commitments.add(commit(deployment, **says))
        assert commitments.take() is None

    def test_one_by_another_key_is_refused(
        self, commitments: Commitments, deployment: Deployment
    ) -> None:
        with pytest.raises(VerificationError, match="keyid"):
            commitments.add(commit(deployment, deployment.runners[0][0].signing))

    @pytest.mark.parametrize("document", [None, [], {}, {"payload": "e30="}])
    def test_what_is_none_is_refused(
        self, commitments: Commitments, document: object
    ) -> None:
        with pytest.raises(MalformedInputError, match="draw commitment: want exactly"):
            commitments.add(document)


def ground(nonce: str) -> bytes:
    """Return an ``r`` by which the request id begins with a zero byte."""
    return next(
        r
        for n in itertools.count()
        if derive_request_id(r := n.to_bytes(32, "big"), bytes.fromhex(nonce))[0] == 0
    )


def rejected(call: Call, service: FakeService, **given: Any) -> set[str]:
    with pytest.raises(ReceiptError, match="rejected") as caught:
        call(service, **given)
    return {finding.field for finding in caught.value.findings}


def with_draw(draft: Draft, **changes: Any) -> Draft:
    draw = dataclasses.replace(draft.receipt.draw, **changes)
    receipt = dataclasses.replace(draft.receipt, draw=draw)
    return dataclasses.replace(draft, receipt=receipt)


def grinding(draft: Draft, *, committed: bool) -> FakeService:
    """Return an entry that draws again until the request id suits it."""
    r = ground(draft.receipt.client_nonce)
    chosen = build_draft(draft.deployment, r=r, committed=committed)
    assert chosen.receipt.receipt_id.startswith("00")
    service = FakeService.of(chosen)
    # What it gave out before it knew the nonce was the honest one.
    service.first_draw = signed_draw(draft)
    return service


class TestOneCall:
    def test_names_what_it_was_given_and_is_answered_by_that(
        self, call: Call, service: FakeService, draft: Draft
    ) -> None:
        answer = call(service)
        assert answer.question.committed == draft.receipt.draw.commitment
        assert answer.verdict.claims["labels"]["draw"] == "committed before the nonce"
        (asked,) = service.asked
        assert asked.headers["bsec-draw"] == draft.receipt.draw.commitment

    def test_of_an_entry_that_commits_to_nothing_says_so(
        self, call: Call, deployment: Deployment
    ) -> None:
        service = FakeService.of(build_draft(deployment, committed=False))
        answer = call(service)
        assert answer.question.committed is None
        assert answer.verdict.claims["labels"]["draw"] == "asserted by the entry"
        assert "bsec-draw" not in service.asked[0].headers

    def test_with_a_first_commitment_of_another_session_ends_before_it_asks(
        self, call: Call, service: FakeService, deployment: Deployment
    ) -> None:
        """Recorded by who stands between, or kept by the entry for whoever comes."""
        service.first_draw = commit(deployment, evidence_nonce="00" * 32)
        with pytest.raises(VerificationError, match="the entry commits to one for"):
            call(service)
        assert service.paths == [HELLO, FINISH]


class TestAnEntryThatGrinds:
    """It has seen the nonce, and tries draws until the request id suits it."""

    def test_goes_undetected_where_it_committed_to_nothing(
        self, call: Call, draft: Draft
    ) -> None:
        """The defence is off: the same entry, and the receipt holds."""
        service = grinding(draft, committed=False)
        service.first_draw = None
        answer = call(service)
        assert answer.receipt_id.startswith("00")
        assert answer.verdict.claims["labels"]["draw"] == "asserted by the entry"

    def test_is_caught_where_it_signs_a_new_commitment(
        self, call: Call, draft: Draft
    ) -> None:
        service = grinding(draft, committed=True)
        assert rejected(call, service) == {"draw given beforehand"}

    def test_is_caught_where_it_asserts_instead(self, call: Call, draft: Draft) -> None:
        service = grinding(draft, committed=False)
        assert rejected(call, service) == {"draw asserted", "draw given beforehand"}

    def test_is_caught_where_it_shows_the_old_commitment(
        self, call: Call, draft: Draft
    ) -> None:
        """Anybody sees this one: the commitment is not that of the draw."""
        honest = draft.receipt.draw
        chosen = build_draft(draft.deployment, r=ground(draft.receipt.client_nonce))
        forged = with_draw(chosen, commitment=honest.commitment, signed=honest.signed)
        service = FakeService.of(forged)
        assert rejected(call, service) == {"draw commitment"}

    def test_is_caught_where_it_keeps_the_id_and_shows_another_r(
        self, call: Call, draft: Draft
    ) -> None:
        service = FakeService.of(with_draw(draft, r="00" * 32))
        found = rejected(call, service)
        # And the committees that another seed would have drawn.
        assert {"draw commitment", "receipt_id"} <= found
        assert all("committee" in f for f in found - {"draw commitment", "receipt_id"})

    def test_is_caught_where_it_boasts_of_a_commitment_nobody_was_given(
        self, call: Call, draft: Draft
    ) -> None:
        service = FakeService.of(draft)
        service.first_draw = None
        assert rejected(call, service) == {"draw asserted"}


class Several(FakeService):
    """Answers call after call, each by a draft whose draw was promised before."""

    drafts: Iterator[Draft]

    def promise(self, deployment: Deployment, labels: list[str]) -> None:
        """Prepare a draft for each label; the first one's draw is given out now."""
        session = entry_of(self.draft)
        self.drafts = iter(
            [
                _in_session(build_draft(deployment, label=label), self)
                for label in labels
            ]
        )
        self.draft = next(self.drafts)
        assert entry_of(self.draft) == session
        self.first_draw = signed_draw(self.draft)

    def answer(self, request: Any) -> Answered:
        now, self.draft = self.draft, next(self.drafts, self.draft)
        honest = FakeService.of(now)
        self.body, self.bundles = honest.body, honest.bundles
        self.headers = [*honest.headers]
        if self.draft is not now:
            text = json.dumps(signed_draw(self.draft), separators=(",", ":"))
            self.headers.append(("bsec-next-draw", text))
        return super().answer(request)


def _in_session(draft: Draft, service: FakeService) -> Draft:
    """Return a draft whose entry showed what the service shows."""
    own, shown = entry_of(draft), entry_of(service.attested)
    parties = tuple(shown if p == own else p for p in draft.receipt.parties)
    (record,) = (r for r in service.attested.evidence if r.digest == shown.evidence)
    evidence = tuple(record if r.digest == own.evidence else r for r in draft.evidence)
    signed = commit_draw(
        draft.deployment.entry.signing,
        Commitment(
            commitment=draft.receipt.draw.commitment,
            key_document=shown.key_document,
            evidence_nonce=shown.evidence_nonce,
        ),
    )
    changed = dataclasses.replace(draft, evidence=evidence)
    receipt = dataclasses.replace(changed.receipt, parties=parties)
    return with_draw(dataclasses.replace(changed, receipt=receipt), signed=signed)


LABELS = ["first", "second", "third"]


@pytest.fixture
def several(draft: Draft, deployment: Deployment) -> Several:
    made = Several(**{f.name: getattr(FakeService.of(draft), f.name) for f in _FIELDS})
    made.promise(deployment, LABELS)
    return made


_FIELDS = dataclasses.fields(FakeService)


def randomness(several: Several, deployment: Deployment) -> Callable[[int], bytes]:
    """Return what a caller draws who asks just what was drafted."""
    first = bytes.fromhex(entry_of(several.attested).evidence_nonce)
    drafts = [build_draft(deployment, label=label) for label in LABELS]
    pairs = [(bytes.fromhex(d.receipt.client_nonce), d.salt) for d in drafts]
    drawn = iter([first, b"m" * 32, *itertools.chain.from_iterable(pairs)])
    return lambda length: next(drawn)


class TestCallsInOneSession:
    def test_each_names_what_the_answer_before_it_carried(
        self, several: Several, deployment: Deployment
    ) -> None:
        with SecureClient(
            URL,
            deployment.trust,
            transport=several,
            clock=Clock(deployment.now),
            random_bytes=randomness(several, deployment),
        ) as client:
            answers = [client.call("diagnose", FEATURES) for _ in LABELS]
        named = [asked.headers["bsec-draw"] for asked in several.asked]
        assert len(set(named)) == 3
        assert named == [answer.question.committed for answer in answers]
        assert several.paths.count(HELLO) == 1

    def test_an_answer_that_promises_for_another_session_is_refused(
        self, several: Several, deployment: Deployment
    ) -> None:
        promised = commit(deployment, evidence_nonce="00" * 32)

        def swapped(answering: Answering, said: Answered) -> Answered:
            status, headers, body = said
            text = json.dumps(promised, separators=(",", ":"))
            return sealed(
                answering,
                (
                    status,
                    [(n, text if n == "bsec-next-draw" else v) for n, v in headers],
                    body,
                ),
            )

        several.sealing = swapped
        with (
            SecureClient(
                URL,
                deployment.trust,
                transport=several,
                clock=Clock(deployment.now),
                random_bytes=randomness(several, deployment),
            ) as client,
            pytest.raises(VerificationError, match="the entry commits to one for"),
        ):
            client.call("diagnose", FEATURES)

    @pytest.mark.parametrize("text", ["", "{}", "[" * 5000, "x" * 5000])
    def test_an_answer_that_promises_nothing_sensible_is_refused(
        self, call: Call, service: FakeService, text: str
    ) -> None:
        service.headers.append(("bsec-next-draw", text))
        with pytest.raises(MalformedInputError, match="draw"):
            call(service)


def strict(trust: Trust) -> Trust:
    return dataclasses.replace(trust, draw=Drawn.COMMITTED)


class TestACallerWhoWantsCommitments:
    def test_takes_a_session_of_its_own_where_calls_at_once_have_none_left(
        self, service: FakeService, deployment: Deployment, draft: Draft
    ) -> None:
        nonce, salt = bytes.fromhex(draft.receipt.client_nonce), draft.salt
        session = [bytes.fromhex(entry_of(draft).evidence_nonce), b"m" * 32]
        drawn = iter([*session, nonce, salt, *session, nonce, salt])
        with SecureClient(
            URL,
            strict(deployment.trust),
            transport=service,
            clock=Clock(deployment.now),
            random_bytes=lambda length: next(drawn),
        ) as client:
            for calls in (1, 2):
                answer = client.call("diagnose", FEATURES)
                assert answer.question.committed is not None
                assert service.paths.count(HELLO) == calls

    async def test_asks_no_entry_that_commits_to_nothing(
        self, deployment: Deployment
    ) -> None:
        draft = build_draft(deployment, committed=False)
        service = FakeService.of(draft)
        session = [bytes.fromhex(entry_of(draft).evidence_nonce), b"m" * 32]
        drawn = iter(session * 2)
        async with AsyncSecureClient(
            URL,
            strict(deployment.trust),
            transport=service,
            clock=Clock(deployment.now),
            random_bytes=lambda length: next(drawn),
        ) as client:
            with pytest.raises(PolicyRejected, match="commits to no draw") as caught:
                await client.call("diagnose", FEATURES)
        assert [finding.field for finding in caught.value.findings] == ["draw"]
        assert "/diagnose" not in service.paths

    def test_rejects_a_receipt_that_asserts(
        self, draft: Draft, deployment: Deployment
    ) -> None:
        service = grinding(draft, committed=False)
        with (
            SecureClient(
                URL,
                strict(deployment.trust),
                transport=service,
                clock=Clock(deployment.now),
                random_bytes=script(draft),
            ) as client,
            pytest.raises(ReceiptError, match="rejected") as caught,
        ):
            client.call("diagnose", FEATURES)
        assert {finding.field for finding in caught.value.findings} == {
            "draw",
            "draw asserted",
            "draw given beforehand",
        }
