"""Sealed files, their folder's manifest, and what passes between asker and broker."""

from __future__ import annotations

import io
from contextlib import suppress

from bentoml_secure.digest import Digest, digest_json
from bentoml_secure.errors import SecureError
from bentoml_secure.keys.key_file import PlanKeys, keys_to_bytes, parse_keys
from bentoml_secure.keys.release_messages import ReleasedKey, ReleaseRequest
from bentoml_secure.keys.sealed_plan import SealedManifest, parse_manifest
from bentoml_secure.keys.sealed_weights import open_sealed, seal
from bentoml_secure.keys.segment_key import SegmentKey
from fuzz._same import require_same

_KEY = SegmentKey(bytes(range(32)))
_SEGMENT = digest_json("segment")
_PATH = "segment.onnx"
_REQUEST = ReleaseRequest(segment=_SEGMENT, key_id=_KEY.key_id)


def seeds() -> list[bytes]:
    """Return one of each."""
    plain, sealed = bytes(5000), io.BytesIO()
    seal(
        io.BytesIO(plain),
        sealed,
        _KEY,
        segment=_SEGMENT,
        path=_PATH,
        plain_bytes=len(plain),
        chunk_bytes=4096,
    )
    plan: Digest = digest_json("plan")
    return [
        sealed.getvalue(),
        SealedManifest(plan=plan, keys=((_SEGMENT, _KEY.key_id),)).to_bytes(),
        keys_to_bytes(PlanKeys(plan=plan, keys=((_SEGMENT, _KEY),))),
        _REQUEST.to_bytes(),
        ReleasedKey(segment=_SEGMENT, key=_KEY, audit=plan).to_bytes(),
    ]


def one(data: bytes) -> None:
    """Read bytes as each of them."""
    with suppress(SecureError):
        opened = open_sealed(
            io.BytesIO(data), len(data), _KEY, segment=_SEGMENT, path=_PATH
        )
        require_same(opened, bytes(5000))
    with suppress(SecureError):
        require_same(parse_manifest(data).to_bytes(), data)
    with suppress(SecureError):
        keys = parse_keys(data)
        require_same(parse_keys(keys_to_bytes(keys)), keys)
    with suppress(SecureError):
        request = ReleaseRequest.from_bytes(data)
        require_same(ReleaseRequest.from_bytes(request.to_bytes()), request)
    with suppress(SecureError):
        released = ReleasedKey.from_bytes(data, request=_REQUEST)
        again = ReleasedKey.from_bytes(released.to_bytes(), request=_REQUEST)
        require_same(again, released)
