"""Sealing a proof set-up: circuits and proving keys, under a prover key per segment."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import FILE, Digest, equal, parse_json
from bentoml_secure.errors import ConfigurationError, VerificationError
from bentoml_secure.keys.key_file import PlanKeys
from bentoml_secure.keys.sealed_plan import SEALED_FILE, SealedManifest
from bentoml_secure.keys.sealed_proofs import plain_path, sealed_files, sealed_path
from bentoml_secure.keys.sealed_weights import CHUNK_BYTES, seal
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.proofs.folder import KEY, MANIFEST_FILE, SETTINGS, SRS_FOLDER
from bentoml_secure.proofs.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    SegmentSetup,
    verify_manifest,
)
from bentoml_secure.proofs.srs_folder import file_name
from bentoml_secure.signing import parse_envelope
from bentoml_secure.split.files import open_below, read_bytes

_MAX_ENVELOPE_BYTES = 2 * MAX_MANIFEST_BYTES
_COPIED_BYTES = 1 << 20


def seal_setup(
    folder: Path,
    out: Path,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Manifest, PlanKeys]:
    """Write the sealed form of a proof set-up's folder.

    Args:
        folder: Of the set-up, in plain.
        out: New or empty; a manifest is in it only once all is sealed.
        chunk_bytes: Of the sealed files.
        progress: Told what is sealed now.

    Returns:
        The manifest, and a new key for each segment, which provers alone may have.

    Raises:
        ConfigurationError: ``out`` is not empty; a file cannot be read or written.
        MalformedInputError: The folder holds no manifest.
        VerificationError: A file is not the one that the manifest names, or the
            manifest is not signed by the key that it names.
    """
    document = read_bytes(folder, MANIFEST_FILE, max_bytes=_MAX_ENVELOPE_BYTES)
    manifest = _verified(document)
    keys = tuple((part.segment, SegmentKey.generate()) for part in manifest.segments)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConfigurationError(
                f"{out}: is not empty.",
                remedy="Name a new folder; nothing is overwritten.",
            )
        for logrows, digest in manifest.srs.files.items():
            _copy(folder, out, f"{SRS_FOLDER}/{file_name(logrows)}", digest)
        for index, (setup, (_, key)) in enumerate(
            zip(manifest.segments, keys, strict=True)
        ):
            _copy(folder, out, plain_path(index, SETTINGS), setup.settings)
            _copy(folder, out, plain_path(index, KEY), setup.key)
            for name, digest in sealed_files(setup).items():
                path = plain_path(index, name)
                progress(path)
                target = out / sealed_path(index, name)
                _seal_file(folder, setup, path, digest, target, key, chunk_bytes)
        sealed = SealedManifest(
            plan=manifest.plan,
            keys=tuple((segment, key.key_id) for segment, key in keys),
        )
        (out / SEALED_FILE).write_bytes(sealed.to_bytes())
        (out / MANIFEST_FILE).write_bytes(document)
    except OSError as error:
        raise ConfigurationError(f"{out}: cannot be written: {error}.") from error
    return manifest, PlanKeys(plan=manifest.plan, keys=keys, role=Role.PROVER)


def _verified(document: bytes) -> Manifest:
    parsed = parse_json(document, what=MANIFEST_FILE, max_bytes=_MAX_ENVELOPE_BYTES)
    return verify_manifest(
        parse_envelope(parsed, what=MANIFEST_FILE, max_bytes=_MAX_ENVELOPE_BYTES)
    )


def _copy(folder: Path, out: Path, path: str, digest: Digest) -> None:
    hasher = hashlib.sha256()
    with _read_and_write(folder, path, out / path) as (source, target):
        while piece := source.read(_COPIED_BYTES):
            hasher.update(piece)
            target.write(piece)
    _require_digest(path, Digest(f"{FILE}:{hasher.hexdigest()}"), digest)


def _seal_file(
    folder: Path,
    setup: SegmentSetup,
    path: str,
    digest: Digest,
    target: Path,
    key: SegmentKey,
    chunk_bytes: int,
) -> None:
    with _read_and_write(folder, path, target) as (source, sealed):
        got = seal(
            source,
            sealed,
            key,
            segment=setup.segment,
            path=path,
            plain_bytes=os.fstat(source.fileno()).st_size,
            chunk_bytes=chunk_bytes,
        )
    _require_digest(path, got, digest)


@contextmanager
def _read_and_write(
    folder: Path, path: str, target: Path
) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    with os.fdopen(open_below(folder, path), "rb") as source:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as written:
            yield source, written


def _require_digest(path: str, got: Digest, want: Digest) -> None:
    if not equal(got, want):
        raise VerificationError(
            f"{path}: got {got}, want {want}.",
            remedy="The file is not the one that the manifest was signed for.",
        )
