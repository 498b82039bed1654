"""The plan's folder as a deployment has it: who signed it, plain or sealed.

signed   plan.json must be the one that the named signer signed; it pins the rest
plain    files are read, compared with the plan's digests, and run
sealed   files open in memory, under a key that a broker released to this process
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bentoml_secure.digest import Digest
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.keys.hardening import forbid_core_dumps
from bentoml_secure.keys.model_signing import (
    MAX_SIGNATURE_BYTES,
    parse_signing_key,
    require_signed_plan,
    signer_digest,
    verify_model,
)
from bentoml_secure.keys.release_messages import ReleaseRequest
from bentoml_secure.keys.sealed_plan import (
    SIGNATURE_FILE,
    is_sealed,
    load_manifest,
    open_sealed_segment,
    require_sealed_segment,
)
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.split.files import read_bytes
from bentoml_secure.split.plan import Plan, load_plan
from bentoml_secure.split.runtime import (
    LoadedSegment,
    load_segment,
    open_segment,
    require_runtime,
)
from bentoml_secure.split.runtimes import DEFAULT, RuntimeChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """The signature that a deployment demands of its model.

    Attributes:
        signer: PEM of the only key accepted.
        signature: The bundle, from outside.
    """

    signer: bytes
    signature: bytes


def read_signed(folder: Path, signer: Path, signature: Path | None) -> Signed:
    """Read the signature of a plan's folder, and whose it must be.

    Args:
        folder: The plan's.
        signer: PEM file of the model owner's public key.
        signature: The bundle's file; a sealed folder's own where left out.

    Raises:
        ConfigurationError: A file that cannot be read, or there is no signature.
    """
    if signature is None:
        try:
            data = read_bytes(folder, SIGNATURE_FILE, max_bytes=MAX_SIGNATURE_BYTES)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{folder}: a signer is named, and the model is not signed: {error}",
                remedy="Name the signature too, or serve a folder that"
                " `bentoml-secure seal-model --signature` made.",
            ) from error
    else:
        data = _read("signature", signature)
    return Signed(signer=_read("signer", signer), signature=data)


def _read(what: str, path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_SIGNATURE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{what}: {error}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A plan's folder.

    Attributes:
        folder: Where it is.
        plan: Its plan; the signed one, where a signer is named.
        sealed: Its segments are sealed.
        signed: Whose signature is demanded.
    """

    folder: Path
    plan: Plan
    sealed: bool
    signed: Signed | None = None

    @classmethod
    def read(cls, folder: Path, signed: Signed | None = None) -> Weights:
        """Read plan.json, and compare it with the signature where one is demanded.

        Raises:
            ConfigurationError: A file is missing or cannot be read; a signer's key that
                is none.
            MalformedInputError: Plan or signature are not of their form.
            CheckFailedError: Another signer, or another plan than was signed.
        """
        if signed is None:
            plan = load_plan(folder)
        else:
            key = parse_signing_key(signed.signer)
            plan = require_signed_plan(folder, signed.signature, key)
        return cls(folder=folder, plan=plan, sealed=is_sealed(folder), signed=signed)

    @property
    def signer(self) -> Digest | None:
        """Whose signature is demanded, as the configuration says it."""
        if self.signed is None:
            return None
        return signer_digest(parse_signing_key(self.signed.signer))

    def require_folder(self) -> None:
        """Refuse a plain folder that is not as it was signed, if a signer is named.

        Of a sealed one plan.json was compared, which pins what its files open to.

        Raises:
            CheckFailedError: A file was changed, is missing or was added.
            MissingDependencyError: The ``signing`` extra is not installed.
        """
        if self.signed is not None and not self.sealed:
            key = parse_signing_key(self.signed.signer)
            verify_model(self.folder, self.signed.signature, key)

    def require_segment(self, index: int, *, choice: RuntimeChoice = DEFAULT) -> None:
        """Refuse a segment that would not load, as far as that shows without its key.

        Args:
            index: Which, from 0.
            choice: What it is to run on.

        Raises:
            SecureError: Wrong runtime, a missing or altered file, or no segment.
        """
        if self.sealed:
            require_runtime(self.plan, choice)
            require_sealed_segment(self.folder, self.plan, index)
        else:
            load_segment(self.folder, self.plan, index, threads=1, choice=choice)

    def load(
        self, index: int, *, threads: int, choice: RuntimeChoice = DEFAULT
    ) -> LoadedSegment:
        """Load a segment of a plain folder.

        Raises:
            SecureError: As ``split.load_segment``.
        """
        return load_segment(
            self.folder, self.plan, index, threads=threads, choice=choice
        )

    def request(self, index: int) -> ReleaseRequest:
        """Return what to ask a broker for a segment of a sealed folder.

        Raises:
            SecureError: sealed.json is missing, or not of this plan.
        """
        key_id = load_manifest(self.folder).key_id(self.plan, index)
        segment = self.plan.segments[index].identity
        return ReleaseRequest(segment=segment, key_id=key_id)

    def open(
        self,
        index: int,
        key: SegmentKey,
        *,
        threads: int,
        choice: RuntimeChoice = DEFAULT,
    ) -> LoadedSegment:
        """Open a segment of a sealed folder in memory and load it.

        Raises:
            SecureError: As ``open_sealed_segment`` and ``split.open_segment``.
        """
        contents = open_sealed_segment(self.folder, self.plan, index, key)
        return open_segment(self.plan, index, contents, threads=threads, choice=choice)

    def harden(self) -> None:
        """Let this process not be dumped, if it will hold what others must not see.

        Raises:
            ConfigurationError: The system does not do it.
        """
        if self.sealed:
            forbid_core_dumps()
