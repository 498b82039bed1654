"""A quote of a TPM 2.0: its signature, and the registers that it covers.

A quote is a ``TPMS_ATTEST`` that the TPM made and signed with an attestation key. It
holds the verifier's challenge and one digest over the selected registers (PCRs), whose
values travel beside it. Only the SHA-256 bank is accepted, for SHA-1 registers can be
made to collide, and only signatures over SHA-256.

That the key lives in a TPM, and in which, is not for a quote to show: see ``tpm``.

Source: TCG TPM 2.0 Library, Part 2, 10.12 (attestation), 11.3 (signatures), and
Part 3, 18.4 (TPM2_Quote).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from bentoml_secure.attestation.checks import require, requiring
from bentoml_secure.attestation.tees.tpm_structures import (
    ALG_ECDSA,
    ALG_RSAPSS,
    ALG_RSASSA,
    ALG_SHA256,
    Reader,
)
from bentoml_secure.errors import MalformedInputError

GENERATED = 0xFF544347
"""TPM_GENERATED_VALUE: a restricted key signs nothing from outside that begins so."""

ATTEST_QUOTE = 0x8018
PCR_BYTES = 32
PCR_COUNT = 24
MAX_MESSAGE_BYTES = 1024
MAX_SIGNATURE_BYTES = 1024
MAX_SELECTIONS = 16
"""Far more banks than any TPM has."""

_SELECT_BYTES = PCR_COUNT // 8
_SCHEMES = {ALG_RSASSA: "RSASSA", ALG_RSAPSS: "RSAPSS", ALG_ECDSA: "ECDSA"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What a quote says.

    Attributes:
        extra_data: The verifier's challenge.
        pcr_selection: Registers of the SHA-256 bank that it covers, ascending.
        pcr_digest: SHA-256 over their values, in that order.
        clock: Milliseconds that the TPM was powered since its owner cleared it.
        reset_count: Times that the TPM was reset since then.
        restart_count: Times that it was resumed since the last reset.
        safe: Whether no larger value of ``clock`` was ever reported.
        firmware_version: Its vendor's number.
    """

    extra_data: bytes
    pcr_selection: tuple[int, ...]
    pcr_digest: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int


def verify_quote(
    message: bytes,
    signature: bytes,
    key: RSAPublicKey | EllipticCurvePublicKey,
    pcrs: Mapping[int, bytes],
    *,
    raw_signature: bool = False,
) -> Quote:
    """Return what a quote says, if the key signed it and it covers the registers.

    Args:
        message: The ``TPMS_ATTEST``, without a length before it.
        signature: The ``TPMT_SIGNATURE``.
        key: The attestation key.
        pcrs: Values of the SHA-256 bank by index; exactly those that are quoted.
        raw_signature: ``signature`` is instead what stands inside it: a PKCS#1 v1.5
            signature of an RSA key.

    Raises:
        MalformedInputError: Bytes that do not parse.
        CheckFailedError: ``quote.size``, ``quote.hash``, ``quote.key``,
            ``quote.signature``, ``quote.magic``, ``quote.type``,
            ``quote.bank``, ``quote.pcrs`` or ``quote.pcr_digest`` does not hold.

    Source: TCG TPM 2.0 Library, Part 1, 18.5; Part 3, 18.4.
    """
    # 1. Bounded, and signed by the key: before anything in it is read.
    require(
        "quote.size",
        len(message) <= MAX_MESSAGE_BYTES,
        got=f"{len(message)} bytes",
        want=f"at most {MAX_MESSAGE_BYTES}",
    )
    if raw_signature:
        scheme, value = ALG_RSASSA, signature
    else:
        scheme, value = _parse_signature(signature)
    _verify_signature(message, scheme, value, key)
    # 2. A TPM's own words, and a quote.
    quote = parse_quote(message)
    # 3. It covers these registers, all of them and no others.
    _verify_pcrs(quote, pcrs)
    return quote


def _parse_signature(signature: bytes) -> tuple[int, bytes]:
    """Return the scheme, and the signature in the form that verifiers take."""
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise MalformedInputError(
            f"TPM signature: got {len(signature)} bytes,"
            f" want at most {MAX_SIGNATURE_BYTES}"
        )
    reader = Reader(signature, what="TPM signature")
    scheme, digest = reader.integer(2), reader.integer(2)
    if scheme not in _SCHEMES:
        raise MalformedInputError(
            f"TPM signature: got scheme {scheme:#06x},"
            f" want one of {', '.join(_SCHEMES.values())}"
        )
    require("quote.hash", digest == ALG_SHA256, got=f"{digest:#06x}", want="SHA-256")
    if scheme == ALG_ECDSA:
        r, s = (int.from_bytes(reader.sized(), "big") for _ in range(2))
        value = utils.encode_dss_signature(r, s)
    else:
        value = reader.sized()
    reader.finish()
    return scheme, value


def _verify_signature(
    message: bytes,
    scheme: int,
    signature: bytes,
    key: RSAPublicKey | EllipticCurvePublicKey,
) -> None:
    require(
        "quote.key",
        _is_sound(key),
        got=f"{type(key).__name__} of {key.key_size} bits",
        want="RSA of 2048 to 4096 bits, P-256 or P-384",
    )
    with requiring(
        "quote.signature", InvalidSignature, want="a signature of the attestation key"
    ):
        if isinstance(key, RSAPublicKey) and scheme == ALG_RSASSA:
            key.verify(signature, message, padding.PKCS1v15(), SHA256())
        elif isinstance(key, RSAPublicKey) and scheme == ALG_RSAPSS:
            # The salt is as long as the digest or as there is room, by the TPM's make.
            pss = padding.PSS(padding.MGF1(SHA256()), padding.PSS.AUTO)
            key.verify(signature, message, pss, SHA256())
        elif isinstance(key, EllipticCurvePublicKey) and scheme == ALG_ECDSA:
            key.verify(signature, message, ec.ECDSA(SHA256()))
        else:
            raise InvalidSignature(f"{_SCHEMES[scheme]} does not fit the key's type")


def _is_sound(key: RSAPublicKey | EllipticCurvePublicKey) -> bool:
    if isinstance(key, RSAPublicKey):
        return 2048 <= key.key_size <= 4096
    return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)


def parse_quote(message: bytes) -> Quote:
    """Return what a quote says, unverified.

    Raises:
        MalformedInputError: Bytes that do not parse.
        CheckFailedError: ``quote.magic``, ``quote.type`` or ``quote.bank`` does not
            hold: no quote of the SHA-256 bank that a TPM made.
    """
    reader = Reader(message, what="TPM quote")
    magic, kind = reader.integer(4), reader.integer(2)
    require(
        "quote.magic", magic == GENERATED, got=f"{magic:#010x}", want=f"{GENERATED:#x}"
    )
    require(
        "quote.type",
        kind == ATTEST_QUOTE,
        got=f"{kind:#06x}",
        want=f"{ATTEST_QUOTE:#x}",
    )
    reader.sized()  # the qualified name of the signer: the key is known otherwise
    extra_data = reader.sized()
    clock, reset, restart = reader.integer(8), reader.integer(4), reader.integer(4)
    safe, firmware = reader.integer(1), reader.integer(8)
    if safe > 1:
        raise MalformedInputError(f"TPM quote safe: got {safe}, want 0 or 1")
    selection = _read_selection(reader)
    pcr_digest = reader.sized()
    reader.finish()
    return Quote(
        extra_data=extra_data,
        pcr_selection=selection,
        pcr_digest=pcr_digest,
        clock=clock,
        reset_count=reset,
        restart_count=restart,
        safe=bool(safe),
        firmware_version=firmware,
    )


def _read_selection(reader: Reader) -> tuple[int, ...]:
    """Read a TPML_PCR_SELECTION: banks that select nothing are allowed."""
    count = reader.integer(4)
    if count > MAX_SELECTIONS:
        raise MalformedInputError(
            f"TPM quote: got {count} selections, want at most {MAX_SELECTIONS}"
        )
    banks = []
    for _ in range(count):
        bank, length = reader.integer(2), reader.integer(1)
        if length != _SELECT_BYTES:
            raise MalformedInputError(
                f"TPM quote: selection of {length} bytes, want {_SELECT_BYTES}"
            )
        bits = int.from_bytes(reader.read(length), "little")
        if bits:
            banks.append((bank, bits))
    require(
        "quote.bank",
        [bank for bank, _ in banks] == [ALG_SHA256],
        got=", ".join(f"{bank:#06x}" for bank, _ in banks) or "none",
        want=f"the SHA-256 bank alone, {ALG_SHA256:#06x}",
    )
    return tuple(i for i in range(PCR_COUNT) if banks[0][1] >> i & 1)


def _verify_pcrs(quote: Quote, pcrs: Mapping[int, bytes]) -> None:
    for index, value in pcrs.items():
        if len(value) != PCR_BYTES:
            raise MalformedInputError(
                f"PCR {index}: got {len(value)} bytes, want {PCR_BYTES}"
            )
    require(
        "quote.pcrs",
        quote.pcr_selection == tuple(sorted(pcrs)),
        got=f"a quote of {list(quote.pcr_selection)}",
        want=f"of the values given, {sorted(pcrs)}",
    )
    values = b"".join(pcrs[index] for index in quote.pcr_selection)
    digest = hashlib.sha256(values).digest()
    require(
        "quote.pcr_digest",
        hmac.compare_digest(quote.pcr_digest, digest),
        got=quote.pcr_digest.hex(),
        want=f"{digest.hex()}, of the values given",
    )
