"""Sealing a plan: every file of every segment, under a new key per segment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bentoml_secure.digest import equal
from bentoml_secure.errors import ConfigurationError, VerificationError
from bentoml_secure.keys.key_file import PlanKeys
from bentoml_secure.keys.model_signing import ModelSignature
from bentoml_secure.keys.sealed_plan import (
    SEALED_FILE,
    SIGNATURE_FILE,
    SealedManifest,
    sealed_path,
)
from bentoml_secure.keys.sealed_weights import CHUNK_BYTES, seal
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.split.files import open_below, read_bytes
from bentoml_secure.split.plan import (
    MAX_PLAN_BYTES,
    PLAN_FILE,
    Plan,
    Segment,
    SegmentFile,
    parse_plan,
)


def seal_plan(
    folder: Path,
    out: Path,
    *,
    signature: ModelSignature | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Plan, PlanKeys]:
    """Write the sealed form of a plan's folder.

    Args:
        folder: The plan and its segments in plain.
        out: New or empty; a plan is in it only once all is sealed.
        signature: The owner's, verified; then the plan must be the one it signs, and
            it goes along.
        chunk_bytes: Of the sealed files.
        progress: Told what is sealed now.

    Returns:
        The plan, and a new key for each of its segments.

    Raises:
        ConfigurationError: ``out`` is not empty; a file cannot be read or written.
        MalformedInputError: The folder holds no plan.
        VerificationError: A file is not the one that the plan names, or the plan is
            not the one that was signed.
    """
    document = read_bytes(folder, PLAN_FILE, max_bytes=MAX_PLAN_BYTES)
    if signature is not None:
        signature.require_signed(PLAN_FILE, document)
    plan = parse_plan(document)
    keys = tuple((part.identity, SegmentKey.generate()) for part in plan.segments)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConfigurationError(
                f"{out}: is not empty.",
                remedy="Name a new folder; nothing is overwritten.",
            )
        for index, (part, (_, key)) in enumerate(zip(plan.segments, keys, strict=True)):
            for entry in part.files:
                progress(f"segment {index}: {entry.path}")
                target = out / sealed_path(index, entry.path)
                _seal_file(folder, part, entry, target, key, chunk_bytes)
        manifest = SealedManifest(
            plan=plan.digest,
            keys=tuple((segment, key.key_id) for segment, key in keys),
        )
        if signature is not None:
            (out / SIGNATURE_FILE).write_bytes(signature.data)
        (out / SEALED_FILE).write_bytes(manifest.to_bytes())
        (out / PLAN_FILE).write_bytes(document)
    except OSError as error:
        raise ConfigurationError(f"{out}: cannot be written: {error}.") from error
    return plan, PlanKeys(plan=plan.digest, keys=keys)


def _seal_file(
    folder: Path,
    segment: Segment,
    entry: SegmentFile,
    target: Path,
    key: SegmentKey,
    chunk_bytes: int,
) -> None:
    descriptor = open_below(folder, entry.path)
    with os.fdopen(descriptor, "rb") as source:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as sealed:
            got = seal(
                source,
                sealed,
                key,
                segment=segment.identity,
                path=entry.path,
                plain_bytes=os.fstat(descriptor).st_size,
                chunk_bytes=chunk_bytes,
            )
    if not equal(got, entry.digest):
        raise VerificationError(
            f"{entry.path}: got {got}, want {entry.digest}.",
            remedy="The file is not the one that the plan was made with.",
        )
