"""What provers are told and tell, sealed: orders, links, openings.

    order     HPKE in base mode to the prover's order key
              MLKEM768-X25519, HKDF-SHA256, AES-256-GCM; info = label || about
    link      AES-256-GCM under a key that two neighbouring provers have:
              12 random bytes || ciphertext; data = label || boundary of which request
    opening   AES-256-GCM under a key that follows from the request's root salt:
              12 random bytes || ciphertext; data = label || which proof

Orders wait in a store, and links and openings travel through hands that may not read
them; so the suite is the one that stays closed to a later quantum computer. Nothing
opens under another request, ``infer`` or segment than it was sealed for.

Sealing hides; it does not say who sealed. An order that somebody else put into the
queue makes a proof that fits no receipt, for nobody else has the receipt's salts.

Sources: RFC 9180; draft-ietf-hpke-pq for the hybrid. Link and opening keys are of one
boundary of one ``infer`` each: a random nonce does not meet another there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bentoml_secure.digest import canonical_json, parse_hex
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.proofs.boundary import MAX_ACTIVATIONS, MAX_SALT_ELEMENTS
from bentoml_secure.proofs.orders import (
    INPUT,
    KEY_BYTES,
    MAX_ORDER_BYTES,
    MAX_TENSOR_BYTES,
    SERVED,
    About,
    Order,
)
from bentoml_secure.proofs.proof import BoundaryValues
from bentoml_secure.tensors import Array, decode, encode, is_finite

NONCE_BYTES = 12
TAG_BYTES = 16
LARGEST_VALUE = 1 << 62
"""Far outside the range of any circuit; the next that 8 bytes hold is its double."""

MAX_VALUES = MAX_ACTIVATIONS + MAX_SALT_ELEMENTS
PROVEN = "proven"
"""The activations that came out of the chain, in an opening."""

PUBLIC_BYTES = 1184 + 32
ORDER_OVERHEAD_BYTES = 1120 + TAG_BYTES
MAX_SEALED_ORDER_BYTES = MAX_ORDER_BYTES + ORDER_OVERHEAD_BYTES
MAX_SEALED_LINK_BYTES = NONCE_BYTES + 8 * MAX_VALUES + TAG_BYTES
MAX_SEALED_OPENING_BYTES = NONCE_BYTES + MAX_TENSOR_BYTES + TAG_BYTES

_SUITE = hpke.Suite(
    hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM
)
_MLKEM_BYTES = 1184
_ORDER_LABEL = b"bentoml-secure/proof-order/v1"
_KEY_LABEL = b"bentoml-secure/order-key/v1"
_LINK_LABEL = b"bentoml-secure/proof-link/v1"
_OPENING_LABEL = b"bentoml-secure/proof-opening/v1"
_VALUE = np.dtype("<i8")


class OrderKey:
    """The private key of one segment's provers; it follows from their secret.

    All replicas of a prover have the same, and a prover that starts again has it too:
    what waits in the store is theirs still. It prints and pickles nothing.

    Args:
        secret: 32 bytes that nobody else has.

    Raises:
        MalformedInputError: Another length.
    """

    __slots__ = ("_private", "public")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise MalformedInputError(
                f"order secret: got {len(secret)} bytes, want {KEY_BYTES}"
            )
        seed = HKDF(SHA256(), 64 + 32, None, _KEY_LABEL).derive(secret)
        mlkem = MLKEM768PrivateKey.from_seed_bytes(seed[:64])
        x25519 = X25519PrivateKey.from_private_bytes(seed[64:])
        self._private = hpke.MLKEM768X25519PrivateKey(mlkem, x25519)
        self.public = (
            mlkem.public_key().public_bytes_raw()
            + x25519.public_key().public_bytes_raw()
        ).hex()
        """ML-KEM-768 || X25519, in hex: what orders are sealed to."""

    def open(self, sealed: bytes, about: About) -> Order:
        """Return the order that ``seal_order`` was given.

        Args:
            sealed: From the store.
            about: The proof that it must be about.

        Raises:
            VerificationError: Sealed to another segment's provers, about another
                proof, or altered.
            MalformedInputError: Too long; or whoever sealed it sealed no order.
        """
        _require_length("order", len(sealed), ORDER_OVERHEAD_BYTES, MAX_ORDER_BYTES)
        try:
            opened = _SUITE.decrypt(sealed, self._private, _order_info(about))
        except (InvalidTag, ValueError) as error:
            raise VerificationError(
                f"order of segment {about.segment}: does not open under this key as "
                "an order about this proof"
            ) from error
        order = Order.from_bytes(bytes(opened))
        if order.about != about:
            raise VerificationError(
                f"order about: got {order.about.to_json()}, want {about.to_json()}"
            )
        return order

    def __repr__(self) -> str:
        return f"OrderKey({self.public[:16]}...)"


def _order_info(about: About) -> bytes:
    return _ORDER_LABEL + canonical_json(about.to_json())


def seal_order(public: str, order: Order) -> bytes:
    """Seal an order to one segment's provers.

    Args:
        public: Of their order key, as they said in an attested session.
        order: It opens as an order about ``order.about`` and no other.

    Raises:
        MalformedInputError: No such public key; an order too large.
    """
    raw = parse_hex(public, what="order key", length=PUBLIC_BYTES)
    try:
        recipient = hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_BYTES]),
            X25519PublicKey.from_public_bytes(raw[_MLKEM_BYTES:]),
        )
        info = _order_info(order.about)
        return bytes(_SUITE.encrypt(order.to_bytes(), recipient, info))
    except ValueError as error:
        raise MalformedInputError(f"order key: {error}") from error


def seal_link(key: bytes, values: BoundaryValues, about: About) -> bytes:
    """Seal the boundary that came out of a segment for the prover of the next.

    Args:
        key: The order's ``link_out``.
        values: Activations and salt.
        about: The sealing prover's own.

    Raises:
        MalformedInputError: None or too many; one out of range.
    """
    if not 0 < len(values) <= MAX_VALUES:
        raise MalformedInputError(
            f"link: got {len(values)} values, want 1 to {MAX_VALUES}"
        )
    _require_range(max(values), min(values))
    data = np.array(values, _VALUE).tobytes()
    return _seal(key, data, about.bind(_LINK_LABEL, about.segment + 1))


def open_link(key: bytes, sealed: bytes, about: About) -> BoundaryValues:
    """Open the boundary that goes into a segment.

    Args:
        key: The order's ``link_in``.
        sealed: What the prover before handed on.
        about: The opening prover's own.

    Raises:
        VerificationError: Of another request or boundary, under another key, or
            altered.
        MalformedInputError: Too long or no whole number of values; one out of range.
    """
    bound = about.bind(_LINK_LABEL)
    data = _open("link", key, sealed, bound, 8 * MAX_VALUES)
    if not data or len(data) % 8:
        raise MalformedInputError(
            f"link: got {len(data)} bytes, want a multiple of 8, not 0"
        )
    values = np.frombuffer(data, _VALUE)
    _require_range(int(values.max()), int(values.min()))
    return tuple(values.tolist())


def _require_range(largest: int, least: int) -> None:
    if largest > LARGEST_VALUE or least < -LARGEST_VALUE:
        raise MalformedInputError(
            f"link: got values from {least} to {largest}, want none beyond "
            f"{LARGEST_VALUE}"
        )


def seal_opening(key: bytes, tensors: Mapping[str, Array], about: About) -> bytes:
    """Seal what the holder of the root salt may compare with what it was served.

    Args:
        key: The order's ``opening_key``.
        tensors: "input.<name>" of the first segment; "proven", int64 activations, and
            "served.<name>" of the last; all of them where there is one segment only.
        about: Which proof.

    Raises:
        MalformedInputError: Another name or form; NaN or infinity; too large.
    """
    _require_opening(tensors)
    data = encode(tensors)
    if len(data) > MAX_TENSOR_BYTES:
        raise MalformedInputError(
            f"opening: got {len(data)} bytes, want at most {MAX_TENSOR_BYTES}"
        )
    return _seal(key, data, about.bind(_OPENING_LABEL))


def open_opening(key: bytes, sealed: bytes, about: About) -> dict[str, Array]:
    """Open what ``seal_opening`` sealed.

    Args:
        key: "proven-input" or "proven-output", derived from the root salt.
        sealed: From an attachment.
        about: Which proof.

    Returns:
        Tensors under the names that ``seal_opening`` takes; whether they are those
        that were proven, their hashes say.

    Raises:
        VerificationError: Of another proof, under another key, or altered.
        MalformedInputError: Too long; no tensors of these names; NaN or infinity.
    """
    bound = about.bind(_OPENING_LABEL)
    data = _open("opening", key, sealed, bound, MAX_TENSOR_BYTES)
    tensors = decode(data)
    _require_opening(tensors)
    return tensors


def _require_opening(tensors: Mapping[str, Array]) -> None:
    if not tensors:
        raise MalformedInputError("opening: holds no tensor")
    for name, array in tensors.items():
        if name == PROVEN:
            if array.dtype != np.int64 or array.ndim != 1:
                raise MalformedInputError(
                    f"opening {PROVEN}: got {array.dtype}{list(array.shape)}, want "
                    "int64 in one dimension"
                )
        elif not name.startswith((INPUT, SERVED)):
            raise MalformedInputError(
                f"opening tensor: got {name!r:.60}, want {INPUT}<name>, {PROVEN} or "
                f"{SERVED}<name>"
            )
        elif not is_finite(array):
            raise MalformedInputError(f"opening {name!r:.60}: holds NaN or infinity")


def _seal(key: bytes, data: bytes, bound: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + _cipher(key).encrypt(nonce, data, bound)


def _open(what: str, key: bytes, sealed: bytes, bound: bytes, most: int) -> bytes:
    _require_length(what, len(sealed), NONCE_BYTES + TAG_BYTES, most)
    nonce, ciphertext = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    try:
        return _cipher(key).decrypt(nonce, ciphertext, bound)
    except InvalidTag as error:
        raise VerificationError(
            f"{what}: does not open under this key as one of this proof"
        ) from error


def _require_length(what: str, length: int, overhead: int, most: int) -> None:
    if not overhead <= length <= most + overhead:
        raise MalformedInputError(
            f"sealed {what}: got {length} bytes, want {overhead} to {most + overhead}"
        )


def _cipher(key: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise MalformedInputError(f"key: got {len(key)} bytes, want {KEY_BYTES}")
    return AESGCM(key)
