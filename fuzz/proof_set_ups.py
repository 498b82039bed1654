"""What comes with a proof set-up: manifests, bundled keys, structured strings."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

from bentoml_secure.digest import (
    canonical_json,
    digest_file_bytes,
    digest_json,
    parse_json,
)
from bentoml_secure.errors import SecureError
from bentoml_secure.proofs.boundary import FixedTensor, SaltForm
from bentoml_secure.proofs.folder import VerificationKeys, parse_verification_keys
from bentoml_secure.proofs.manifest import (
    Accuracy,
    Manifest,
    SegmentSetup,
    SrsRecord,
    sign_manifest,
)
from bentoml_secure.proofs.proof import Parameters, VerificationKey
from bentoml_secure.proofs.srs import LOCAL, verifier_part
from bentoml_secure.proofs.unsafe_srs import write_unsafe_srs
from bentoml_secure.signing import SigningKey
from fuzz._same import require_same

_OWNER = SigningKey.generate()
_FILE = digest_file_bytes(b"")
_LOGROWS = 2
_MAX_BYTES = 1 << 20


def _string() -> bytes:
    stream = io.BytesIO()
    write_unsafe_srs(stream, _LOGROWS, 0xC0FFEE)
    return stream.getvalue()


def _manifest() -> Manifest:
    string = _string()
    tensors = (FixedTensor(name="x", shape=(1, 4)),)
    segment = SegmentSetup(
        segment=digest_json("segment"),
        parameters=Parameters(
            scale=7,
            decomposition_base=256,
            decomposition_legs=3,
            inner_columns=2,
            logrows=_LOGROWS,
            lookup_bound=0,
        ),
        inputs=tensors,
        outputs=tensors,
        model=_FILE,
        settings=_FILE,
        key=_FILE,
        circuit=_FILE,
        proving_key=_FILE,
        proving_key_bytes=1,
        rows=1,
        memory_bytes=1,
    )
    return Manifest(
        backend="ezkl",
        backend_version="23.0.5",
        plan=digest_json("plan"),
        scale=7,
        salt=SaltForm(elements=10, bits=13),
        srs=SrsRecord(
            source=LOCAL,
            unsafe=True,
            verifier=verifier_part(string),
            files={_LOGROWS: digest_file_bytes(string)},
        ),
        accuracy=Accuracy(
            bound=0.5,
            largest=0.25,
            samples=3,
            samples_digest=None,
            by_output={"x": 0.25},
        ),
        segments=(segment,),
        signer=_OWNER.public.raw.hex(),
    )


def seeds() -> list[bytes]:
    """Return one of each."""
    manifest = _manifest()
    keys = VerificationKeys(
        manifest=manifest,
        envelope=sign_manifest(manifest, _OWNER),
        keys=(VerificationKey(settings=b"", key=b""),),
    )
    documents: list[Any] = [manifest.to_json(), keys.to_json()]
    return [*map(canonical_json, documents), _string()]


def one(data: bytes) -> None:
    """Read bytes as each of them; what is read says what stood there."""
    with suppress(SecureError):
        require_same(len(verifier_part(data)), 320)
    with suppress(SecureError):
        document = parse_json(data, what="set-up", max_bytes=_MAX_BYTES)
        with suppress(SecureError):
            read = Manifest.from_json(document).to_json()
            require_same(canonical_json(read), canonical_json(document))
        require_same(parse_verification_keys(document).to_json(), document)
