"""What a broker answers, at whichever step: the first byte chooses status and type."""

from __future__ import annotations

import functools
import json
from contextlib import suppress

from bentoml_secure.attestation.dev_chain import make_root
from bentoml_secure.attestation.key_document import Role
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import SecureError, VerificationError
from bentoml_secure.keys.http_calls import Answer, Call
from bentoml_secure.keys.release import Patience, fetch_segment_key
from bentoml_secure.keys.release_messages import ReleaseRequest
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.session.bodies import SEALED_TYPE
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.keys import Shown
from bentoml_secure.testing.deployment import NOW, key_of

STATUSES = (200, 302, 400, 401, 403, 404, 413, 429, 500, 503)
TYPES = ("application/json", SEALED_TYPE, "text/html")


@functools.cache
def runner() -> Identity:
    """Return who asks."""
    digest = digest_json("fuzzed")
    attester = SimulatedAttester(
        key_of("root"),
        make_root(key_of("root"), now=NOW),
        platform_id="simulated-fuzzed",
        measurement="00" * 32,
        clock=lambda: NOW,
    )
    return Identity(
        attester,
        role=Role.RUNNER,
        service="Fuzzed",
        segment=digest,
        plan=digest,
        config_digest=digest,
        clock=lambda: NOW,
    )


def seeds() -> list[bytes]:
    """Return refusals, sealed and plain, and what a proxy says."""
    errors = [
        {"error": {"code": code, "message": "no"}}
        for code in ("policy-rejected", "unknown-session", "verification")
    ]
    bodies = [json.dumps(error).encode() for error in errors]
    bodies += [b"<html>", b"", bytes(64), b'{"error": null}', b"[]"]
    kinds = range(len(STATUSES) * len(TYPES))
    return [bytes([kind]) + bodies[kind % len(bodies)] for kind in kinds]


def one(data: bytes) -> None:
    """Ask for a key and be answered so; there is none, and only our errors."""
    kind = data[0] if data else 0
    answer = Answer(
        status=STATUSES[kind % len(STATUSES)],
        headers=(("content-type", TYPES[kind // len(STATUSES) % len(TYPES)]),),
        body=data[1:],
    )

    def refuse(shown: Shown) -> None:
        """Accept nobody: what lies behind is other targets'."""
        raise VerificationError(f"{shown.document.service}: not accepted")

    def send(call: Call) -> Answer:
        """Answer every call alike."""
        return answer

    request = ReleaseRequest(segment=digest_json("fuzzed"), key_id=_KEY.key_id)
    with suppress(SecureError):
        fetch_segment_key(
            "http://broker",
            runner(),
            refuse,
            request,
            max_age_seconds=300,
            send=send,
            patience=Patience(seconds=0, sleep=lambda _: None),
            clock=lambda: NOW,
        )
        raise AssertionError("a key out of nothing")


_KEY = SegmentKey(bytes(32))
