"""The auditor's side of challenges: nonces over roots, and receipts challenged later.

    with ChallengeAuditor(url, "trust.toml", key, seen=Path("seen.jsonl")) as auditor:
        auditor.answer_roots()

An auditor believes an entry as a caller does, after evidence over a nonce of its own.
It signs one root of an epoch and no second one: which, it keeps in a file, for an entry
who does not like a nonce may have the auditor restarted.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import httpx

from bentoml_secure.audit.challenge import MAX_EPOCH
from bentoml_secure.client.clients import SecureClient, Settings
from bentoml_secure.client.exchange import Exchange, post_json, require_success
from bentoml_secure.client.flow import Flow
from bentoml_secure.digest import (
    JSON,
    NONCE_BYTES,
    Digest,
    parse_digest,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.receipts.epoch_root import EpochAuditor, parse_epoch_envelope
from bentoml_secure.receipts.late_challenge import sign_challenge
from bentoml_secure.receipts.receipt import parse_receipt
from bentoml_secure.receipts.strict import items, whole
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.signing import Envelope, SigningKey, VerificationKey

EPOCHS = "/bsec/v1/epochs"
MAX_ROOTS = 1024
MAX_KEYS = 64
"""Of one entry, the latest: epochs close after their keys were replaced."""

_MAX_ROOTS_BYTES = 8 << 20
_MAX_REPLY_BYTES = 4096
_MAX_SEEN_BYTES = 1 << 30

Place = tuple[str, str, int]


class SeenRoots(MutableMapping[Place, Digest]):
    """Which root of each epoch was signed: a file of lines, each on disk at once.

    Args:
        path: Of the file; made where it is not there.

    Raises:
        ConfigurationError: It cannot be read or written, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[Place, Digest] = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise ConfigurationError(f"{path}: {error}") from error
        try:
            self._seen.update(map(parse_seen, self._lines()))
        except MalformedInputError as error:
            os.close(self._file)
            raise ConfigurationError(
                f"{path}: {error}.", remedy="Name the file of this auditor."
            ) from error

    def _lines(self) -> Iterator[bytes]:
        size = os.fstat(self._file).st_size
        if size > _MAX_SEEN_BYTES:
            raise MalformedInputError(f"got {size} bytes, want {_MAX_SEEN_BYTES}")
        *lines, rest = os.pread(self._file, size, 0).split(b"\n")
        if rest:
            # Killed while it wrote: the nonce was not signed yet.
            os.ftruncate(self._file, size - len(rest))
        yield from lines

    def __getitem__(self, place: Place) -> Digest:
        return self._seen[place]

    def __setitem__(self, place: Place, root: Digest) -> None:
        os.write(self._file, json.dumps([*place, root]).encode() + b"\n")
        os.fsync(self._file)
        self._seen[place] = root

    def __delitem__(self, place: Place) -> None:
        raise ConfigurationError(f"{self._path}: what was signed stays signed")

    def __iter__(self) -> Iterator[Place]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def parse_seen(line: bytes) -> tuple[Place, Digest]:
    """Return the place and the root of one line.

    Raises:
        MalformedInputError: Not of its form.
    """
    what = "signed root"
    said = parse_json(line, what=what, max_bytes=_MAX_REPLY_BYTES)
    if len(items(said, what=what, most=4)) != 4:
        raise MalformedInputError(f"{what}: want a key id, scenario, number and digest")
    entry, scenario, number, root = said
    if not isinstance(entry, str) or not isinstance(scenario, str):
        raise MalformedInputError(f"{what}: want a key id and a scenario")
    place = entry, scenario, whole(number, what=what, low=0, high=MAX_EPOCH)
    return place, parse_digest(root, what=what, algorithm=JSON)


@dataclass(frozen=True, slots=True)
class AnsweredRoot:
    """What became of a root that an auditor was shown.

    Attributes:
        root: Digest of the root document.
        refusal: Why there is no nonce of it, or why it was not taken; else "".
    """

    root: Digest
    refusal: str = ""


class ChallengeAuditor(SecureClient):
    """Takes part in a deployment's challenges, as one of its auditors.

    Args:
        url: Of the entry service.
        trust: What the auditor accepts, or the path of a trust file.
        key: The auditor's; its id stands in the deployment's list, and in the trust
            files of those who rely on it.
        seen: File that outlives this process; None where nothing does.
        transport: httpx transport; None uses the network.
        settings: As ``SecureClient``.

    Raises:
        ConfigurationError: No such URL, trust file or file of roots.
    """

    def __init__(
        self,
        url: str,
        trust: Trust | str | os.PathLike[str],
        key: SigningKey,
        *,
        seen: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(url, trust, transport=transport, **settings)
        self._key = key
        self._seen = None if seen is None else SeenRoots(seen)
        self._auditor = EpochAuditor(
            key, draw=lambda: secrets.token_bytes(NONCE_BYTES), seen=self._seen
        )
        self._told: set[Digest] = set()
        # Signed and not handed in yet: no second nonce is signed over a root.
        self._signed: dict[Digest, Envelope] = {}
        self._entries: dict[str, VerificationKey] = {}

    def answer_roots(self) -> tuple[AnsweredRoot, ...]:
        """Sign a nonce over each root that is new, and hand it in.

        Returns:
            What became of each; what is refused is not tried again. That a second root
            was shown of one epoch is the entry's doing.

        Raises:
            UnavailableError: The entry does not answer; call again.
            SecureError: The entry is not the one trusted, or what it shows no roots.
        """
        shown = {root.payload_digest: root for root in self._run(_roots())}
        self._told &= shown.keys()
        self._signed = {d: self._signed[d] for d in shown.keys() & self._signed.keys()}
        return tuple(
            self._answer(digest, root)
            for digest, root in shown.items()
            if digest not in self._told
        )

    def _answer(self, digest: Digest, root: Envelope) -> AnsweredRoot:
        try:
            if digest not in self._signed:
                entry = self._entry_of(root)
                self._signed[digest] = self._auditor.answer(root, entry)
            self._run(_post(EPOCHS, self._signed[digest]))
        except UnavailableError:
            raise
        except SecureError as error:
            self._told.add(digest)
            return AnsweredRoot(digest, str(error))
        self._told.add(digest)
        return AnsweredRoot(digest)

    def challenge(self, receipt: Envelope) -> int:
        """Have a receipt proven whose epoch was drawn without it.

        Args:
            receipt: The envelope; whether it holds is for ``verify`` to say.

        Returns:
            How many proofs the receipt is owed now.

        Raises:
            MalformedInputError: No receipt.
            ConfigurationError: The deployment does not hold its orders any more, or
                has no such receipt.
            VerificationError: This auditor is none of the deployment.
        """
        named = parse_receipt(receipt).receipt_id
        said = sign_challenge(named, receipt.payload_digest, self._key)
        reply = self._run(_post(f"/bsec/v1/receipts/{named}/challenge", said))
        got = require_fields(reply, ("due",), what="challenge")
        return whole(got["due"], what="challenge due", low=1, high=1 << 20)

    def _entry_of(self, root: Envelope) -> VerificationKey:
        """Return the attested key that a root should be signed with."""
        if root.key_id not in self._entries:
            # Its own key document changes: the one of before is attested no more.
            self._caller.forget()
            document = self.attest().document
            shown = VerificationKey.from_hex(document.ed25519)
            self._entries[shown.key_id] = shown
            while len(self._entries) > MAX_KEYS:
                del self._entries[next(iter(self._entries))]
            return shown
        return self._entries[root.key_id]

    def close(self) -> None:
        """Close the connections, and the file of roots."""
        super().close()
        if self._seen is not None:
            self._seen.close()


def _post(path: str, envelope: Envelope) -> Flow[Any]:
    return post_json(path, envelope.to_json(), max_bytes=_MAX_REPLY_BYTES)


def _roots() -> Flow[tuple[Envelope, ...]]:
    reply = yield Exchange(method="GET", path=EPOCHS, max_bytes=_MAX_ROOTS_BYTES)
    require_success(reply, EPOCHS)
    said = parse_json(reply.body, what=EPOCHS, max_bytes=_MAX_ROOTS_BYTES)
    got = require_fields(said, ("roots",), what=EPOCHS)
    shown = items(got["roots"], what="epoch roots", most=MAX_ROOTS)
    return tuple(parse_epoch_envelope(root, what="epoch root") for root in shown)
