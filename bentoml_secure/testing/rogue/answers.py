"""Answers that keep to HTTP: signed lies, wrong statements, frames that lie.

A table of name to what makes the body. Reasons for refusal come at three depths: the
plan (shape, dtype, values), the statement (key, fields), the frame (lengths, header).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bentoml_secure.digest import Digest
from bentoml_secure.signing import SigningKey
from bentoml_secure.statements import Statement
from bentoml_secure.tensors import MAX_HEADER_BYTES, Array, encode, header_length
from bentoml_secure.testing.faults import Transform, constant, noisy, scaled
from bentoml_secure.testing.rogue.replica import Turn, frame

Body = Callable[[Turn], bytes]

_ZEROS = "0" * 64
_OTHER = Digest(f"sha256-jcs-v1:{_ZEROS}")
_COMMITMENT = Digest(f"hmac-sha256-tensors-v1:{_ZEROS}")


def _signed(transform: Transform) -> Body:
    """Lie and sign the lie."""

    def body(turn: Turn) -> bytes:
        return turn.body(transform(dict(turn.outputs)))

    return body


def _own_noise(turn: Turn) -> bytes:
    # Two replicas with this behaviour do not agree with one another.
    seed = zlib.crc32(turn.replica.name.encode())
    return turn.body(noisy(seed, 1.0)(dict(turn.outputs)))


def _each(change: Callable[[Array], Array]) -> Transform:
    return lambda outputs: {name: change(array) for name, array in outputs.items()}


def _not_a_number(array: Array) -> Array:
    changed = array.copy()
    changed.reshape(-1)[-1] = np.nan
    return changed


def _renamed(outputs: dict[str, Array]) -> dict[str, Array]:
    return {f"{name}_": array for name, array in outputs.items()}


def _one_more(outputs: dict[str, Array]) -> dict[str, Array]:
    return {**outputs, "surplus": np.zeros(4, np.float32)}


SIGNED: Mapping[str, Body] = {
    "scaled": _signed(scaled(1.01)),
    "constant": _signed(constant(0.5)),
    "noisy": _own_noise,
    "wrong-shape": _signed(_each(lambda a: np.concatenate([a, a[:1]]))),
    "wrong-rank": _signed(_each(lambda a: a[None])),
    "wrong-dtype": _signed(_each(lambda a: a.astype(np.float64))),
    "nan": _signed(_each(_not_a_number)),
    "infinity": _signed(_each(lambda a: np.full_like(a, np.inf))),
    "renamed-tensor": _signed(_renamed),
    "one-more-tensor": _signed(_one_more),
}


def _stating(**changes: Any) -> Body:
    """State something else under the right key."""

    def restate(statement: Statement) -> Statement:
        return replace(statement, **changes)

    return lambda turn: turn.body(statement=turn.signed(restate=restate))


def _other_inputs(turn: Turn) -> bytes:
    inputs = dict.fromkeys(turn.inputs, _COMMITMENT)
    return _stating(inputs=inputs)(turn)


def _other_outputs(turn: Turn) -> bytes:
    outputs = dict.fromkeys(turn.outputs, _COMMITMENT)
    return _stating(outputs=outputs)(turn)


def _other_key(turn: Turn) -> bytes:
    return turn.body(statement=turn.signed(key=SigningKey.generate()))


def _borrowed_key_id(turn: Turn) -> bytes:
    own = turn.replica.core.identity.keys.signing.public.key_id
    signed = turn.signed(key=SigningKey.generate(), key_id=own)
    return turn.body(statement=signed)


def _signed_by_neighbour(turn: Turn) -> bytes:
    neighbour = turn.replica.neighbour or turn.replica
    return turn.body(statement=turn.signed(key=neighbour.core.identity.keys.signing))


def _swapped_after_signing(turn: Turn) -> bytes:
    return turn.body(scaled(1.01)(dict(turn.outputs)), turn.signed())


def _replayed(turn: Turn) -> bytes:
    answered = turn.replica.answered
    return turn.body() if answered is None else answered.body


STATED: Mapping[str, Body] = {
    "other-request": _stating(request_id="0" * 32),
    "other-nonce": _stating(nonce=_ZEROS),
    "other-plan": _stating(plan_digest=_OTHER),
    "other-infer": _stating(infer_index=7),
    "other-exchange": _stating(exchange_id="0" * 32),
    "other-segment": _stating(segment=_OTHER),
    "other-key-document": _stating(key_document=_OTHER),
    "other-inputs": _other_inputs,
    "other-outputs": _other_outputs,
    "swapped-after-signing": _swapped_after_signing,
    "replayed": _replayed,
    "other-key": _other_key,
    "borrowed-key-id": _borrowed_key_id,
    "signed-by-neighbour": _signed_by_neighbour,
    "empty-statement": lambda turn: turn.body(statement=b"{}"),
    "no-json-statement": lambda turn: turn.body(statement=b"\x80\x04N."),
    "deep-statement": lambda turn: turn.body(statement=b"[" * 100_000),
}


def _length(change: Callable[[int], int]) -> Body:
    """Lie about the statement's length."""

    def body(turn: Turn) -> bytes:
        tensors, statement = encode(turn.outputs), turn.signed()
        return frame(tensors, statement, length=change(len(statement)))

    return body


def _header(change: Callable[[dict[str, Any]], bytes | dict[str, Any]]) -> Body:
    """Lie in the tensors' header; ``change`` gets its JSON and returns another."""

    def body(turn: Turn) -> bytes:
        tensors = encode(turn.outputs)
        end = header_length(tensors)
        made = change(json.loads(tensors[8:end]))
        text = made if isinstance(made, bytes) else _compact(made)
        return frame(_with_header(text, tensors[end:]), turn.signed())

    return body


def _compact(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _with_header(text: bytes, data: bytes) -> bytes:
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _changed(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(header: dict[str, Any]) -> dict[str, Any]:
        return {name: {**entry, **fields} for name, entry in header.items()}

    return change


def _twice(header: dict[str, Any]) -> bytes:
    one = _compact(header)[1:-1]
    return b"{" + one + b"," + one + b"}"


def _overlapping(header: dict[str, Any]) -> dict[str, Any]:
    name, entry = next(iter(header.items()))
    return {name: entry, f"{name}_": entry}


def _header_length(length: int) -> Body:
    def body(turn: Turn) -> bytes:
        tensors = encode(turn.outputs)
        return frame(length.to_bytes(8, "little") + tensors[8:], turn.signed())

    return body


def _bool_of_two(turn: Turn) -> bytes:
    booleans = {
        name: np.full(array.shape, 2, np.uint8).view(np.bool_)
        for name, array in turn.outputs.items()
    }
    return turn.body(booleans)


def _extra_bytes(turn: Turn) -> bytes:
    return turn.body() + bytes(8)


FRAMED: Mapping[str, Body] = {
    "statement-length-huge": _length(lambda _: 0xFFFFFFFF),
    "statement-length-long": _length(lambda real: real + 64),
    "statement-length-short": _length(lambda real: real - 8),
    "header-length-huge": _header_length(1 << 62),
    "header-length-over-cap": _header_length(MAX_HEADER_BYTES + 8),
    "header-length-zero": _header_length(0),
    "tensor-of-a-gigabyte": _header(
        _changed(shape=[1 << 28], data_offsets=[0, 1 << 30])
    ),
    "tensor-of-an-exabyte": _header(_changed(shape=[1 << 58, 0], data_offsets=[0, 0])),
    "negative-dimension": _header(_changed(shape=[-1, -1])),
    "duplicate-name": _header(_twice),
    "overlapping-offsets": _header(_overlapping),
    "metadata-in-header": _header(lambda h: {"__metadata__": {"a": "b"}, **h}),
    "header-not-canonical": _header(lambda h: json.dumps(h).encode()),
    "header-no-json": _header(lambda _: b"\x80\x04N."),
    "bool-of-two": _bool_of_two,
    "extra-bytes": _extra_bytes,
}

BODIES: Mapping[str, Body] = {**SIGNED, **STATED, **FRAMED}
