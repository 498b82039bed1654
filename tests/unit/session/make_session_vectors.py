"""Write the test vectors: ``python -m tests.unit.session.make_session_vectors``.

Keys, nonces and ciphertexts are drawn anew each time, so that a change of the file says
that somebody meant it; the vectors in the repository are those of version 1 for good.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bentoml_secure.attestation.key_document import report_data
from bentoml_secure.serving.draws import Draws
from bentoml_secure.session.bodies import RequestOpener, SealedCall, Whole
from bentoml_secure.session.handshake import _info
from bentoml_secure.session.identity import Keys
from bentoml_secure.session.keys import Session
from bentoml_secure.session.messages import Finish, Hello, Offer, transcript
from bentoml_secure.session.responders import Responder
from bentoml_secure.session.suites import CLASSIC, HYBRID
from bentoml_secure.testing.deployment import NOW
from tests.unit.session.session_parts import Ground, Message, policy, travelled

PATH = Path(__file__).parents[3] / "docs" / "session-vectors.json"
OPERATION = "infer"
R = b"drawn by the entry, 32 bytes ..."
EXCHANGES: tuple[tuple[tuple[bytes, ...], int, tuple[bytes, ...]], ...] = (
    ((b"question",), 200, (b"answer",)),
    ((b"ques", b"tion, in pieces", b"."), 200, (b"ans", b"wer")),
    ((), 400, (b'{"error":{"code":"malformed-input"}}',)),
)


def _private(keys: Keys) -> dict[str, str]:
    private = {"ed25519": keys.signing._key.private_bytes_raw().hex()}
    if keys.hpke is not None:
        private |= {
            "mlkem768_seed": keys.hpke._mlkem.private_bytes_raw().hex(),
            "mlkem768_x25519": keys.hpke._hybrid_x25519.private_bytes_raw().hex(),
            "x25519": keys.hpke._x25519.private_bytes_raw().hex(),
        }
    return private


def _exchange(
    responder: Responder,
    session: Session,
    question: tuple[bytes, ...],
    status: int,
    reply: tuple[bytes, ...],
) -> dict[str, Any]:
    call = SealedCall.begin(session, OPERATION, b"request id 16 by")
    request = b"".join(call.seal(question, [len(piece) for piece in question]).pieces)
    opener = RequestOpener(responder, OPERATION, len(request), Whole)
    opener.feed(request)
    answering = opener.finish()
    answer = b"".join(
        answering.seal(status, reply, [len(piece) for piece in reply]).pieces
    )
    secrets = session.secrets

    def context(direction: str, status: int | None) -> str:
        return session.context(
            direction, operation=OPERATION, request_id=call.request_id, status=status
        ).decode()

    return {
        "operation": OPERATION,
        "exchange_id": call.exchange_id.hex(),
        "request_id": call.request_id.hex(),
        "request": {
            "chunks": [piece.hex() for piece in question] or [""],
            "key": secrets.request_key(call.exchange_id).hex(),
            "context": context("request", None),
            "body": request.hex(),
        },
        "answer": {
            "status": status,
            "nonce": answer[:16].hex(),
            "chunks": [piece.hex() for piece in reply],
            "key": secrets.response_key(call.exchange_id, answer[:16]).hex(),
            "context": context("response", status),
            "body": answer.hex(),
        },
    }


def _first_draw(session: Session) -> Message | None:
    signed = Draws(lambda: NOW, random_bytes=lambda _: R).give(session)
    return None if signed is None else signed.to_json()


def make(suites: tuple[str, ...], *, is_client: bool) -> dict[str, Any]:
    """Return one handshake and the exchanges after it."""
    ground = Ground()
    entry = ground.entry()
    # A client talks to an entry, an entry to its runners.
    runner = (
        ground.entry(suites=suites) if is_client else ground.identity(suites=suites)
    )
    judged = ground.judge_anybody
    responder = ground.responder(
        runner, judged, draw=_first_draw if is_client else None
    )
    keys, drawn = ground.client_keys() if is_client else entry.keys, list[bytes]()

    def noted(length: int) -> bytes:
        drawn.append(len(drawn).to_bytes(1, "big") * length)
        return drawn[-1]

    initiator = ground.initiator(keys, random_bytes=noted)
    a = travelled(initiator.hello())
    b = travelled(responder.offer(a))
    offer = initiator.read_offer(b, judged)
    record = None if is_client else entry.attest(offer.nonce, keys)
    c = travelled(initiator.finish(record))
    d = travelled(responder.accept(c))
    session = initiator.conclude(d)
    unsigned: Message = {name: c[name] for name in c if name != "signature"}
    said: Message = {"version": 1, "draw": d["draw"]}
    hello, finish = Hello.from_json(a), Finish.from_json(c)
    info = _info(hello, Offer.from_json(b), keys.document, offer.nonce, finish.suite)
    return {
        "suite": finish.suite,
        "caller_private": _private(keys),
        "responder_private": _private(runner.keys),
        "master": drawn[1].hex(),
        "hello": a,
        "offer": b,
        "finish": c,
        "confirm": d,
        "responder_report_data": report_data(hello.nonce, runner.keys.document).hex(),
        "caller_report_data": None
        if is_client
        else report_data(offer.nonce, keys.document).hex(),
        "info": info.decode(),
        "transcript_caller": transcript(a, b, unsigned).hex(),
        "transcript_session": transcript(a, b, c).hex(),
        "transcript_responder": transcript(a, b, c, said).hex(),
        "session_id": session.secrets.session_id.hex(),
        "confirm_key": session.secrets._confirm.hex(),
        "records_key": session.secrets._records.hex(),
        "r": R.hex() if is_client else None,
        "exchanges": [_exchange(responder, session, *each) for each in EXCHANGES],
    }


def main() -> None:
    """Write them."""
    vectors = {
        "version": 1,
        "at": NOW.isoformat(),
        "policy": policy().to_json(),
        "handshakes": [
            make((HYBRID, CLASSIC), is_client=False),
            make((CLASSIC,), is_client=False),
            make((HYBRID, CLASSIC), is_client=True),
        ],
    }
    PATH.write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
