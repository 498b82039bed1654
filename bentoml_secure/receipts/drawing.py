"""Judging the draw: that the entry's share was fixed, and is the one that was used.

For every receipt:

    1. the commitment is that of ``r``, and the request id follows from both and the
       caller's nonce
    2. where it was signed beforehand: the entry's key signs it, for this session and
       key document; and who had it could use it, a caller that drew its own nonce and
       sent it sealed
    3. where it was not: the trust file takes the entry's word for it
    4. where the caller says which commitment it was given: it is that one
"""

from __future__ import annotations

from bentoml_secure.digest import Digest, digest_bytes
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.receipts.case import Case, Report
from bentoml_secure.receipts.draw import (
    Commitment,
    Drawn,
    derive_request_id,
    verify_commitment,
)
from bentoml_secure.receipts.receipt import CALLER, SEALED
from bentoml_secure.signing import Envelope


def judge_draw(case: Case, report: Report, committed: Digest | None) -> None:
    """Judge the draw; see the module's steps.

    Args:
        case: The receipt and its parties.
        report: Takes the findings.
        committed: That the caller was given before it drew its nonce, if it says so.
    """
    receipt, draw = case.receipt, case.receipt.draw
    r, nonce = bytes.fromhex(draw.r), bytes.fromhex(receipt.client_nonce)
    report.require("draw commitment", draw.commitment, digest_bytes(r))
    report.require("receipt_id", receipt.receipt_id, derive_request_id(r, nonce).hex())
    if draw.signed is not None:
        _judge_signed(draw.signed, case, report)
    elif case.trust.draw is Drawn.COMMITTED:
        report.add("draw", "asserted by the entry", "committed (the trust file's draw)")
    if committed is not None:
        got = "asserted by the entry" if draw.asserted else draw.commitment
        report.require("draw given beforehand", got, committed)


def _judge_signed(signed: Envelope, case: Case, report: Report) -> None:
    receipt = case.receipt
    # Whoever draws the nonce as well knows both, however early it committed to one.
    report.require("draw nonce_drawn_by", receipt.nonce_drawn_by, CALLER)
    report.require("draw first_hop", receipt.first_hop, SEALED)
    key, own = case.keys.get(receipt.service), case.parties.get(receipt.service)
    if key is None or own is None:
        report.add("draw signature", "no key document of the entry", "one")
        return
    try:
        got = verify_commitment(signed, key)
    except (VerificationError, MalformedInputError) as error:
        report.add("draw signature", str(error), "one by the entry's key")
        return
    want = Commitment(
        commitment=receipt.draw.commitment,
        key_document=own.key_document,
        evidence_nonce=own.evidence_nonce,
    )
    for name in want.__slots__:
        report.require(f"draw signed {name}", getattr(got, name), getattr(want, name))
