"""The bytes of one exchange between entry and runner.

    request    u32 big-endian length, metadata (JSON), tensors-v1
    response   u32 big-endian length of the statement, tensors-v1, statement (JSON)

Where replicas commit before they reveal, the answer to that request is a commitment
alone, and a second exchange brings the response:

    commitment   DSSE envelope (JSON)
    reveal       {"version", "exchange_id": of the first exchange}
    response     as above, with {"nonce", "statement"} in the statement's place

All have a content-length. The receiver checks each length before it allocates, and
each tensor's name, dtype and shape against the plan as soon as the header is there;
it commits to the tensors while their bytes arrive.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bentoml_secure.consensus.commit_reveal import OPENING_BYTES, Task
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
from bentoml_secure.statements import EXCHANGE_ID_BYTES
from bentoml_secure.tensors import (
    Array,
    Layout,
    TensorCommitments,
    as_bytes,
    canonical,
    layout_of,
)

REQUEST_TYPE = "application/vnd.bentoml-secure.exchange.v1"
RESPONSE_TYPE = "application/vnd.bentoml-secure.answer.v1"
COMMITTED_TYPE = "application/vnd.bentoml-secure.commitment.v1+json"
REVEAL_TYPE = "application/vnd.bentoml-secure.reveal.v1+json"
MAX_METADATA_BYTES = 128 * 1024
MAX_COMMITTED_BYTES = 8192
"""Of the JSON around a commitment: at most 4096 bytes, in base64, and a signature."""

MAX_REVEAL_BYTES = 256
MAX_STATEMENT_BYTES = 768 * 1024
CHUNK_BYTES = 256 * 1024
LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What a runner is told besides the tensors.

    Attributes:
        request_id: 16 bytes, hex.
        nonce: The caller's 32 bytes, hex.
        infer_index: Which ``infer`` of the request, from 0.
        exchange_id: 16 bytes, hex; new for every attempt.
        plan_digest: Of the plan that the entry serves.
        segment: Identity of the segment that is to run.
        input_salts: 32 secret bytes per input tensor.
        output_salts: 32 secret bytes per output tensor.
        key_document: Of the runner, as the entry knows it: its keys are to sign. None
            where a session says so, or for the one that was shown last.
        commit: Whether to answer with a commitment, and to hold the answer until it
            is asked to be revealed.
        scheme: How tensors are committed to.
    """

    request_id: str
    nonce: str
    infer_index: int
    exchange_id: str
    plan_digest: Digest
    segment: Digest
    input_salts: Mapping[str, bytes]
    output_salts: Mapping[str, bytes]
    key_document: Digest | None = None
    commit: bool = False
    scheme: Scheme = Scheme.HMAC_SHA256

    @property
    def task(self) -> Task:
        """What a commitment to its answer is about."""
        return Task(**{name: getattr(self, name) for name in Task.__slots__})

    def encode(self) -> bytes:
        """Return the length-prefixed metadata."""
        metadata = canonical_json(
            {
                "version": 1,
                "request_id": self.request_id,
                "nonce": self.nonce,
                "infer_index": self.infer_index,
                "exchange_id": self.exchange_id,
                "plan_digest": self.plan_digest,
                "segment": self.segment,
                "input_salts": {n: s.hex() for n, s in self.input_salts.items()},
                "output_salts": {n: s.hex() for n, s in self.output_salts.items()},
                "key_document": self.key_document,
                "commit": self.commit,
                "scheme": self.scheme.value,
            }
        )
        return LENGTH.pack(len(metadata)) + metadata

    @classmethod
    def decode(cls, data: bytes) -> Exchange:
        """Parse metadata; anything unexpected is refused.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        document = parse_json(data, what="exchange", max_bytes=MAX_METADATA_BYTES)
        wanted = {"version", *cls.__slots__}
        if not isinstance(document, dict) or document.keys() != wanted:
            raise MalformedInputError(f"exchange: want exactly {sorted(wanted)}")
        if document["version"] != 1 or isinstance(document["version"], bool):
            raise MalformedInputError("exchange version: want 1")
        index = document["infer_index"]
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise MalformedInputError("exchange infer_index: want an integer from 0")
        for name, length in (
            ("request_id", REQUEST_ID_BYTES),
            ("nonce", NONCE_BYTES),
            ("exchange_id", EXCHANGE_ID_BYTES),
        ):
            parse_hex(document[name], what=f"exchange {name}", length=length)
        signer = document["key_document"]
        if signer is not None:
            signer = parse_digest(signer, what="exchange key_document", algorithm=JSON)
        if not isinstance(document["commit"], bool):
            raise MalformedInputError("exchange commit: want true or false")
        return cls(
            request_id=document["request_id"],
            nonce=document["nonce"],
            infer_index=index,
            exchange_id=document["exchange_id"],
            plan_digest=parse_digest(
                document["plan_digest"], what="exchange plan_digest", algorithm=JSON
            ),
            segment=parse_digest(
                document["segment"], what="exchange segment", algorithm=JSON
            ),
            input_salts=_parse_salts(document["input_salts"], "input_salts"),
            output_salts=_parse_salts(document["output_salts"], "output_salts"),
            key_document=signer,
            commit=document["commit"],
            scheme=parse_choice(document["scheme"], Scheme, what="exchange scheme"),
        )


def _parse_salts(document: object, name: str) -> dict[str, bytes]:
    if not isinstance(document, dict):
        raise MalformedInputError(f"exchange {name}: want an object")
    return {
        tensor: parse_hex(
            salt, what=f"exchange {name} {tensor!r:.60}", length=SALT_BYTES
        )
        for tensor, salt in document.items()
    }


def encode_reveal(exchange_id: str) -> bytes:
    """Return what asks for the answer of an exchange that was committed to."""
    return canonical_json({"version": 1, "exchange_id": exchange_id})


def decode_reveal(data: bytes) -> str:
    """Return the exchange id that a reveal asks for, hex.

    Raises:
        MalformedInputError: A field is missing, unknown or of another form.
    """
    document = parse_json(data, what="reveal", max_bytes=MAX_REVEAL_BYTES)
    got = require_fields(document, ("version", "exchange_id"), what="reveal")
    if got["version"] != 1 or isinstance(got["version"], bool):
        raise MalformedInputError("reveal version: want 1")
    asked = got["exchange_id"]
    return parse_hex(asked, what="reveal exchange_id", length=EXCHANGE_ID_BYTES).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What stands in a statement's place where an answer was committed to before.

    Attributes:
        nonce: The 16 bytes that open the commitment.
        statement: The envelope's JSON, as anywhere else.
    """

    nonce: bytes
    statement: Any

    def encode(self) -> bytes:
        """Return its JSON."""
        document = {"nonce": self.nonce.hex(), "statement": self.statement}
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, document: object) -> Opening:
        """Parse it; the statement is left to who verifies it.

        Raises:
            MalformedInputError: A field is missing, unknown or of another form.
        """
        got = require_fields(document, cls.__slots__, what="opening")
        nonce = parse_hex(got["nonce"], what="opening nonce", length=OPENING_BYTES)
        return cls(nonce=nonce, statement=got["statement"])


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Tensors laid out once, to be sent any number of times without a copy."""

    layout: Layout
    arrays: tuple[Array, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Array]) -> Outgoing:
        """Lay out named arrays in their canonical form."""
        arrays = {name: canonical(array) for name, array in tensors.items()}
        layout = layout_of(arrays)
        return cls(layout, tuple(arrays[entry.name] for entry in layout.entries))

    @property
    def total_bytes(self) -> int:
        """Length of the tensors-v1 byte string."""
        return self.layout.total_bytes

    def data(self) -> Iterator[memoryview]:
        """Yield the data bytes in pieces of at most ``CHUNK_BYTES``, as views."""
        for array in self.arrays:
            view = as_bytes(array)
            for begin in range(0, len(view), CHUNK_BYTES):
                yield view[begin : begin + CHUNK_BYTES]

    def data_lengths(self) -> Iterator[int]:
        """Yield the length of each piece of ``data``."""
        for array in self.arrays:
            for begin in range(0, array.nbytes, CHUNK_BYTES):
                yield min(CHUNK_BYTES, array.nbytes - begin)

    def committed_data(self, commitments: TensorCommitments) -> Iterator[memoryview]:
        """Yield the data bytes, committing to each piece after it was handed on."""
        for piece in self.data():
            yield piece
            commitments.update(piece)
