"""Orders: everything that one prover needs to prove one segment of one ``infer``.

    order = length of the header, u32 big-endian || header, canonical JSON || tensors-v1

The header says which proof it is, of which set-up, until when, and holds the salts and
keys; the tensors are those that only the chain's two ends need: "input.<name>" for the
first segment, "served.<name>" for the last. A middle segment's boundary comes from the
prover before it (``sealing.seal_link``), not from here.

It holds an activation's salts in plain: outside a process it is sealed, always.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from bentoml_secure.digest import (
    JSON,
    NONCE_BYTES,
    REQUEST_ID_BYTES,
    SALT_BYTES,
    Digest,
    Scheme,
    canonical_json,
    parse_choice,
    parse_digest,
    parse_hex,
    parse_json,
    require_fields,
)
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.split.plan import MAX_SEGMENTS
from bentoml_secure.statements import parse_time
from bentoml_secure.tensors import MAX_TENSORS, Array, decode, encode, is_finite

VERSION = 1
MAX_HEADER_BYTES = 64 * 1024
MAX_TENSOR_BYTES = 32 << 20
MAX_ORDER_BYTES = 4 + MAX_HEADER_BYTES + MAX_TENSOR_BYTES
KEY_BYTES = 32

INPUT = "input."
SERVED = "served."

_LENGTH_BYTES = 4
_MAX_INFER = (1 << 32) - 1
_ABOUT = ("receipt_id", "receipt_digest", "infer", "segment")
_DIGESTS = ("segment_identity", "plan", "manifest")
_KEYS = ("link_in", "link_out", "opening_key")
_FIELDS = (
    "version",
    "about",
    "segments",
    *_DIGESTS,
    "nonce",
    "scheme",
    "priority",
    "deadline",
    "salts",
    *_KEYS,
    "input_salts",
    "output_salts",
    "proven_salts",
)


class Priority(StrEnum):
    """Whose proofs come first."""

    CRITICAL = "critical"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Which proof: what every ciphertext about it is bound to.

    Attributes:
        receipt_id: 16 bytes, hex.
        receipt_digest: Of the receipt that the proof will be attached to.
        infer: Which ``infer`` of the request, from 0.
        segment: Index in the plan, from 0.

    Raises:
        MalformedInputError: A value out of its form.
    """

    receipt_id: str
    receipt_digest: Digest
    infer: int
    segment: int

    def __post_init__(self) -> None:
        parse_hex(self.receipt_id, what="order receipt_id", length=REQUEST_ID_BYTES)
        parse_digest(self.receipt_digest, what="order receipt_digest", algorithm=JSON)
        _require_whole("infer", self.infer, 0, _MAX_INFER)
        _require_whole("segment", self.segment, 0, MAX_SEGMENTS - 1)

    def to_json(self) -> dict[str, Any]:
        """Return the document of an order's header."""
        return asdict(self)

    def bind(self, label: bytes, index: int | None = None) -> bytes:
        """Return label || receipt digest || infer || index, integers as u32 big-endian.

        Args:
            label: What is bound.
            index: Of the segment, where left out; or of one of its boundaries.
        """
        place = self.segment if index is None else index
        return (
            label
            + self.receipt_digest.encode()
            + self.infer.to_bytes(4, "big")
            + place.to_bytes(4, "big")
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """What a prover is to prove, and with what.

    Attributes:
        about: Which proof.
        segments: How many the plan has.
        segment_identity: Of the segment, as in the plan.
        plan: Digest of the plan.
        manifest: Digest of the set-up's manifest.
        nonce: The client's 32 bytes, hex.
        scheme: Of the receipt's commitments.
        priority: Among other orders.
        deadline: RFC 3339; a proof that comes later is of no use.
        salts: Of the boundaries that go in and come out, 32 secret bytes each.
        link_in: Under which the prover before sealed the boundary that goes in; None
            for the first segment.
        link_out: Under which to seal the one that comes out; None for the last.
        opening_key: Under which to seal what the root salt's holder may compare; None
            between the two ends.
        inputs: What the chain was given; of the first segment only.
        input_salts: Of their commitments in the receipt, by name.
        served: What the chain answered; of the last segment only.
        output_salts: Of their commitments in the receipt, by name.
        proven_salts: Of commitments to the proven answer, by name: of the last segment,
            where that is what the caller was given.

    Raises:
        MalformedInputError: A value out of its form; something that the segment's
            place in the chain has no use for, or that it lacks; NaN or infinity.
    """

    about: About
    segments: int
    segment_identity: Digest
    plan: Digest
    manifest: Digest
    nonce: str
    scheme: Scheme
    priority: Priority
    deadline: str
    salts: tuple[bytes, bytes] = field(repr=False)
    link_in: bytes | None = field(repr=False, default=None)
    link_out: bytes | None = field(repr=False, default=None)
    opening_key: bytes | None = field(repr=False, default=None)
    inputs: Mapping[str, Array] | None = field(repr=False, default=None)
    input_salts: Mapping[str, bytes] | None = field(repr=False, default=None)
    served: Mapping[str, Array] | None = field(repr=False, default=None)
    output_salts: Mapping[str, bytes] | None = field(repr=False, default=None)
    proven_salts: Mapping[str, bytes] | None = field(repr=False, default=None)

    def __post_init__(self) -> None:
        _require_whole("segments", self.segments, 1, MAX_SEGMENTS)
        if self.about.segment >= self.segments:
            raise MalformedInputError(
                f"order segment: got {self.about.segment}, the plan has {self.segments}"
            )
        for name in _DIGESTS:
            parse_digest(getattr(self, name), what=f"order {name}", algorithm=JSON)
        parse_hex(self.nonce, what="order nonce", length=NONCE_BYTES)
        parse_time(self.deadline, what="order deadline")
        for salt in self.salts:
            _require_secret("salts", salt, SALT_BYTES)
        self._require_place()
        _require_tensors("input", self.inputs, self.input_salts)
        _require_tensors("served", self.served, self.output_salts)
        if self.proven_salts is not None:
            _require_tensors("served", self.served or {}, self.proven_salts)

    @property
    def is_first(self) -> bool:
        """Tell whether what goes in is the model's input."""
        return self.about.segment == 0

    @property
    def is_last(self) -> bool:
        """Tell whether what comes out is the model's output."""
        return self.about.segment == self.segments - 1

    def _require_place(self) -> None:
        """Refuse what this place in the chain has no use for: least privilege."""
        for name, wanted in (
            ("link_in", not self.is_first),
            ("link_out", not self.is_last),
            ("opening_key", self.is_first or self.is_last),
            ("inputs", self.is_first),
            ("input_salts", self.is_first),
            ("served", self.is_last),
            ("output_salts", self.is_last),
        ):
            value = getattr(self, name)
            if (value is not None) is not wanted:
                raise MalformedInputError(
                    f"order {name}: got {'none' if value is None else 'one'}, segment "
                    f"{self.about.segment} of {self.segments} wants "
                    f"{'one' if wanted else 'none'}"
                )
            if name in _KEYS and value is not None:
                _require_secret(name, value, KEY_BYTES)

    def to_bytes(self) -> bytes:
        """Return the order in plain: secret.

        Raises:
            MalformedInputError: More names or larger tensors than an order may have.
        """
        header = canonical_json(
            {
                "version": VERSION,
                "about": self.about.to_json(),
                "segments": self.segments,
                **{name: getattr(self, name) for name in _DIGESTS},
                "nonce": self.nonce,
                "scheme": self.scheme.value,
                "priority": self.priority.value,
                "deadline": self.deadline,
                "salts": [salt.hex() for salt in self.salts],
                **{name: _spelled(getattr(self, name)) for name in _KEYS},
                "input_salts": _spelled_all(self.input_salts),
                "output_salts": _spelled_all(self.output_salts),
                "proven_salts": _spelled_all(self.proven_salts),
            }
        )
        tensors = encode(
            _named(INPUT, self.inputs or {}) | _named(SERVED, self.served or {})
        )
        _require_length("header", len(header), MAX_HEADER_BYTES)
        _require_length("tensors", len(tensors), MAX_TENSOR_BYTES)
        return len(header).to_bytes(_LENGTH_BYTES, "big") + header + tensors

    @classmethod
    def from_bytes(cls, data: bytes) -> Order:
        """Parse what ``to_bytes`` wrote.

        Args:
            data: Opened, but from whoever knows the prover's public key.

        Raises:
            MalformedInputError: A length over its bound; a field missing, unknown or
                out of its form; a header that is not canonical JSON.
        """
        _require_length("all of it", len(data), MAX_ORDER_BYTES)
        length = int.from_bytes(data[:_LENGTH_BYTES], "big")
        _require_length("header", length, MAX_HEADER_BYTES)
        start = _LENGTH_BYTES + length
        header = data[_LENGTH_BYTES:start]
        document = parse_json(header, what="order header", max_bytes=MAX_HEADER_BYTES)
        if len(header) != length or canonical_json(document) != header:
            raise MalformedInputError("order header: is not canonical JSON")
        _require_length("tensors", len(data) - start, MAX_TENSOR_BYTES)
        got = require_fields(document, _FIELDS, what="order")
        _require_whole("version", got["version"], VERSION, VERSION)
        inputs, served = _taken_apart(decode(memoryview(data)[start:]))
        return cls(
            about=About(**require_fields(got["about"], _ABOUT, what="order about")),
            segments=got["segments"],
            segment_identity=got["segment_identity"],
            plan=got["plan"],
            manifest=got["manifest"],
            nonce=got["nonce"],
            scheme=parse_choice(got["scheme"], Scheme, what="order scheme"),
            priority=parse_choice(got["priority"], Priority, what="order priority"),
            deadline=got["deadline"],
            salts=_salts(got["salts"]),
            link_in=_key("link_in", got["link_in"]),
            link_out=_key("link_out", got["link_out"]),
            opening_key=_key("opening_key", got["opening_key"]),
            # No tensor at all is an empty map to tensors-v1, whoever has one or not.
            inputs=inputs if got["input_salts"] is not None or inputs else None,
            input_salts=_named_salts("input_salts", got["input_salts"]),
            served=served if got["output_salts"] is not None or served else None,
            output_salts=_named_salts("output_salts", got["output_salts"]),
            proven_salts=_named_salts("proven_salts", got["proven_salts"]),
        )


def _named(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {prefix + name: array for name, array in tensors.items()}


def _taken_apart(
    tensors: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array]]:
    parts: dict[str, dict[str, Array]] = {INPUT: {}, SERVED: {}}
    for name, array in tensors.items():
        for prefix, part in parts.items():
            if name.startswith(prefix):
                part[name.removeprefix(prefix)] = array
                break
        else:
            raise MalformedInputError(
                f"order tensor: got {name!r:.60}, want {INPUT}<name> or {SERVED}<name>"
            )
    return parts[INPUT], parts[SERVED]


def _require_tensors(
    what: str,
    tensors: Mapping[str, Array] | None,
    salts: Mapping[str, bytes] | None,
) -> None:
    if tensors is None or salts is None:
        return
    if not tensors or tensors.keys() != salts.keys():
        raise MalformedInputError(
            f"order {what} salts: got those of {sorted(salts)!r:.200}, want of "
            f"{sorted(tensors)!r:.200}, at least one"
        )
    for name, array in tensors.items():
        # Nothing that is proven is near it: circuits know finite numbers only.
        if not is_finite(array):
            raise MalformedInputError(
                f"order {what} {name!r:.60}: holds NaN or infinity"
            )
        _require_secret(f"{what} salt", salts[name], SALT_BYTES)


def _require_whole(name: str, value: object, least: int, most: int) -> None:
    # Not isinstance: a boolean is an int.
    if type(value) is not int or not least <= value <= most:
        raise MalformedInputError(
            f"order {name}: got {value!r:.40}, want {least} to {most}"
        )


def _require_secret(name: str, value: bytes, length: int) -> None:
    if len(value) != length:
        raise MalformedInputError(
            f"order {name}: got {len(value)} bytes, want {length}"
        )


def _require_length(name: str, length: int, most: int) -> None:
    if not 0 < length <= most:
        raise MalformedInputError(f"order {name}: got {length} bytes, want 1 to {most}")


def _spelled(secret: bytes | None) -> str | None:
    return None if secret is None else secret.hex()


def _spelled_all(secrets: Mapping[str, bytes] | None) -> dict[str, str] | None:
    if secrets is None:
        return None
    return {name: secret.hex() for name, secret in secrets.items()}


def _secret(name: str, value: object, length: int) -> bytes:
    try:
        return parse_hex(value, what=name, length=length)
    except MalformedInputError:
        # Its own error repeats what was got, which is secret here.
        raise MalformedInputError(
            f"order {name}: want {2 * length} lower-case hex digits"
        ) from None


def _key(name: str, value: object) -> bytes | None:
    return None if value is None else _secret(name, value, KEY_BYTES)


def _salts(value: object) -> tuple[bytes, bytes]:
    if not isinstance(value, list) or len(value) != 2:
        raise MalformedInputError("order salts: want a list of two")
    into, out = (_secret("salts", salt, SALT_BYTES) for salt in value)
    return into, out


def _named_salts(name: str, value: object) -> dict[str, bytes] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MAX_TENSORS:
        raise MalformedInputError(
            f"order {name}: want an object of at most {MAX_TENSORS}, or null"
        )
    return {key: _secret(name, salt, SALT_BYTES) for key, salt in value.items()}
