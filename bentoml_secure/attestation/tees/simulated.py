"""Simulated evidence: the form of attestation, with no hardware behind it.

A development root is a folder with a key that a deployment's processes share. Each
process issues itself a leaf and signs reports with it. Whoever can read the folder can
claim any report data, measurement and platform id. Any root verifies, for anyone can
make one; a policy accepts those whose digest it lists.

The evidence is canonical JSON of at most ``MAX_BLOB_BYTES``:

    version        1
    report         report_data: 128 hex digits; measurement: 64; platform_id;
                   issued_at: RFC 3339, UTC, whole seconds
    certificates   [leaf, root], base64 of DER
    signature      the leaf's Ed25519, hex, over the label
                   "bentoml-secure/simulated/v1" || canonical JSON of the rest
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bentoml_secure.attestation.dev_chain import (
    MARK,
    MAX_CERTIFICATE_BYTES,
    make_leaf,
    verify_chain,
)
from bentoml_secure.attestation.dev_root import load_dev_root
from bentoml_secure.attestation.evidence import (
    Endorsements,
    Evidence,
    VerifiedClaims,
    format_seconds,
    parse_seconds,
)
from bentoml_secure.attestation.key_document import package_digest
from bentoml_secure.attestation.reference_values import (
    References,
    Unchecked,
    compare_reference,
    read_list,
    read_references,
    references_to_json,
    require_known,
)
from bentoml_secure.attestation.roles import REPORT_DATA_BYTES, Comparison
from bentoml_secure.digest import (
    Digest,
    canonical_json,
    parse_hex,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import (
    AttestationError,
    ConfigurationError,
    MalformedInputError,
)
from bentoml_secure.signing import SIGNATURE_BYTES, decode_base64

KIND = "simulated"
VENDOR = "none (simulated)"
VERSION = 1
MAX_BLOB_BYTES = 16 * 1024
MEASUREMENT_BYTES = 32

_LABEL = b"bentoml-secure/simulated/v1"
_BLOB = frozenset({"version", "report", "certificates", "signature"})
_REPORT = frozenset({"report_data", "measurement", "platform_id", "issued_at"})
_PLATFORM_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedPolicy:
    """Reference values for simulated evidence.

    Attributes:
        roots: ``sha256:`` digests of the DER of development roots; at least one.
        measurement: Package digests in hex, or why any is accepted.
    """

    roots: tuple[str, ...]
    measurement: References

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between simulated claims and this policy."""
        return compare_reference("root", claims.root, self.roots) + compare_reference(
            "measurement", claims.claims["measurement"], self.measurement
        )

    def to_json(self) -> dict[str, Any]:
        """Return the table of the policy."""
        return {
            "roots": list(self.roots),
            "measurement": references_to_json(self.measurement),
        }


class Simulated:
    """Verifier of simulated evidence and reader of its policy table."""

    def verify(
        self, evidence: Evidence, endorsements: Sequence[bytes], *, now: datetime
    ) -> VerifiedClaims:
        """Return what a report says, under whichever development root.

        Args:
            evidence: From outside, of kind ``simulated``.
            endorsements: Not read: the chain is in the evidence.
            now: Judges the dates of the certificates.

        Raises:
            MalformedInputError: Evidence that does not parse.
            AttestationError: A chain or signature that does not hold.
        """
        # 1. Size, form, one spelling.
        leaf, root, blob = _parse_blob(evidence)
        # 2. The root signed the leaf, both marked, both within their dates.
        chain = verify_chain(leaf, root, now=now)
        # 3. The leaf signed everything but the signature.
        signature = parse_hex(
            blob.pop("signature"),
            what="simulated evidence signature",
            length=SIGNATURE_BYTES,
        )
        try:
            chain.leaf_key.verify(signature, _LABEL + canonical_json(blob))
        except InvalidSignature as error:
            raise AttestationError(
                "simulated evidence: the leaf's signature does not fit the report"
            ) from error
        # 4. Only now what it says.
        return _claims(blob["report"], chain.root, chain.expires_at)

    def describe(self, evidence: Evidence) -> Mapping[str, Any]:
        """Return a report's fields, unverified.

        Raises:
            MalformedInputError: Evidence that does not parse.
        """
        report = _parse_blob(evidence)[2]["report"]
        return dict(require_fields(report, _REPORT, what="simulated report"))

    def parse_policy(self, table: Mapping[str, Any]) -> SimulatedPolicy:
        """Return the reference values that the table ``[simulated]`` spells.

        Raises:
            ConfigurationError: A key unknown or of another type; no root.
        """
        what = f"appraisal policy [{KIND}]"
        require_known(table, frozenset({"roots", "measurement"}), what=what)
        measurement: References = Unchecked("the policy lists no measurement")
        if "measurement" in table:
            measurement = read_references(
                table["measurement"],
                what=f"{what} measurement",
                pattern=re.compile(r"[0-9a-f]{64}"),
                form="package digest of 64 hex digits",
            )
        return SimulatedPolicy(
            roots=read_list(
                table.get("roots"),
                what=f"{what} roots",
                pattern=re.compile(r"sha256:[0-9a-f]{64}"),
                form="digest of a development root, sha256:<hex>",
            ),
            measurement=measurement,
        )


def _parse_blob(evidence: Evidence) -> tuple[bytes, bytes, dict[str, Any]]:
    if evidence.kind != KIND:
        raise AttestationError(f"evidence kind: got {evidence.kind}, want {KIND}")
    document = parse_json(
        evidence.blob, what="simulated evidence", max_bytes=MAX_BLOB_BYTES
    )
    blob: dict[str, Any] = require_fields(document, _BLOB, what="simulated evidence")
    if canonical_json(blob) != evidence.blob:
        raise MalformedInputError("simulated evidence: not canonical JSON")
    if type(blob["version"]) is not int or blob["version"] != VERSION:
        raise MalformedInputError(
            f"simulated evidence version: got {blob['version']!r:.40}, want {VERSION}"
        )
    certificates = blob["certificates"]
    if not isinstance(certificates, list) or len(certificates) != 2:
        raise MalformedInputError(
            "simulated evidence certificates: want two, leaf and root"
        )
    leaf, root = (
        decode_base64(
            certificate,
            what="simulated evidence certificate",
            max_bytes=MAX_CERTIFICATE_BYTES,
        )
        for certificate in certificates
    )
    return leaf, root, blob


def _claims(report: object, root: Digest, expires_at: datetime) -> VerifiedClaims:
    what = "simulated report"
    fields = require_fields(report, _REPORT, what=what)
    platform_id = fields["platform_id"]
    if not isinstance(platform_id, str) or not _PLATFORM_ID.fullmatch(platform_id):
        raise MalformedInputError(f"{what} platform_id: got {platform_id!r:.60}")
    return VerifiedClaims(
        kind=KIND,
        report_data=parse_hex(
            fields["report_data"], what=f"{what} report_data", length=REPORT_DATA_BYTES
        ),
        claims={
            "measurement": parse_hex(
                fields["measurement"],
                what=f"{what} measurement",
                length=MEASUREMENT_BYTES,
            ).hex()
        },
        platform_id=platform_id,
        vendor=VENDOR,
        root=root,
        issued_at=parse_seconds(fields["issued_at"], what=f"{what} issued_at"),
        expires_at=expires_at,
        simulated=True,
    )


class SimulatedAttester:
    """Signs reports under a development root, with a key of this process.

    Args:
        root_key: The development root's key; not kept.
        root: DER of its certificate.
        platform_id: The machine to claim: 1 to 128 of A-Z a-z 0-9 . _ : -
        measurement: Package digest to claim, 64 hex digits.
        clock: The time, with a time zone.
    """

    def __init__(
        self,
        root_key: Ed25519PrivateKey,
        root: bytes,
        *,
        platform_id: str,
        measurement: str,
        clock: Callable[[], datetime],
    ) -> None:
        if not _PLATFORM_ID.fullmatch(platform_id):
            raise ConfigurationError(
                f"platform_id: got {platform_id!r:.140},"
                " want 1 to 128 of A-Z a-z 0-9 . _ : -"
            )
        parse_hex(measurement, what="measurement", length=MEASUREMENT_BYTES)
        self._key = Ed25519PrivateKey.generate()
        leaf = make_leaf(self._key.public_key(), root_key, root, now=clock())
        self._certificates = [base64.b64encode(der).decode() for der in (leaf, root)]
        self._measurement = measurement
        self._clock = clock
        self.platform_id = platform_id

    @property
    def kind(self) -> str:
        """``simulated``."""
        return KIND

    @property
    def endorsements(self) -> Endorsements:
        """None: the chain is in the evidence."""
        return ()

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        clock: Callable[[], datetime],
        platform_id: str | None = None,
        measurement: str | None = None,
    ) -> SimulatedAttester:
        """Load a development root and issue a leaf; says so in the log.

        Args:
            folder: What ``create_dev_root`` made.
            clock: The time, with a time zone.
            platform_id: By default one that all processes of this host share.
            measurement: By default this package's digest.

        Raises:
            ConfigurationError: No usable development root there.
        """
        key, root = load_dev_root(folder, now=clock())
        attester = cls(
            key,
            root,
            platform_id=platform_id or _platform_of_this_host(root),
            measurement=measurement or package_digest().partition(":")[2],
            clock=clock,
        )
        logger.warning(
            "%s: evidence is signed with the development root in %s;"
            " it protects nothing from whoever can read that folder",
            MARK,
            folder,
        )
        return attester

    def attest(self, report_data: bytes) -> Evidence:
        """Return a signed report over 64 bytes.

        Raises:
            MalformedInputError: ``report_data`` has another length.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise MalformedInputError(
                f"report data: got {len(report_data)} bytes, want {REPORT_DATA_BYTES}"
            )
        blob = {
            "version": VERSION,
            "report": {
                "report_data": report_data.hex(),
                "measurement": self._measurement,
                "platform_id": self.platform_id,
                "issued_at": format_seconds(self._clock()),
            },
            "certificates": self._certificates,
        }
        signature = self._key.sign(_LABEL + canonical_json(blob))
        return Evidence(
            kind=KIND, blob=canonical_json({**blob, "signature": signature.hex()})
        )


def _platform_of_this_host(root: bytes) -> str:
    """Name the machine, differently for each root: no id follows it around."""
    boot_id = _BOOT_ID.read_bytes() if _BOOT_ID.exists() else b""
    host = socket.gethostname().encode()
    digest = hashlib.sha256(b"\0".join([root, host, boot_id])).hexdigest()
    return f"simulated-{digest[:32]}"
