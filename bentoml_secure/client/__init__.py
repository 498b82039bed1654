"""The caller's side: ask a secured service, and believe only what a receipt shows.

Rules of this room:

    nothing unverified    a call returns an answer whose bundle was judged against the
                          caller's trust file, or raises with every finding
    whom before what      no input leaves before the entry has shown evidence over the
                          caller's own nonce
    exact bytes           commitments are opened over the bytes that were sent and
                          received: no redirects, no content encodings
    one flow              requests and replies are a generator without any I/O; the
                          two clients only carry its messages

    exchange    one HTTP request and its reply; what refusals mean
    entry       the entry's evidence
    answer      Question, Answer, judging the bundle
    flow        the order of requests
    clients     SecureClient, AsyncSecureClient
    auditing    ChallengeAuditor

    with SecureClient("https://diagnosis.example", "trust.toml") as client:
        answer = client.call("diagnose", {"features": [[1.0, 2.0]]})
        print(answer.value, answer.verdict.state, answer.receipt_id)

Never imports bentoml.
"""

from __future__ import annotations

from bentoml_secure.client.answer import Answer, Question
from bentoml_secure.client.auditing import ChallengeAuditor
from bentoml_secure.client.clients import AsyncSecureClient, SecureClient

__all__ = [
    "Answer",
    "AsyncSecureClient",
    "ChallengeAuditor",
    "Question",
    "SecureClient",
]
