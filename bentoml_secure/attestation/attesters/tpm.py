"""Evidence of a TPM 2.0, asked for through ``tpm_tools``.

The attestation key is a primary key of the endorsement hierarchy: the TPM derives the
same one from its own seed whenever it is asked, so no key material lies anywhere and an
enrolment outlives reboots. Endorsement and owner authorisations must be empty.

BENTOML_SECURE_TPM_PCRS     registers to quote; default: all that boot fills, but IMA's
BENTOML_SECURE_TPM_FOLDER   what is known of this TPM, each file optional:
enrolment.json (DSSE envelope of the enrolment authority), ek_chain.pem (certificates
above the endorsement key's), ek_certificate.der (where the TPM itself holds none)
BENTOML_SECURE_TPM_EVENT_LOG   event log to send along; default: none

Source: TCG TPM 2.0 Library, Part 3.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bentoml_secure.attestation.attesters.tpm_tools import (
    DEFAULT_TCTI,
    TCTI,
    Tpm2Tools,
)
from bentoml_secure.attestation.evidence import Endorsements, Evidence
from bentoml_secure.attestation.roles import REPORT_DATA_BYTES
from bentoml_secure.attestation.tees.tpm import (
    CHALLENGE_BYTES,
    KIND,
    MAX_EVENT_LOG_BYTES,
    TpmEvidence,
)
from bentoml_secure.attestation.tees.tpm_credential import EnrolmentRequest
from bentoml_secure.attestation.tees.tpm_endorsement import MAX_CERTIFICATE_BYTES
from bentoml_secure.attestation.tees.tpm_enrolment import (
    MAX_ENROLMENT_BYTES,
    parse_enrolment,
)
from bentoml_secure.attestation.tees.tpm_quote import PCR_BYTES, PCR_COUNT
from bentoml_secure.digest import parse_json
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    UnavailableError,
)

PCRS = "BENTOML_SECURE_TPM_PCRS"
FOLDER = "BENTOML_SECURE_TPM_FOLDER"
EVENT_LOG = "BENTOML_SECURE_TPM_EVENT_LOG"

DEFAULT_PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14)
"""IMA extends 10 at any time, 15 and up belong to whoever uses them."""

ENROLMENT_FILE = "enrolment.json"
CHAIN_FILE = "ek_chain.pem"
CERTIFICATE_FILE = "ek_certificate.der"
MAX_CHAIN_FILE_BYTES = 1 << 20

EK_CERTIFICATE_INDEX = "0x01c00002"
AK_TEMPLATE = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"

_CREDENTIAL_HEADER = bytes.fromhex("badcc0de00000001")
_REGISTER = re.compile(r"[0-9]{1,2}")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTpm:
    """What is known of a TPM beside what it says itself.

    Attributes:
        enrolment: Envelope of the enrolment authority as JSON, or None.
        endorsements: Certificates above the endorsement key's.
        ek_certificate: Where the TPM holds none, or None.
    """

    enrolment: Any = None
    endorsements: Endorsements = ()
    ek_certificate: bytes | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> KnownTpm:
        """Read the files of ``BENTOML_SECURE_TPM_FOLDER``.

        Raises:
            ConfigurationError: No such folder; a file that does not read.
        """
        known, enrolment = cls.before_enrolment(folder), None
        text = _read(folder / ENROLMENT_FILE, max_bytes=1 << 16)
        if text is not None:
            try:
                enrolment = parse_json(
                    text, what="enrolment", max_bytes=4 * MAX_ENROLMENT_BYTES
                )
                parse_enrolment(enrolment)
            except MalformedInputError as error:
                raise ConfigurationError(
                    f"{folder / ENROLMENT_FILE}: {error}",
                    remedy="Enrol this TPM anew.",
                ) from error
        return replace(known, enrolment=enrolment)

    @classmethod
    def before_enrolment(cls, folder: Path) -> KnownTpm:
        """Read all but the enrolment, which is about to be made anew.

        Raises:
            ConfigurationError: No such folder; a file that does not read.
        """
        if not folder.is_dir():
            raise ConfigurationError(f"{FOLDER}: {folder} is no folder.")
        chain = _read(folder / CHAIN_FILE, max_bytes=MAX_CHAIN_FILE_BYTES)
        return cls(
            endorsements=() if chain is None else (chain,),
            ek_certificate=_read(
                folder / CERTIFICATE_FILE, max_bytes=MAX_CERTIFICATE_BYTES
            ),
        )


class TpmAttester:
    """Quotes with the attestation key of a TPM.

    Args:
        tools: How to reach it.
        pcrs: Registers of the SHA-256 bank to quote, each 0 to 23.
        known: Enrolment and certificates.
        event_log: File to send along, or None.

    Raises:
        UnavailableError: The TPM does not answer.
        MissingDependencyError: tpm2-tools is not installed.
    """

    def __init__(
        self,
        tools: Tpm2Tools,
        *,
        pcrs: Sequence[int] = DEFAULT_PCRS,
        known: KnownTpm | None = None,
        event_log: Path | None = None,
    ) -> None:
        self._tools = tools
        self._pcrs = tuple(sorted(set(pcrs)))
        self._known = known or KnownTpm()
        self._event_log = event_log
        self._ek_certificate = self._known.ek_certificate or self._read_certificate()
        self._ak_public, self._ak_context = self._load_key()

    @property
    def kind(self) -> str:
        """``tpm``."""
        return KIND

    @property
    def endorsements(self) -> Endorsements:
        """Certificates above the endorsement key's, as configured."""
        return self._known.endorsements

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, clock: Callable[[], datetime]
    ) -> TpmAttester:
        """Open the TPM that the environment names.

        Args:
            environ: See the module.
            clock: Not read: a TPM's evidence holds no time of day.

        Raises:
            ConfigurationError: A variable of another form; a file that does not read.
            UnavailableError: The TPM does not answer.
        """
        del clock
        folder = environ.get(FOLDER)
        event_log = environ.get(EVENT_LOG)
        known = KnownTpm.from_folder(Path(folder)) if folder else KnownTpm()
        opened = cls(
            Tpm2Tools(environ.get(TCTI) or DEFAULT_TCTI),
            pcrs=parse_pcr_list(environ.get(PCRS)),
            known=known,
            event_log=Path(event_log) if event_log else None,
        )
        if known.enrolment is None:
            logger.warning(
                "TPM: no enrolment: nothing shows that the attestation key is in this"
                " TPM, and a policy that names an authority refuses it"
            )
        return opened

    def attest(self, report_data: bytes) -> Evidence:
        """Return a quote over the first 32 bytes of ``report_data``.

        Raises:
            MalformedInputError: ``report_data`` has another length than 64 bytes.
            UnavailableError: The TPM does not answer.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise MalformedInputError(
                f"report data: got {len(report_data)} bytes, want {REPORT_DATA_BYTES}"
            )
        message, signature, values = self._quote(report_data[:CHALLENGE_BYTES])
        return TpmEvidence(
            ek_certificate=self._ek_certificate,
            ak_public=self._ak_public,
            message=message,
            signature=signature,
            pcrs={
                index: values[PCR_BYTES * at : PCR_BYTES * (at + 1)]
                for at, index in enumerate(self._pcrs)
            },
            enrolment=self._known.enrolment,
            event_log=self._read_event_log(),
        ).to_evidence()

    def request_enrolment(self) -> EnrolmentRequest:
        """Return what an enrolment authority needs to challenge this TPM."""
        return EnrolmentRequest(
            ek_certificate=self._ek_certificate,
            ak_public=self._ak_public,
            endorsements=self._known.endorsements,
        )

    def activate(self, credential: bytes) -> bytes:
        """Return the secret of an authority's challenge.

        Args:
            credential: ``PendingEnrolment.credential``.

        Raises:
            UnavailableError: The TPM refused it: it is for another TPM or key.
        """
        session = ["tpm2_startauthsession", "--policy-session", "-S", "session"]
        secret = ["tpm2_policysecret", "-Q", "-S", "session", "-c", "endorsement"]
        activate = ["tpm2_activatecredential", "-Q", "-c", "ak", "-C", "ek"]
        activate += ["-i", "credential", "-o", "secret", "-P", "session:session"]
        (answer,) = self._run_with_key(
            ["tpm2_createek", "-Q", "-G", "rsa", "-c", "ek"],
            session,
            secret,
            activate,
            files={"credential": _CREDENTIAL_HEADER + credential},
            results=["secret"],
            cleanup=[["tpm2_flushcontext", "session"]],
        )
        return answer

    def _read_certificate(self) -> bytes:
        try:
            (padded,) = self._tools.run(
                ["tpm2_nvread", "-Q", "-o", "certificate", EK_CERTIFICATE_INDEX],
                results=["certificate"],
            )
        except UnavailableError as error:
            raise UnavailableError(
                f"TPM: no endorsement key certificate: {error}",
                remedy=f"Get the maker's and put it into {FOLDER}/ek_certificate.der.",
            ) from error
        return _trim_der(padded)

    def _load_key(self) -> tuple[bytes, bytes]:
        create = ["tpm2_createprimary", "-Q", "-C", "endorsement", "-g", "sha256"]
        create += ["-G", "ecc256:ecdsa-sha256:null", "-a", AK_TEMPLATE]
        public, context = self._tools.run(
            [*create, "-c", "ak"],
            ["tpm2_readpublic", "-Q", "-c", "ak", "-o", "public"],
            results=["public", "ak"],
        )
        return public, context

    def _quote(self, challenge: bytes) -> tuple[bytes, bytes, bytes]:
        selection = "sha256:" + ",".join(map(str, self._pcrs))
        quote = ["tpm2_quote", "-Q", "-c", "ak", "-g", "sha256", "-l", selection]
        quote += ["-q", challenge.hex(), "-m", "message", "-s", "signature"]
        quote += ["-o", "pcrs", "-F", "values"]
        message, signature, values = self._run_with_key(
            quote, results=["message", "signature", "pcrs"]
        )
        return message, signature, values

    def _run_with_key(
        self,
        *commands: Sequence[str],
        files: Mapping[str, bytes] | None = None,
        results: Sequence[str],
        cleanup: Sequence[Sequence[str]] = (),
    ) -> list[bytes]:
        def run() -> list[bytes]:
            given = {**(files or {}), "ak": self._ak_context}
            return self._tools.run(
                *commands, files=given, results=results, cleanup=cleanup
            )

        try:
            return run()
        except UnavailableError:
            # A TPM that was reset since, as by hibernation, forgot the loaded key.
            self._ak_public, self._ak_context = self._load_key()
            return run()

    def _read_event_log(self) -> bytes | None:
        if self._event_log is None:
            return None
        return _read(self._event_log, max_bytes=MAX_EVENT_LOG_BYTES) or None


def _trim_der(padded: bytes) -> bytes:
    """Cut what TPMs keep after a certificate, by its own length: of 256 to 65535."""
    if padded[:2] != b"\x30\x82":
        raise UnavailableError("TPM: its endorsement key certificate is not DER.")
    return padded[: 4 + int.from_bytes(padded[2:4], "big")]


def _read(path: Path, *, max_bytes: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error}.") from error
    if len(content) > max_bytes:
        raise ConfigurationError(f"{path}: longer than {max_bytes} bytes.")
    return content


def parse_pcr_list(text: str | None) -> tuple[int, ...]:
    """Return the registers that ``BENTOML_SECURE_TPM_PCRS`` names, in order.

    Args:
        text: Numbers with commas between; nothing: ``DEFAULT_PCRS``.

    Raises:
        ConfigurationError: Another form, a register twice, or one beyond the last.
    """
    if not text:
        return DEFAULT_PCRS
    items = [item.strip() for item in text.split(",")]
    pcrs = {int(item) for item in items if _REGISTER.fullmatch(item)}
    if len(pcrs) != len(items) or max(pcrs) >= PCR_COUNT:
        raise ConfigurationError(
            f"{PCRS}: got {text!r:.80}, want registers 0 to {PCR_COUNT - 1}, each"
            " once, with commas between."
        )
    return tuple(sorted(pcrs))
