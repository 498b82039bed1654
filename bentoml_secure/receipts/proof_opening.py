"""Opening proofs: do they speak of the very tensors that the caller sent and got.

A proof shows hashes. Who has the request's root salt has all salts and the keys of what
the two provers at the ends sealed; so it recomputes the hashes, and needs nobody's word
that the proven run is the served one:

1. every boundary's salt that is hashed is the one that follows from the root salt
2. the tensors that the first prover sealed are those of the receipt's commitments, and
   their activations hash to what went into the chain
3. the activations that the last prover sealed hash to what came out of it
4. the answer beside them is that of the receipt's commitments; no element of it is
   further from the proven one than the manifest allows, and none further than was said
5. where the caller was given the proven answer itself, it is that of its commitments

What is missing because a proof is not there yet is not opened, and said so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bentoml_secure.digest import Digest, Scheme, derive_salt
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.proofs.boundary import (
    activations_of,
    as_served,
    deviations,
    floats_of,
)
from bentoml_secure.proofs.field import is_commitment
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.proofs.orders import INPUT, SERVED
from bentoml_secure.proofs.proof import BoundaryValues, Limits, ProofBackend
from bentoml_secure.proofs.sealing import PROVEN, open_opening
from bentoml_secure.receipts.proofs import ProofRecord
from bentoml_secure.tensors import Array, commit

if TYPE_CHECKING:
    from bentoml_secure.receipts.case import Report

TENSOR_PURPOSE = "tensor"
SERVED_PURPOSE = "served"
"""Of the salts of the proven answer, where that one was served."""
SALT_PURPOSE = "proof"
INPUT_KEY = "proven-input"
OUTPUT_KEY = "proven-output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What follows from a request's root salt for the proofs of one ``infer``.

    Attributes:
        root: The root salt, 32 bytes.
        request_id: 16 bytes.
        infer: Index of the ``infer``.
        scheme: Of its commitments.
    """

    root: bytes = field(repr=False)
    request_id: bytes
    infer: int
    scheme: Scheme = Scheme.HMAC_SHA256

    def derive(self, purpose: str, name: str) -> bytes:
        """Return 32 bytes."""
        return derive_salt(
            self.root,
            request_id=self.request_id,
            infer_index=self.infer,
            purpose=purpose,
            name=name,
        )

    def boundary(self, index: int) -> bytes:
        """Return the salt of a boundary: 0 is the model's input."""
        return self.derive(SALT_PURPOSE, str(index))

    def opening_key(self, *, last: bool) -> bytes:
        """Return the key of what a prover at an end of the chain sealed."""
        return self.derive(OUTPUT_KEY if last else INPUT_KEY, "")

    def commit(
        self, tensors: Mapping[str, Array], purpose: str = TENSOR_PURPOSE
    ) -> dict[str, Digest]:
        """Return the commitments that a receipt has to these tensors."""
        salts = {name: self.derive(purpose, name) for name in tensors}
        return commit(tensors, salts, self.scheme)


@dataclass(frozen=True, slots=True)
class Expected:
    """A hash that a proof claims, and what it is to be the hash of."""

    where: str
    claimed: str
    values: BoundaryValues


def judge_proof_openings(
    records: Mapping[tuple[int, int], ProofRecord],
    manifest: Manifest,
    root_salt: bytes,
    scheme: Scheme,
    backend: ProofBackend,
    limits: Limits,
    report: Report,
) -> None:
    """Open what was sealed beside proofs, and compare; see the module's steps.

    Args:
        records: Proofs by infer and segment, with the commitments of a receipt.
        manifest: Trusted.
        root_salt: Of the request, 32 bytes.
        scheme: Of the request's commitments.
        backend: Computes hashes as circuits do.
        limits: Of the process that does it.
        report: Takes every finding.

    Raises:
        UnavailableError: The process was killed, by its limits or otherwise.
    """
    expected: list[Expected] = []
    for (infer, segment), record in sorted(records.items()):
        where = f"proof opening infer {infer} segment {segment}"
        secrets = Secrets(
            root=root_salt,
            request_id=bytes.fromhex(record.receipt_id),
            infer=infer,
            scheme=scheme,
        )
        salt = record.proof.facts.salt
        # Who commits to salts tells of them anyhow.
        if not is_commitment(salt):
            values = manifest.salt.expand(secrets.boundary(segment + 1))
            expected.append(Expected(f"{where} salt", salt, values))
        try:
            expected += _opened(record, manifest, secrets, where, report)
        except (VerificationError, MalformedInputError) as error:
            report.add(where, str(error), "what its prover proved")
    require_hashes(expected, backend, limits, report)


def require_hashes(
    expected: Sequence[Expected], backend: ProofBackend, limits: Limits, report: Report
) -> None:
    """Note every hash that a proof claims and that is not the one it has to be.

    Args:
        expected: What is claimed, and what of.
        backend: Computes hashes as circuits do.
        limits: Of the process that does it.
        report: Takes the findings.

    Raises:
        UnavailableError: The process was killed, by its limits or otherwise.
    """
    hashes = backend.hash([each.values for each in expected], limits)
    for each, hashed in zip(expected, hashes, strict=True):
        report.require(each.where, each.claimed, hashed)


def _opened(
    record: ProofRecord,
    manifest: Manifest,
    secrets: Secrets,
    where: str,
    report: Report,
) -> Iterator[Expected]:
    count = len(manifest.segments)
    first, last = record.segment == 0, record.segment == count - 1
    if not (first or last):
        return
    if record.opening is None:
        report.add(where, "none", "one at this end of the chain")
        return
    tensors = open_opening(secrets.opening_key(last=last), record.opening, record.about)
    inputs = _named(tensors, INPUT)
    wanted = {f"{INPUT}{name}" for name in (record.inputs or {})} if first else set()
    if last:
        wanted |= {PROVEN, *(f"{SERVED}{name}" for name in (record.outputs or {}))}
    if tensors.keys() != wanted:
        report.add(f"{where} tensors", sorted(tensors), sorted(wanted))
        return
    facts = record.proof.facts
    if first:
        _compare(inputs, record.inputs, secrets, f"{where} input", report)
        form = manifest.segments[0].inputs
        values = activations_of(inputs, form, manifest.scale)
        salt = manifest.salt.expand(secrets.boundary(0))
        yield Expected(f"{where} boundary in", facts.input, (*values, *salt))
    if last:
        proven = tuple(int(value) for value in tensors[PROVEN])
        salt = manifest.salt.expand(secrets.boundary(count))
        yield Expected(f"{where} boundary out", facts.output, (*proven, *salt))
        served = _named(tensors, SERVED)
        _compare(served, record.outputs, secrets, f"{where} output", report)
        found = judge_deviation(manifest, proven, served, where, report)
        report.require(f"{where} deviation", record.deviation, found)
        if record.proven is not None:
            given = floats_of(proven, manifest.segments[-1].outputs, manifest.scale)
            made = secrets.commit(as_served(given, served), SERVED_PURPOSE)
            report.require(f"{where} proven", dict(record.proven), made)


def _named(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {
        name.removeprefix(prefix): array
        for name, array in tensors.items()
        if name.startswith(prefix)
    }


def _compare(
    tensors: Mapping[str, Array],
    named: Mapping[str, Digest] | None,
    secrets: Secrets,
    where: str,
    report: Report,
) -> None:
    for name, digest in secrets.commit(tensors).items():
        report.require(f"{where} {name}", digest, (named or {}).get(name))


def judge_deviation(
    manifest: Manifest,
    proven: BoundaryValues,
    served: Mapping[str, Array],
    where: str,
    report: Report,
) -> dict[str, float]:
    """Note every output that is further from the proven one than the manifest allows.

    Args:
        manifest: Trusted.
        proven: Activations that came out of the chain.
        served: The answer, by name.
        where: Names the answer in findings.
        report: Takes the findings.

    Returns:
        The largest difference of each output.

    Raises:
        MalformedInputError: The two are not of the same tensors.
    """
    form, bound = manifest.segments[-1].outputs, manifest.accuracy.bound
    found = deviations(floats_of(proven, form, manifest.scale), served)
    for name, apart in sorted(found.items()):
        # Not "apart > bound": a comparison with NaN is false.
        if not apart <= bound:
            want = f"at most {bound:g}, the manifest's bound"
            report.add(f"{where} deviation {name}", f"{apart:g}", want)
    return found
