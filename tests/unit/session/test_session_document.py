"""docs/session.md: its numbers are the code's, and the tests it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bentoml_secure.attestation import evidence, key_document
from bentoml_secure.receipts import draw
from bentoml_secure.serving import draws, entry, runner_app
from bentoml_secure.session import bodies, http, messages, records, responders
from bentoml_secure.session.suites import CLASSIC, HYBRID, ciphertext_bytes

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "session.md").read_text()


@pytest.mark.parametrize(
    "says",
    [
        f"| a message of a handshake | {messages.MAX_MESSAGE_BYTES} bytes;"
        f" (a) {runner_app.MAX_ATTEST_BYTES} |",
        f"| open handshakes | {responders.MAX_HANDSHAKES},"
        f" {responders.HANDSHAKE_SECONDS:g} s each |",
        f"| evidence made | {responders.QUOTES_PER_SECOND:g} a second,"
        f" {responders.QUOTE_BURST} at once |",
        f"| sessions held | {responders.MAX_SESSIONS} |",
        f"| exchanges of a session | {responders.MAX_EXCHANGES};"
        f" {entry.MAX_CLIENT_EXCHANGES} of a client's |",
        f"| draws of a session that were promised and not used | {draws.MAX_OPEN} |",
        f"`payloadType` `{draw.DRAW_TYPE}`",
        f"at most {draw.MAX_COMMITMENT_BYTES} bytes. The first",
        f"| a chunk | {records.CHUNK_BYTES} bytes |",
        f"/ {records.CHUNK_BYTES} + {records.MAX_ODD_CHUNKS} chunks",
        f"media type `{bodies.SEALED_TYPE}`",
        f"at most {http.MAX_HEADERS} in at most {http.MAX_HEAD_BYTES >> 10} KiB",
        f"at most {evidence.MAX_EVIDENCE_BYTES} of them",
        f"at most {evidence.MAX_ENDORSEMENTS} endorsements",
        f"public key in hex; at most {key_document.MAX_HPKE_KEYS})",
        f"1 to {key_document.MAX_SERVICE_CHARACTERS} printable",
        f"`{HYBRID}`",
        f"`{CLASSIC}`",
        f"`{responders.UNKNOWN_SESSION}` | 401",
    ],
)
def test_numbers_are_those_of_the_code(says: str) -> None:
    assert says in TEXT


def test_sealed_secrets_have_the_lengths_of_the_table() -> None:
    assert "| 1120 + 32 + 16 |" in TEXT
    assert "| 32 + 32 + 16 |" in TEXT
    lengths = [ciphertext_bytes(s, messages.MASTER_BYTES) for s in (HYBRID, CLASSIC)]
    assert lengths == [1120 + 32 + 16, 32 + 32 + 16]


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (messages._HELLO, "(a) hello"),
        (messages._OFFER, "(b) offer"),
        (messages._FINISH, "(c) finish"),
        (messages._CONFIRM, "(d) confirm"),
    ],
)
def test_messages_have_the_fields_of_the_table(
    message: frozenset[str], line: str
) -> None:
    found = re.search(rf"\| \*\*{re.escape(line)}\*\* \| \w+ \| (.*) \|", TEXT)
    assert found is not None
    assert set(re.findall(r"`(\w+)`", found[1])) == message


def test_the_tests_of_the_table_are_there() -> None:
    named = set(re.findall(r"`(test_\w+|Test\w+)`", TEXT))
    there = "\n".join(
        path.read_text()
        for folder in ("unit/session", "property")
        for path in (ROOT / "tests" / folder).glob("test_session_*.py")
    )
    made = set(re.findall(r"(?:def|class) (\w+)", there))
    assert len(named) > 20
    assert named <= made


def test_a_header_of_the_connection_stands_outside() -> None:
    assert all(f"`{name}`" in TEXT for name in http._NOT_INSIDE)
