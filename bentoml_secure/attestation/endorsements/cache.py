"""Answers of services by address, kept until what they hold expires."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from bentoml_secure.attestation.endorsements.fetching import (
    OK,
    Fetch,
    Response,
    require_ok,
)
from bentoml_secure.attestation.evidence import (
    MAX_ENDORSEMENT_BYTES,
    format_seconds,
    parse_seconds,
)
from bentoml_secure.digest import parse_json, require_fields
from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.signing import decode_base64

ExpiryOf = Callable[[Response], datetime]
"""When the content of an answer expires; ``MalformedInputError`` if it has none."""

_FIELDS = frozenset({"url", "headers", "body", "expires_at"})
_MAX_ENTRY_BYTES = 2 * MAX_ENDORSEMENT_BYTES
logger = logging.getLogger(__name__)


class Get(Protocol):
    """Gets an answer with status 200 whose content ``expiry_of`` can read."""

    def __call__(self, url: str, expiry_of: ExpiryOf) -> Response:
        """Return it.

        Raises:
            MalformedInputError: Content that cannot be read.
            UnavailableError: No answer, or another status.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFetch:
    """Asks a service only for what is not kept, or has expired.

    What is kept is no more trusted than the network it came from.

    Attributes:
        fetch: The network.
        clock: The time, with a time zone.
        folder: Of kept answers, made if need be; None keeps none.
        refresh: Ask whatever is kept, and keep the new answers.
    """

    fetch: Fetch
    clock: Callable[[], datetime]
    folder: Path | None = None
    refresh: bool = False

    def __call__(self, url: str, expiry_of: ExpiryOf) -> Response:
        """Return an answer; see ``Get``."""
        if not self.refresh and (kept := self._kept(url)) is not None:
            return kept
        response = require_ok(self.fetch(url), url)
        try:
            expires_at = expiry_of(response)
        except MalformedInputError as error:
            raise MalformedInputError(f"{url}: {error}") from error
        if self.folder is not None and expires_at > self.clock():
            self._keep(self.folder, url, response, expires_at)
        return response

    def _kept(self, url: str) -> Response | None:
        path = None if self.folder is None else self.folder / _name(url)
        if path is None or not path.is_file():
            return None
        try:
            with path.open("rb") as stream:
                data = stream.read(_MAX_ENTRY_BYTES + 1)
            expires_at, response = _parse_entry(data, url)
        except (MalformedInputError, OSError) as error:
            logger.warning("%s is not used: %s", path, error)
            return None
        return response if expires_at > self.clock() else None

    def _keep(
        self, folder: Path, url: str, response: Response, expires_at: datetime
    ) -> None:
        entry = {
            "url": url,
            "headers": dict(response.headers),
            "body": base64.b64encode(response.body).decode(),
            "expires_at": format_seconds(expires_at),
        }
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(folder / _name(url), json.dumps(entry).encode())
        except OSError as error:
            raise ConfigurationError(
                f"cache {folder}: cannot be written: {error}.",
                remedy="Name another folder.",
            ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads, in one step: all of it or nothing.

    Raises:
        OSError: It cannot be written.
    """
    # mkstemp makes it with mode 0600.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _name(url: str) -> str:
    return f"{hashlib.sha256(url.encode()).hexdigest()}.json"


def _parse_entry(data: bytes, url: str) -> tuple[datetime, Response]:
    what = "kept answer"
    document = parse_json(data, what=what, max_bytes=_MAX_ENTRY_BYTES)
    entry = require_fields(document, _FIELDS, what=what)
    headers = entry["headers"]
    if entry["url"] != url or not isinstance(headers, dict):
        raise MalformedInputError(f"{what}: it is of another address")
    if not all(isinstance(value, str) for value in headers.values()):
        raise MalformedInputError(f"{what}: headers are not all text")
    body = decode_base64(
        entry["body"], what=f"{what} body", max_bytes=MAX_ENDORSEMENT_BYTES
    )
    expires_at = parse_seconds(entry["expires_at"], what=f"{what} expires_at")
    return expires_at, Response(status=OK, headers=headers, body=body)
