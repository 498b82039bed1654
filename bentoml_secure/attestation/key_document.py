"""Key documents: the keys of one process, and what evidence about them covers.

A runner, entry, prover or broker writes one per process; a caller writes one per
session. Evidence binds the whole document through 64 bytes of report data, so that a
key cannot be shown under another role, service, segment, plan or configuration.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from bentoml_secure.attestation.evidence import (
    format_seconds,
    parse_kind,
    parse_seconds,
)
from bentoml_secure.digest import (
    JSON,
    NONCE_BYTES,
    Digest,
    canonical_json,
    digest_file_bytes,
    digest_json,
    parse_digest,
    parse_hex,
    require_fields,
)
from bentoml_secure.errors import MalformedInputError

VERSION = 1
ED25519_KEY_BYTES = 32
BOOT_ID_BYTES = 16
MAX_SERVICE_CHARACTERS = 128
MAX_HPKE_KEYS = 8
MAX_HPKE_KEY_BYTES = 2048
"""MLKEM768-X25519 keys have 1216."""

_REPORT_DATA_LABEL = b"bentoml-secure/report-data/v1"
_GPU_LABEL = b"bentoml-secure/gpu/v1"
_NO_GPU = bytes(32)
_SUITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}")
_FIELDS = frozenset(
    {
        "version",
        "role",
        "service",
        "segment",
        "plan",
        "package",
        "config_digest",
        "hpke",
        "ed25519",
        "platform",
        "boot_id",
        "not_after",
    }
)


class Role(StrEnum):
    """What a process is in a deployment."""

    RUNNER = "runner"
    ENTRY = "entry"
    CLIENT = "client"
    PROVER = "prover"
    BROKER = "broker"


_MAY_LACK: Mapping[str, frozenset[Role]] = {
    "plan": frozenset({Role.CLIENT, Role.BROKER}),
    "config_digest": frozenset({Role.CLIENT}),
    "platform": frozenset({Role.CLIENT}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDocument:
    """The keys of one process and what it is.

    Attributes:
        role: A runner's keys are worth nothing as an entry's.
        service: Name of the service.
        segment: Identity of the one segment; runners and provers alone have one.
        plan: Digest of the split plan; clients and brokers may have none.
        package: Digest of the code, see ``package_digest``.
        config_digest: Digest of the deployment's configuration; clients may have none.
        hpke: (suite, public key in hex), sorted by suite.
        ed25519: Public key in hex, 32 bytes.
        platform: Kind of the evidence; clients may have none.
        boot_id: 16 random bytes of this process, in hex.
        not_after: UTC, whole seconds. The keys are good until then.

    Raises:
        MalformedInputError: A value out of its form, or absent for this role.
    """

    role: Role
    service: str
    segment: Digest | None
    plan: Digest | None
    package: Digest
    config_digest: Digest | None
    hpke: tuple[tuple[str, str], ...]
    ed25519: str
    platform: str | None
    boot_id: str
    not_after: datetime

    def __post_init__(self) -> None:
        _require_service(self.service)
        self._require_present()
        parse_digest(self.package, what="key document package", algorithm=JSON)
        for name in ("segment", "plan", "config_digest"):
            if (value := getattr(self, name)) is not None:
                parse_digest(value, what=f"key document {name}", algorithm=JSON)
        if self.platform is not None:
            parse_kind(self.platform, what="key document platform")
        parse_hex(self.ed25519, what="key document ed25519", length=ED25519_KEY_BYTES)
        parse_hex(self.boot_id, what="key document boot_id", length=BOOT_ID_BYTES)
        _require_hpke(self.hpke)
        if self.not_after.microsecond or self.not_after.utcoffset() is None:
            raise MalformedInputError(
                f"key document not_after: got {self.not_after.isoformat()},"
                " want whole seconds with a time zone"
            )

    def _require_present(self) -> None:
        has_segment = self.role in (Role.RUNNER, Role.PROVER)
        if (self.segment is not None) is not has_segment:
            got, want = ("none", "one") if has_segment else ("one", "none")
            raise MalformedInputError(
                f"key document segment, role {self.role}: got {got}, want {want}"
            )
        for name in ("plan", "config_digest", "platform"):
            if getattr(self, name) is None and self.role not in _MAY_LACK[name]:
                raise MalformedInputError(
                    f"key document {name}, role {self.role}: got none, want one"
                )

    @property
    def digest(self) -> Digest:
        """Digest of the document, as sessions, statements and receipts name it."""
        return digest_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the document as it travels and is hashed."""
        return {
            "version": VERSION,
            "role": self.role.value,
            "service": self.service,
            "segment": self.segment,
            "plan": self.plan,
            "package": self.package,
            "config_digest": self.config_digest,
            "hpke": dict(self.hpke),
            "ed25519": self.ed25519,
            "platform": self.platform,
            "boot_id": self.boot_id,
            "not_after": format_seconds(self.not_after),
        }

    @classmethod
    def from_json(cls, document: object) -> KeyDocument:
        """Parse what ``to_json`` wrote.

        Raises:
            MalformedInputError: A field missing, unknown, or out of its form.
        """
        fields = require_fields(document, _FIELDS, what="key document")
        version, hpke = fields["version"], fields["hpke"]
        # Not ==: true and 1.0 equal 1 and are other documents.
        if type(version) is not int or version != VERSION:
            raise MalformedInputError(
                f"key document version: got {version!r:.40}, want {VERSION}"
            )
        if fields["role"] not in tuple(Role):
            raise MalformedInputError(
                f"key document role: got {fields['role']!r:.40},"
                f" want one of {', '.join(Role)}"
            )
        if not isinstance(hpke, dict):
            raise MalformedInputError("key document hpke: want an object")
        return cls(
            role=Role(fields["role"]),
            service=fields["service"],
            segment=fields["segment"],
            plan=fields["plan"],
            package=fields["package"],
            config_digest=fields["config_digest"],
            hpke=tuple(sorted(hpke.items())),
            ed25519=fields["ed25519"],
            platform=fields["platform"],
            boot_id=fields["boot_id"],
            not_after=parse_seconds(fields["not_after"], what="key document not_after"),
        )


def _require_service(name: object) -> None:
    if not (
        isinstance(name, str)
        and 0 < len(name) <= MAX_SERVICE_CHARACTERS
        and name.isprintable()
    ):
        raise MalformedInputError(
            f"key document service: got {name!r:.60},"
            f" want 1 to {MAX_SERVICE_CHARACTERS} printable characters"
        )


def _require_hpke(keys: tuple[tuple[str, str], ...]) -> None:
    suites = [suite for suite, _ in keys]
    if len(keys) > MAX_HPKE_KEYS or suites != sorted(set(suites)):
        raise MalformedInputError(
            f"key document hpke: got {len(keys)} keys,"
            f" want at most {MAX_HPKE_KEYS}, one a suite, sorted"
        )
    for suite, key in keys:
        if not _SUITE.fullmatch(suite):
            raise MalformedInputError(f"key document hpke: bad suite {suite!r:.80}")
        _require_public_key(key, what=f"key document hpke {suite}")


def _require_public_key(key: object, *, what: str) -> None:
    if not isinstance(key, str) or not 0 < len(key) <= 2 * MAX_HPKE_KEY_BYTES:
        raise MalformedInputError(f"{what}: want 1 to {MAX_HPKE_KEY_BYTES} bytes")
    parse_hex(key, what=what, length=(len(key) + 1) // 2)


def report_data(
    nonce: bytes, document: KeyDocument, gpu_evidence: bytes | None = None
) -> bytes:
    """Return the 64 bytes that evidence about a key document covers.

    SHA-512("bentoml-secure/report-data/v1" || nonce || SHA-256(JCS(document)) ||
    SHA-256(GPU evidence), or 32 zero bytes without any).

    Args:
        nonce: 32 bytes, drawn by who asks for the evidence.
        document: The keys.
        gpu_evidence: Evidence of a GPU beside the CPU, as sent.

    Raises:
        MalformedInputError: A nonce of another length: it would shift what follows.
    """
    return hashlib.sha512(
        _REPORT_DATA_LABEL
        + _covered(nonce, document)
        + (_NO_GPU if gpu_evidence is None else hashlib.sha256(gpu_evidence).digest())
    ).digest()


def gpu_nonce(nonce: bytes, document: KeyDocument) -> bytes:
    """Return the 32 bytes that a GPU beside the CPU is asked for evidence with.

    SHA-256("bentoml-secure/gpu/v1" || nonce || SHA-256(JCS(document))): evidence that
    another machine's GPU made for somebody else does not cover them.

    Args:
        nonce: 32 bytes, drawn by who asks for the evidence.
        document: The keys.

    Raises:
        MalformedInputError: A nonce of another length.
    """
    return hashlib.sha256(_GPU_LABEL + _covered(nonce, document)).digest()


def _covered(nonce: bytes, document: KeyDocument) -> bytes:
    if len(nonce) != NONCE_BYTES:
        raise MalformedInputError(
            f"evidence nonce: got {len(nonce)} bytes, want {NONCE_BYTES}"
        )
    return nonce + hashlib.sha256(canonical_json(document.to_json())).digest()


@functools.cache
def package_digest() -> Digest:
    """Return the digest of this package's code, as it lies on disk.

    The digest of [{"path", "digest"}, ...], sorted by path, over every ``.py`` file and
    ``py.typed``. It names a release; only measured boot makes it true of what runs.
    """
    return _digest_of_code(Path(__file__).resolve().parents[1])


def _digest_of_code(package: Path) -> Digest:
    files = {
        path.relative_to(package).as_posix(): path
        for path in (*package.rglob("*.py"), package / "py.typed")
    }
    return digest_json(
        [
            {"path": name, "digest": digest_file_bytes(files[name].read_bytes())}
            for name in sorted(files)
        ]
    )
