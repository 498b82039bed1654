"""Which check of the quote library refused: its messages, and our names for them.

The library makes all of DCAP's checks in one call and says what failed in a sentence.
Each sentence known here becomes a named check; any other becomes ``dcap``. A sentence
that changes with a release costs a name, never a refusal.

Source: dcap-qvl 0.7, ``verify.rs`` and ``utils.rs``.
"""

from __future__ import annotations

from typing import NoReturn

from bentoml_secure.attestation.checks import require
from bentoml_secure.errors import AttestationError


def refuse(message: str) -> NoReturn:
    """Raise the named check that the library's message stands for.

    Raises:
        CheckFailedError: Always.
    """
    reason = _Reason(message)
    _refuse_lists(reason)
    _refuse_collateral(reason)
    _refuse_chain(reason)
    _refuse_quoting_enclave(reason)
    _refuse_tcb(reason)
    _refuse_td(reason)
    require("dcap", False, got=reason, want="a quote and collateral that hold")
    raise AttestationError(f"DCAP: {reason}")


class _Reason:
    """A message of the library on one line."""

    def __init__(self, message: str) -> None:
        text = message.partition("Stack backtrace")[0]
        self._text = " ".join(text.split()).removeprefix("Verification failed: ")

    def __str__(self) -> str:
        return f"{self._text:.300}"

    def lacks(self, *phrases: str) -> bool:
        """Tell whether the message says none of these."""
        return not any(phrase in self._text for phrase in phrases)


def _refuse_lists(reason: _Reason) -> None:
    require(
        "crl.expired",
        reason.lacks("CrlExpired"),
        got=reason,
        want="revocation lists before their next update",
    )
    require(
        "chain.revoked",
        reason.lacks("CertRevoked"),
        got=reason,
        want="certificates that no list revokes",
    )
    require(
        "crl.issuer",
        reason.lacks("UnknownRevocationStatus"),
        got=reason,
        want="revocation lists of the issuers in the chains",
    )
    require(
        "crl",
        reason.lacks("CrlSignature", "root CA CRL", "PCK CRL"),
        got=reason,
        want="revocation lists that parse, signed by their issuers",
    )


def _refuse_collateral(reason: _Reason) -> None:
    require(
        "collateral.expired",
        reason.lacks("TCBInfo expired", "QE Identity expired"),
        got=reason,
        want="collateral before its next update",
    )
    require(
        "collateral.issued",
        reason.lacks("issue date is in the future"),
        got=reason,
        want="collateral issued by then",
    )
    require(
        "tcb_info.signature",
        reason.lacks("Signature is invalid for tcb_info"),
        got=reason,
        want="the TCB signing certificate's",
    )
    require(
        "qe_identity.signature",
        reason.lacks("Signature is invalid for qe_identity"),
        got=reason,
        want="the TCB signing certificate's",
    )
    require(
        "collateral.tee",
        reason.lacks("QE Identity id/version", "TCB info in the collateral"),
        got=reason,
        want="collateral of the quote's TEE",
    )


def _refuse_chain(reason: _Reason) -> None:
    require(
        "chain.dates",
        reason.lacks("CertExpired", "CertNotValidYet"),
        got=reason,
        want="certificates within their dates",
    )
    require(
        "chain",
        reason.lacks(
            "Failed to verify certificate chain",
            "Certificate chain is too short",
            "Too many intermediate certificates",
            "Failed to parse certs",
            "Failed to parse PCK certificate",
            "leaf certificate",
        ),
        got=reason,
        want="certificates under Intel's root",
    )
    require(
        "pck.extension",
        reason.lacks(
            "Intel extension", "DER object", "CpuSvn", "PceSvn", "Fmspc length"
        ),
        got=reason,
        want="a platform certificate with Intel's extension",
    )


def _refuse_quoting_enclave(reason: _Reason) -> None:
    require(
        "qe_report.signature",
        reason.lacks("Signature is invalid for qe_report"),
        got=reason,
        want="the platform certificate's",
    )
    require(
        "qe_report.key",
        reason.lacks("QE report hash mismatch", "Invalid QE auth data length"),
        got=reason,
        want="the hash of the attestation key",
    )
    require(
        "qe_report.identity",
        reason.lacks(
            "QE MRSIGNER",
            "QE ISVPRODID",
            "QE MISCSELECT",
            "QE ATTRIBUTES",
            "QE ISVSVN",
            "QE report validation failed",
            "No TCB levels found in QE Identity",
        ),
        got=reason,
        want="Intel's quoting enclave, as its identity describes it",
    )
    require(
        "quote.signature",
        reason.lacks("ISV enclave report signature is invalid"),
        got=reason,
        want="the attestation key's",
    )


def _refuse_tcb(reason: _Reason) -> None:
    require(
        "fmspc",
        reason.lacks("Fmspc mismatch", "TCB FMSPC"),
        got=reason,
        want="collateral of this platform's model",
    )
    require(
        "tcb.level",
        reason.lacks(
            "No matching TCB level found",
            "below minimum required from TDX module",
            "No TDX module identity",
            "component count mismatch",
        ),
        got=reason,
        want="a platform that its TCB info lists",
    )
    require(
        "tcb.revoked",
        reason.lacks("TCB status is invalid: Revoked"),
        got=reason,
        want="a TCB that is not revoked",
    )
    require(
        "tdx_module",
        reason.lacks("TDX module MRSIGNER", "TDX module SEAMATTRIBUTES", "tdxModule"),
        got=reason,
        want="Intel's TDX module, as the TCB info describes it",
    )


def _refuse_td(reason: _Reason) -> None:
    require(
        "debug",
        reason.lacks("Debug mode is enabled"),
        got=reason,
        want="memory that a debugger cannot read",
    )
    require(
        "td_attributes.profiling",
        reason.lacks("TD profiling is enabled"),
        got=reason,
        want="no profiling by the host",
    )
    require(
        "td_attributes.reserved",
        reason.lacks("Reserved bits in TD attributes"),
        got=reason,
        want="reserved bits that are zero",
    )
    require(
        "td_attributes.migratable",
        reason.lacks("TD migration is enabled"),
        got=reason,
        want="a TD that stays on its platform",
    )
    require(
        "td_attributes.sept_ve_disable",
        reason.lacks("SEPT_VE_DISABLE is not enabled"),
        got=reason,
        want="SEPT_VE_DISABLE set: no exceptions that the host can cause",
    )
    require(
        "mr_service_td",
        reason.lacks("Invalid MR service TD", "SERVTD_EXT is enabled"),
        got=reason,
        want="no service TD bound: it could read or move the TD",
    )
