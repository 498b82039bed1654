"""A proof set-up's folder whose circuits and proving keys are sealed.

    manifest.json, srs/, <index>/settings.json, <index>/vk    as in the plain folder
    sealed.json                  which prover key opens which segment
    <index>/circuit.sealed       see ``sealed_weights``; the path within is that of the
    <index>/pk.sealed            plain folder

Circuit and proving key hold a segment's weights. They open under its prover key, which
a broker releases to provers alone, into files in memory that backends read by their
descriptor: plaintext reaches no disk. What opens is compared with the manifest, which
the model's owner signed; nothing in sealed.json is trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bentoml_secure.attestation.checks import require
from bentoml_secure.digest import Digest, equal
from bentoml_secure.errors import ConfigurationError, VerificationError
from bentoml_secure.keys.sealed_plan import load_manifest
from bentoml_secure.keys.sealed_weights import open_sealed_into, require_header
from bentoml_secure.keys.segment_key import KeyId, SegmentKey
from bentoml_secure.proofs.folder import CIRCUIT, PROVING_KEY
from bentoml_secure.proofs.manifest import Manifest, SegmentSetup
from bentoml_secure.split.files import open_below

_UNCHANGEABLE = (
    fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
)


def plain_path(index: int, name: str) -> str:
    """Return where a segment's file lies in a plain folder."""
    return f"{index}/{name}"


def sealed_path(index: int, name: str) -> str:
    """Return where a segment's file lies sealed."""
    return f"{plain_path(index, name)}.sealed"


def sealed_files(setup: SegmentSetup) -> dict[str, Digest]:
    """Return which of a segment's files are sealed, with their digests in plain."""
    return {CIRCUIT: setup.circuit, PROVING_KEY: setup.proving_key}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSetup:
    """One segment's secrets in memory, as descriptors of files that nobody can change.

    Attributes:
        circuit: Of the compiled circuit.
        proving_key: Of the proving key.
    """

    circuit: int
    proving_key: int

    def close(self) -> None:
        """Let go of both; a child that has them keeps them until it ends."""
        os.close(self.circuit)
        os.close(self.proving_key)


def require_sealed_setup(folder: Path, manifest: Manifest, index: int) -> KeyId:
    """Return which key opens a segment, if its files look as if that key would.

    Args:
        folder: The sealed set-up's.
        manifest: Of the set-up, verified.
        index: Which segment, from 0.

    Raises:
        ConfigurationError: No such segment; a file is missing or cannot be read.
        MalformedInputError: sealed.json or a file is not of its form.
        VerificationError: Of another plan, segment, path or key; a file cut or
            extended; a link out of the folder.
    """
    setup, key_id = _setup(manifest, index), _key_id(folder, manifest, index)
    for name in sealed_files(setup):
        with _sealed_file(folder, index, name) as (source, sealed_bytes):
            header = require_header(
                source,
                sealed_bytes,
                segment=setup.segment,
                path=plain_path(index, name),
            )
        require(
            "key_id",
            header.key_id == key_id,
            got=f"{header.path} under {header.key_id}",
            want=key_id,
        )
    return key_id


def open_sealed_setup(
    folder: Path, manifest: Manifest, index: int, key: SegmentKey
) -> OpenedSetup:
    """Open one segment's circuit and proving key into memory.

    Args:
        folder: The sealed set-up's.
        manifest: Of the set-up, verified.
        index: Which segment, from 0.
        key: The segment's prover key.

    Returns:
        The caller's to close. They are exactly the files that the manifest names.

    Raises:
        ConfigurationError: No such segment; a file is missing or cannot be read; no
            memory for it.
        MalformedInputError: A file is no sealed file.
        VerificationError: Another segment, file or key; a file cut, extended or
            edited; not the one of the manifest; a link out of the folder.
    """
    files = sealed_files(_setup(manifest, index))
    with contextlib.ExitStack() as closing:
        opened = dict[str, int]()
        for name, digest in files.items():
            opened[name] = _memory_file(name)
            closing.callback(os.close, opened[name])
            _open_file(folder, manifest, index, name, digest, key, opened[name])
        # All of it is as it should be: now it is the caller's.
        closing.pop_all()
    return OpenedSetup(circuit=opened[CIRCUIT], proving_key=opened[PROVING_KEY])


def _memory_file(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _open_file(
    folder: Path,
    manifest: Manifest,
    index: int,
    name: str,
    digest: Digest,
    key: SegmentKey,
    opened: int,
) -> None:
    path = plain_path(index, name)
    with (
        _sealed_file(folder, index, name) as (source, sealed_bytes),
        os.fdopen(opened, "wb", closefd=False) as target,
    ):
        got = open_sealed_into(
            target,
            source,
            sealed_bytes,
            key,
            segment=manifest.segments[index].segment,
            path=path,
        )
    if not equal(got, digest):
        raise VerificationError(
            f"{path}: got {got}, want {digest}.",
            remedy="The file is not the one that the manifest was signed for.",
        )
    fcntl.fcntl(opened, fcntl.F_ADD_SEALS, _UNCHANGEABLE)


@contextmanager
def _sealed_file(folder: Path, index: int, name: str) -> Iterator[tuple[BinaryIO, int]]:
    where = sealed_path(index, name)
    descriptor = open_below(folder, where)
    try:
        with os.fdopen(descriptor, "rb") as source:
            yield source, os.fstat(descriptor).st_size
    except OSError as error:
        raise ConfigurationError(
            f"{where}: cannot be opened from {folder}: {error}."
        ) from error


def _key_id(folder: Path, manifest: Manifest, index: int) -> KeyId:
    sealed = load_manifest(folder)
    require("plan", sealed.plan == manifest.plan, got=sealed.plan, want=manifest.plan)
    got = tuple(segment for segment, _ in sealed.keys)
    want = tuple(setup.segment for setup in manifest.segments)
    require("segments", got == want, got=list(got), want=list(want))
    return sealed.keys[index][1]


def _setup(manifest: Manifest, index: int) -> SegmentSetup:
    if not 0 <= index < len(manifest.segments):
        raise ConfigurationError(
            f"segment: got {index}, the set-up has 0 to {len(manifest.segments) - 1}"
        )
    return manifest.segments[index]
