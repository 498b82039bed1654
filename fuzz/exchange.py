"""Requests and answers of the hop, in pieces whose sizes the first byte chooses."""

from __future__ import annotations

import numpy as np

from bentoml_secure.digest import canonical_json, digest_json
from bentoml_secure.errors import SecureError
from bentoml_secure.serving.exchange import LENGTH
from bentoml_secure.serving.readers import RequestReader, ResponseReader
from bentoml_secure.tensors import TensorSpec, encode

SPECS = (TensorSpec(name="x", dtype="float32", shape=("n", 2)),)
SALTS = {"x": bytes(32)}


def seeds() -> list[bytes]:
    """Return a request and an answer."""
    ids = {"request_id": "11" * 16, "nonce": "22" * 32, "exchange_id": "33" * 16}
    digests = {"plan_digest": digest_json(1), "segment": digest_json(2)}
    salts = {name: {"x": "44" * 32} for name in ("input_salts", "output_salts")}
    digests["key_document"] = digest_json(3)
    counts = {"version": 1, "infer_index": 0, "commit": False}
    said = canonical_json({**counts, **ids, **digests, **salts})
    tensors = encode({"x": np.zeros((3, 2), np.float32)})
    request = LENGTH.pack(len(said)) + said + tensors
    return [b"\7" + request, b"\7" + LENGTH.pack(2) + tensors + b"{}"]


def one(data: bytes) -> None:
    """Read bytes as either."""
    size, body = max(1, data[0]) if data else 1, data[1:]
    request = RequestReader(len(body), lambda exchange: SPECS)
    for reader in (request, ResponseReader(len(body), SPECS, SALTS)):
        try:
            for begin in range(0, len(body), size):
                reader.feed(body[begin : begin + size])
            reader.result()
        except SecureError:
            continue
