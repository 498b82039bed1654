"""Attacks on the attachment "epoch", each with its finding.

Every bundle is made by the real code with real keys and simulated evidence, tampered
with, and signed again by whoever could: the entry, or an auditor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest

from bentoml_secure.audit.challenge import EpochLog
from bentoml_secure.digest import digest_bytes, digest_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    ReceiptError,
    VerificationError,
)
from bentoml_secure.receipts.attachments import (
    Attachment,
    issue_attachment,
    verify_attachment,
)
from bentoml_secure.receipts.bundle import Bundle, parse_bundle
from bentoml_secure.receipts.epoch import EpochRecord, epoch_among, longest_epoch
from bentoml_secure.receipts.epoch_closing import settle_epoch
from bentoml_secure.receipts.epoch_root import (
    AuditorNonce,
    challenge_again,
    sign_root,
    verify_root,
)
from bentoml_secure.receipts.equivocation import require_one_word
from bentoml_secure.receipts.receipt import RequiredAttachment, issue
from bentoml_secure.receipts.trust import parse_trust
from bentoml_secure.receipts.verify import State, verify_bundle
from bentoml_secure.signing import Envelope, sign
from bentoml_secure.statements import format_time
from bentoml_secure.testing.deployment import Deployment
from bentoml_secure.testing.epochs import (
    CLOSES,
    EPOCH_SECONDS,
    Gathered,
    auditor,
    auditor_key,
    challenging_deployment,
    gather,
)
from bentoml_secure.testing.proofs import attach, prove_draft
from bentoml_secure.testing.tampering import with_receipt
from tests.proven_case import deploy, set_up

NEVER = 1e-12
"""A rate at which nothing that these tests draw is challenged."""

LABELS = ["a request", "b request", "c request", "d request", "e request"]
AUDITOR = auditor_key("ann").public.key_id


@pytest.fixture(scope="module")
def gathered() -> Gathered:
    """Nobody in it is challenged."""
    return gather(challenging_deployment(NEVER, set_up()), LABELS)


@pytest.fixture(scope="module")
def everybody() -> Gathered:
    """All in it are challenged."""
    return gather(challenging_deployment(1.0, set_up()), LABELS[:2])


def at(gathered: Gathered, seconds: float = 1) -> datetime:
    return gathered.signed_at + timedelta(seconds=seconds)


def verified(
    bundle: Bundle, gathered: Gathered, *, auditors: tuple[str, ...] = ()
) -> Any:
    trust = replace(gathered.drafts[0].deployment.trust, challenge_auditors=auditors)
    return verify_bundle(bundle, trust, now=at(gathered))


def findings(
    bundle: Bundle, gathered: Gathered, *, auditors: tuple[str, ...] = ()
) -> set[str]:
    with pytest.raises(ReceiptError, match=r"rejected|cannot be read") as error:
        verified(bundle, gathered, auditors=auditors)
    return {finding.field for finding in error.value.findings}


def test_every_receipt_of_an_epoch_is_accepted(gathered: Gathered) -> None:
    for index in range(len(LABELS)):
        verdict = verified(gathered.attach(index), gathered)
        assert verdict.state is State.ACCEPTED
        assert verdict.claims["epoch"] == {
            "number": 0,
            "index": index,
            "of": 5,
            "root": gathered.root.payload_digest,
            "auditors": [],
            "challenged": False,
            "deadline": None,
        }


def test_who_is_challenged_owes_its_proofs(everybody: Gathered) -> None:
    bundle, draft = everybody.attach(0), everybody.drafts[0]
    verdict = verified(bundle, everybody)
    assert verdict.state is State.PROVISIONAL
    assert verdict.claims["missing_attachments"] == ["proof"]
    with pytest.raises(ReceiptError, match="attachments proof: got missing"):
        verify_bundle(bundle, draft.deployment.trust, now=at(everybody, 61))
    records = prove_draft(draft)
    proven = attach(bundle, draft.deployment, records)
    assert verified(proven, everybody).state is State.ACCEPTED
    first = {(0, 0): records[0, 0]}
    partly = attach(bundle, draft.deployment, first)
    assert verified(partly, everybody).claims["missing_attachments"] == ["proof"]
    late = replace(records[0, 1], issued_at=format_time(at(everybody, 61)))
    too_late = attach(bundle, draft.deployment, {(0, 1): late})
    with pytest.raises(ReceiptError, match=r"\(proof\) issued_at"):
        verify_bundle(too_late, draft.deployment.trust, now=at(everybody, 62))


def test_an_epoch_is_waited_for_until_its_deadline(gathered: Gathered) -> None:
    bundle = gathered.drafts[0].bundle()
    verdict = verified(bundle, gathered)
    assert verdict.state is State.PROVISIONAL
    assert verdict.claims["missing_attachments"] == ["epoch"]
    assert "epoch" not in verdict.claims
    with pytest.raises(ReceiptError, match="attachments epoch: got missing"):
        verify_bundle(
            bundle, gathered.drafts[0].deployment.trust, now=at(gathered, 600)
        )


def test_bundles_with_epochs_read_back(gathered: Gathered) -> None:
    bundle = gathered.attach(2)
    again = parse_bundle(json.dumps(bundle.to_json()).encode())
    assert verified(again, gathered).state is State.ACCEPTED


def changed(gathered: Gathered, **changes: Any) -> Bundle:
    return gathered.attach(1, replace(gathered.record(1), **changes))


def redrawn(gathered: Gathered) -> Bundle:
    """The entry draws its secret after it saw the leaves, and roots them anew."""
    epoch = replace(gathered.closed.epoch, commitment=digest_bytes(bytes(32)))
    return _with_secret(gathered.rooted(epoch=epoch), bytes(32))


def _with_secret(gathered: Gathered, secret: bytes) -> Bundle:
    return gathered.attach(1, replace(gathered.record(1), secret=secret))


def left_out(gathered: Gathered) -> Bundle:
    """The tree has all receipts but this one."""
    others = gather(gathered.drafts[0].deployment, [LABELS[0], *LABELS[2:]])
    return gathered.attach(
        1,
        replace(gathered.record(1), root=others.root, path=others.closed.tree.path(1)),
    )


def added_after_the_root(gathered: Gathered) -> Bundle:
    """The receipt is the sixth of a tree whose root, over five, was signed."""
    more = gather(gathered.drafts[0].deployment, [*LABELS, "f request"])
    assert more.closed.tree.count == 6
    record = replace(more.record(5), root=gathered.root)
    return more.attach(5, record)


def path_of_another_tree(gathered: Gathered) -> Bundle:
    more = gather(gathered.drafts[0].deployment, [*LABELS[1:], LABELS[0]])
    return changed(gathered, path=more.closed.tree.path(1))


def of_another_epoch(gathered: Gathered) -> Bundle:
    """Another epoch of the same entry, rooted over the same receipts."""
    number = replace(gathered.closed.epoch, number=1)
    return gathered.rooted(epoch=number).attach(1)


def signed_by_a_runner(gathered: Gathered) -> Bundle:
    key = gathered.drafts[0].deployment.runners[0][0].signing
    root = verify_root(
        gathered.root, gathered.drafts[0].deployment.entry.signing.public
    )
    return replace(gathered, root=sign_root(root, key)).attach(1)


def nonce(gathered: Gathered, name: str = "ann", **changes: Any) -> Envelope:
    key = auditor_key(name)
    said = AuditorNonce(
        root=gathered.root.payload_digest, nonce="ab" * 32, key=key.public.raw.hex()
    )
    return sign(
        key,
        "application/vnd.bentoml-secure.epoch-nonce.v1+json",
        replace(said, **changes).to_json(),
    )


def nonce_twice(gathered: Gathered) -> Bundle:
    nonces = (nonce(gathered), nonce(gathered, nonce="cd" * 32))
    return changed(gathered, nonces=nonces)


def nonce_before_the_root(gathered: Gathered) -> Bundle:
    return changed(gathered, nonces=(nonce(gathered, root=digest_json("another")),))


def nonce_in_another_s_name(gathered: Gathered) -> Bundle:
    stolen = auditor_key("bob").public.raw.hex()
    return changed(gathered, nonces=(nonce(gathered, key=stolen),))


def nonce_without_signature(gathered: Gathered) -> Bundle:
    return changed(gathered, nonces=(replace(nonce(gathered), signature=bytes(64)),))


def no_nonce(gathered: Gathered) -> Bundle:
    odd = sign(auditor_key("ann"), gathered.root.payload_type, {"version": 1})
    return changed(gathered, nonces=(odd,))


def twice(gathered: Gathered) -> Bundle:
    bundle = gathered.attach(1)
    return replace(bundle, attachments=bundle.attachments * 2)


def by_a_runner(gathered: Gathered) -> Bundle:
    bundle = gathered.attach(1)
    key = gathered.drafts[0].deployment.entry.signing.public
    attachment = verify_attachment(bundle.attachments[-1], key)
    runner = gathered.drafts[0].deployment.runners[0][0].signing
    return replace(bundle, attachments=(issue_attachment(attachment, runner),))


def of_another_receipt(gathered: Gathered) -> Bundle:
    other = gathered.attach(0)
    return replace(gathered.attach(1), attachments=other.attachments)


def closed_late(gathered: Gathered) -> Bundle:
    late = format_time(gathered.signed_at + timedelta(seconds=60))
    return gathered.rooted(closed_at=late).attach(1)


def closed_before_the_receipt(gathered: Gathered) -> Bundle:
    return gathered.rooted(closed_at=gathered.closed.epoch.opened_at).attach(1)


def not_required(gathered: Gathered) -> Bundle:
    draft = with_receipt(gathered.drafts[1], attachments=())
    drafts = (gathered.drafts[0], draft, *gathered.drafts[2:])
    return replace(gathered, drafts=drafts).attach(1)


def deadline_that_never_comes(gathered: Gathered) -> Bundle:
    never = RequiredAttachment(kind="epoch", deadline="2999-01-01T00:00:00.000Z")
    draft = with_receipt(gathered.drafts[1], attachments=(never,))
    drafts = (gathered.drafts[0], draft, *gathered.drafts[2:])
    return replace(gathered, drafts=drafts).attach(1)


def receipt_names_no_epoch(gathered: Gathered) -> Bundle:
    draft = with_receipt(gathered.drafts[1], epoch=None)
    drafts = (gathered.drafts[0], draft, *gathered.drafts[2:])
    return replace(gathered, drafts=drafts).attach(1)


HASH = digest_json("another")
Attack = Callable[[Gathered], Bundle]
ATTACKS: list[tuple[str, Attack, str]] = [
    ("a secret drawn last", redrawn, "epoch root epoch"),
    ("another secret", lambda g: changed(g, secret=bytes(32)), "epoch secret"),
    ("left out of the tree", left_out, "epoch path"),
    ("added after the root", added_after_the_root, "epoch path"),
    ("another's index", lambda g: changed(g, index=0), "epoch path"),
    ("an index beyond", lambda g: changed(g, index=9), "epoch path"),
    ("another's path", lambda g: changed(g, path=g.closed.tree.path(0)), "epoch path"),
    ("no path", lambda g: changed(g, path=()), "epoch path"),
    ("a path of another tree", path_of_another_tree, "epoch path"),
    ("another count", lambda g: g.rooted(count=8).attach(4), "epoch path"),
    ("another root", lambda g: g.rooted(root=_other_root(g)).attach(1), "epoch path"),
    ("another epoch", of_another_epoch, "epoch root epoch"),
    ("scenario", lambda g: g.rooted(scenario=HASH).attach(1), "epoch root scenario"),
    (
        "key document",
        lambda g: g.rooted(key_document=HASH).attach(1),
        "epoch root key_document",
    ),
    ("a runner's root", signed_by_a_runner, "epoch root"),
    ("closed late", closed_late, "epoch closed_at"),
    ("signed before it closed", closed_late, "epoch times"),
    ("closed before the receipt", closed_before_the_receipt, "epoch times"),
    ("two nonces of one auditor", nonce_twice, "epoch nonces"),
    ("a nonce from before the root", nonce_before_the_root, "epoch nonces"),
    ("a nonce in another's name", nonce_in_another_s_name, "epoch nonces"),
    ("a nonce of nobody", nonce_without_signature, "epoch nonces"),
    ("no nonce at all", no_nonce, "epoch nonces"),
    ("twice", twice, "attachments epoch"),
    ("a runner's attachment", by_a_runner, "attachment 0"),
    ("another receipt's", of_another_receipt, "attachment 0 (epoch) subject"),
    ("not required", not_required, "attachments required"),
    ("deadline", deadline_that_never_comes, "attachments epoch deadline"),
    ("no epoch named", receipt_names_no_epoch, "epoch"),
    (
        "challenged at will",
        lambda g: changed(g, challenged=True, deadline=format_time(g.signed_at)),
        "epoch challenged",
    ),
]


def _other_root(gathered: Gathered) -> Any:
    return gathered.closed.tree.path(0)[0]


@pytest.mark.parametrize(
    ("attack", "finding"),
    [pytest.param(attack, finding, id=name) for name, attack, finding in ATTACKS],
)
def test_attack_on_an_epoch_is_named(
    attack: Attack, finding: str, gathered: Gathered
) -> None:
    assert finding in findings(attack(gathered), gathered)


def test_a_challenge_is_not_evaded(everybody: Gathered) -> None:
    evaded = replace(everybody.record(0), challenged=False, deadline=None)
    bundle = everybody.attach(0, evaded)
    assert findings(bundle, everybody) >= {"epoch challenged", "attachments proof"}


def test_a_challenge_has_a_deadline_that_comes(everybody: Gathered) -> None:
    for deadline in ("2999-01-01T00:00:00.000Z", "2001-01-01T00:00:00.000Z"):
        record = replace(everybody.record(0), deadline=deadline)
        assert "epoch deadline" in findings(everybody.attach(0, record), everybody)


def test_epochs_are_where_a_scenario_challenges_only(gathered: Gathered) -> None:
    plain = gather(deploy(proof="none"), LABELS[:1])
    assert findings(plain.attach(0), plain) == {
        "attachments required",
        "epoch",
        "epoch named",
    }
    assert "epoch named" in findings(receipt_names_no_epoch(gathered), gathered)


def test_auditors_of_the_trust_file_must_have_drawn(gathered: Gathered) -> None:
    alone = gathered.attach(0)
    assert verified(alone, gathered).claims["epoch"]["auditors"] == []
    assert findings(alone, gathered, auditors=(AUDITOR,)) == {"epoch nonces"}
    other = gathered.audited("bob").attach(0)
    assert findings(other, gathered, auditors=(AUDITOR,)) == {"epoch nonces"}
    both = verified(gathered.audited("ann", "bob").attach(0), gathered)
    assert AUDITOR in both.claims["epoch"]["auditors"]
    said = verified(gathered.audited("ann").attach(0), gathered, auditors=(AUDITOR,))
    assert said.claims["epoch"]["auditors"] == [AUDITOR]


def test_an_entry_that_knows_its_secret_chooses_where_no_auditor_draws() -> None:
    """It succeeds: the entry adds requests of its own until its lie is not drawn.

    With the auditor that the trust file names, the same epochs are refused without its
    nonce, and with it the choice is worth nothing: one of the nonces challenges.
    """
    deployment = challenging_deployment(0.5, set_up())
    for tries in count():
        own = [f"own request {tries}"]
        gathered = gather(deployment, ["the lie", *own])
        if not gathered.record(0).challenged:
            break
    bundle = gathered.attach(0)
    assert verified(bundle, gathered).state is State.ACCEPTED
    assert findings(bundle, gathered, auditors=(AUDITOR,)) == {"epoch nonces"}
    drawn = [gathered.audited(f"auditor {n}").record(0).challenged for n in range(40)]
    assert 5 <= sum(drawn) <= 35


def test_an_auditor_answers_for_one_root_only(gathered: Gathered) -> None:
    entry = gathered.drafts[0].deployment.entry.signing.public
    ann = auditor("ann")
    said = ann.answer(gathered.root, entry)
    assert said == gathered.audited("ann").nonces[0]
    other = gathered.rooted(count=4).root
    for again in (gathered.root, other):
        with pytest.raises(VerificationError, match=r"epoch 0: got .* want no root"):
            ann.answer(again, entry)
    with pytest.raises(VerificationError, match="keyid"):
        auditor("bob").answer(
            gathered.root, gathered.drafts[0].deployment.runners[0][0].signing.public
        )


def test_two_roots_of_one_epoch_are_shown_by_two_bundles(gathered: Gathered) -> None:
    entry = gathered.drafts[0].deployment
    other = gather(entry, [LABELS[0], *LABELS[2:]])
    first, second = gathered.attach(1), other.attach(0)
    for bundle in (first, second):
        # Each by itself is in order.
        assert verified(bundle, gathered).state is State.ACCEPTED
    with pytest.raises(ReceiptError, match="contradicts itself") as error:
        require_one_word(first, second)
    shown = error.value.findings[0].got
    assert gathered.root.payload_digest in shown
    assert other.root.payload_digest in shown
    require_one_word(first, gathered.attach(3))
    require_one_word(first, gathered.drafts[3].bundle())


def test_two_secrets_of_one_epoch_are_shown_by_two_receipts(
    gathered: Gathered,
) -> None:
    deployment = gathered.drafts[0].deployment
    other = gather(deployment, ["x request"], secret=bytes(32))
    with pytest.raises(ReceiptError, match="contradicts itself"):
        require_one_word(gathered.drafts[0].bundle(), other.drafts[0].bundle())
    with pytest.raises(ReceiptError, match="contradicts itself"):
        require_one_word(gathered.drafts[0].bundle(), other.attach(0))


def test_what_the_entry_did_not_sign_shows_nothing_of_it(gathered: Gathered) -> None:
    deployment = gathered.drafts[0].deployment
    other = gather(deployment, ["x request"], secret=bytes(32))
    forged = other.drafts[0].bundle(key=deployment.runners[0][0].signing)
    require_one_word(gathered.attach(0), forged)
    without = replace(other.attach(0), key_documents=())
    require_one_word(gathered.attach(0), without)
    require_one_word(gathered.attach(0), signed_by_a_runner(gathered))


def test_an_auditor_draws_again_when_it_likes(gathered: Gathered) -> None:
    entry = gathered.drafts[0].deployment.entry.signing.public
    receipts, secret = gathered.closed.receipts, gathered.closed.secret

    def draw(nonce: bytes, rate: float) -> tuple[str, ...]:
        return challenge_again(
            gathered.root, entry, receipts, secret=secret, nonce=nonce, rate=rate
        )

    assert draw(bytes(32), 1.0) == receipts
    assert draw(bytes(32), 0.0) == ()
    some = {draw(bytes([n] * 32), 0.5) for n in range(20)}
    assert len(some) > 3
    assert all(set(drawn) <= set(receipts) for drawn in some)


def test_it_draws_from_what_was_committed_to_only(gathered: Gathered) -> None:
    entry = gathered.drafts[0].deployment.entry.signing.public
    receipts, secret = gathered.closed.receipts, gathered.closed.secret
    nonce = bytes(32)
    for others in (receipts[1:], receipts[::-1], [*receipts[:-1], HASH]):
        with pytest.raises(VerificationError, match=r"want the 5 under"):
            challenge_again(
                gathered.root, entry, others, secret=secret, nonce=nonce, rate=1.0
            )
    with pytest.raises(VerificationError, match="epoch secret"):
        challenge_again(
            gathered.root, entry, receipts, secret=nonce, nonce=nonce, rate=1.0
        )


def test_how_long_an_epoch_may_take(gathered: Gathered) -> None:
    scenario = gathered.drafts[0].deployment.scenario
    assert longest_epoch(scenario) == timedelta(seconds=EPOCH_SECONDS + 150)


def content(gathered: Gathered) -> Attachment:
    bundle = gathered.audited("ann").attach(1)
    key = gathered.drafts[0].deployment.entry.signing.public
    return verify_attachment(bundle.attachments[-1], key)


def test_a_record_reads_back(gathered: Gathered) -> None:
    attachment = content(gathered)
    record = EpochRecord.from_attachment(attachment)
    assert record == gathered.audited("ann").record(1)
    assert record.to_json() == attachment.content


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("more", 1, "epoch: unknown field 'more'"),
        ("root", {}, "epoch root"),
        ("index", -1, "epoch index: got -1"),
        ("index", True, "epoch index: got True"),
        ("index", 1 << 20, "epoch index: got 1048576"),
        ("path", ["00"], "epoch path"),
        ("path", ["sha256-merkle-v1:" + "0" * 64] * 21, "epoch path: want a list"),
        ("secret", "00", "epoch secret: got 2 hex digits"),
        ("nonces", [{}], "epoch nonce"),
        ("nonces", [{}] * 17, "epoch nonces: want a list of at most 16"),
        ("challenged", 1, "epoch challenged: got 1"),
        ("challenged", True, "want a deadline where it is challenged"),
        ("deadline", "2026-06-01T12:00:00.000Z", "want a deadline where it is"),
        ("deadline", "soon", "want a deadline where it is"),
    ],
)
def test_records_of_another_form_are_refused(
    gathered: Gathered, field: str, value: Any, said: str
) -> None:
    attachment = content(gathered)
    document = {**attachment.content, field: value}
    with pytest.raises(MalformedInputError, match=said):
        EpochRecord.from_attachment(replace(attachment, content=document))


def test_receipts_name_an_epoch_or_have_no_such_field(gathered: Gathered) -> None:
    receipt = gathered.drafts[0].receipt
    assert type(receipt).from_statement(receipt.to_statement()) == receipt
    none = replace(receipt, epoch=None)
    assert "epoch" not in none.to_statement()["predicate"]
    document = receipt.to_statement()
    for odd in (None, {}, {**document["predicate"]["epoch"], "number": -1}):
        document["predicate"]["epoch"] = odd
        with pytest.raises(MalformedInputError, match="epoch"):
            type(receipt).from_statement(document)


def test_a_log_s_root_is_the_one_that_is_judged(gathered: Gathered) -> None:
    """The entry's own part, from joining to closing, and nothing of the fixtures."""
    deployment: Deployment = gathered.drafts[0].deployment
    log = EpochLog(seconds=EPOCH_SECONDS, draw=lambda: bytes(32))
    receipt = replace(gathered.drafts[0].receipt, epoch=log.join(deployment.now))
    digest = issue(receipt, deployment.entry.signing).payload_digest
    assert receipt.epoch is not None
    log.add(receipt.epoch, digest)
    (closed,) = log.close(deployment.now + CLOSES)
    assert closed.receipts == (digest,)


def test_a_trust_file_names_auditors(gathered: Gathered) -> None:
    written = gathered.drafts[0].deployment.trust_file
    assert parse_trust(written.encode()).challenge_auditors == ()
    named = f'challenge_auditors = ["{AUDITOR}"]\n{written}'
    assert parse_trust(named.encode()).challenge_auditors == (AUDITOR,)
    for odd in ('["ann"]', "[]", '{ unchecked = "why" }'):
        with pytest.raises(ConfigurationError, match="challenge_auditors"):
            parse_trust(f"challenge_auditors = {odd}\n{written}".encode())


def test_an_epoch_is_settled_with_ids_and_nonces_that_hold(gathered: Gathered) -> None:
    closed, root = gathered.closed, gathered.root
    ids = dict.fromkeys(closed.receipts, "00" * 16)
    terms: dict[str, Any] = {
        "scenario": gathered.drafts[0].deployment.scenario,
        "issued_at": gathered.signed_at,
    }
    assert len(settle_epoch(closed, root, [], receipt_ids=ids, **terms)) == 5
    del ids[closed.receipts[3]]
    with pytest.raises(ConfigurationError, match="epoch 0: no id of receipt sha256"):
        settle_epoch(closed, root, [], receipt_ids=ids, **terms)
    with pytest.raises(ConfigurationError, match="nonces: got 17, want at most 16"):
        settle_epoch(closed, root, [root] * 17, receipt_ids={}, **terms)
    ids = dict.fromkeys(closed.receipts, "00" * 16)
    stale = nonce(gathered, root=digest_json("another"))
    with pytest.raises(VerificationError, match="got one over sha256-jcs-v1"):
        settle_epoch(closed, root, [stale], receipt_ids=ids, **terms)


def test_an_epoch_is_found_among_those_of_others(gathered: Gathered) -> None:
    entry = gathered.drafts[0].deployment.entry.signing.public
    bundles = [gathered.attach(index) for index in range(3)]
    all_of_them = [bundle.attachments[-1] for bundle in bundles]
    odd = replace(all_of_them[0], payload=b"{}")
    for index, bundle in enumerate(bundles):
        digest = bundle.receipt.payload_digest
        found = epoch_among([odd, *all_of_them], entry, digest)
        assert found == gathered.record(index)
    assert epoch_among([odd], entry, bundles[0].receipt.payload_digest) is None
