"""Linking: proofs of single segments that together show one run of a whole plan.

A proof shows that a segment maps a boundary to a boundary, both by their hashes (or
their commitments, where the manifest links by these; ``links`` says what that tells). A
chain of them shows the plan's run if each boundary that goes in is the one that came
out before; that is what this compares, and it costs nothing. What proofs show at all,
the manifest says, whose trust is the caller's to judge:

1. the backend is the one that the manifest was made with, in that version
2. there is a verification key and, if the run is complete, a proof for every segment
3. every key's settings bind weights, input and output, at the manifest's one scale: a
   number that stands for another value on the other side links nothing
4. every proof is of that backend; the hash of what came out of a segment is the hash of
   what went into the next                                       (``find_in_links``)
5. every proof verifies, all of them in one process

Each step reports everything that it finds; a step that fails ends it before the next
begins, for nothing then says what a proof would show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bentoml_secure.errors import (
    Finding,
    MissingDependencyError,
    ProofError,
    SecureError,
)
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.proofs.proof import (
    Limits,
    ProofBackend,
    SegmentProof,
    VerificationKey,
)

VERIFYING = Limits(memory_bytes=4 << 30, seconds=300, threads=2)
"""A proof takes 0.03 to 0.3 s; the keys of 1000 proofs fit."""

Chain = Mapping[int, SegmentProof]
"""Proofs of one run by segment; not all of them may be there yet."""


def verify_chain(
    manifest: Manifest,
    keys: Sequence[VerificationKey],
    proofs: Sequence[SegmentProof],
    *,
    backend: ProofBackend,
    limits: Limits = VERIFYING,
) -> None:
    """Return if proofs show one run of the whole plan; see the module's steps.

    Args:
        manifest: Trusted by the caller.
        keys: That the manifest pins, in the plan's order.
        proofs: One for each segment, in the plan's order.
        backend: The manifest's.
        limits: Of the process that verifies.

    Raises:
        ProofError: They do not; it names every reason of the step that failed.
        MissingDependencyError: Another version of the backend is installed.
        UnavailableError: The process was killed, by its limits or otherwise.
    """
    _require_count("proofs", len(proofs), manifest)
    chain = dict(enumerate(proofs))
    verify_chains(manifest, keys, [chain], backend=backend, limits=limits)


def verify_chains(
    manifest: Manifest,
    keys: Sequence[VerificationKey],
    chains: Sequence[Chain],
    *,
    backend: ProofBackend,
    limits: Limits = VERIFYING,
) -> None:
    """Return if all proofs of several runs hold, as far as they are there.

    Whether every one is there is for the caller to say.

    Args:
        manifest: Trusted by the caller.
        keys: That the manifest pins, in the plan's order.
        chains: One for each run.
        backend: The manifest's.
        limits: Of the process that verifies.

    Raises:
        ProofError: One does not; it names every reason of the step that failed.
        MissingDependencyError: Another version of the backend is installed.
        UnavailableError: The process was killed, by its limits or otherwise.
    """
    require_backend(manifest, backend)
    _raise(
        [
            finding
            for run, chain in enumerate(chains)
            for finding in find_in_links(manifest, chain, where=f"run {run}")
        ]
    )
    verify_each(manifest, keys, chains, backend=backend, limits=limits)


def verify_each(
    manifest: Manifest,
    keys: Sequence[VerificationKey],
    chains: Sequence[Chain],
    *,
    backend: ProofBackend,
    limits: Limits = VERIFYING,
) -> None:
    """Return if every proof verifies; whether they are linked is not looked at.

    Args:
        manifest: Trusted by the caller.
        keys: That the manifest pins, in the plan's order.
        chains: Each proof's segment is one of the manifest's.
        backend: The manifest's.
        limits: Of the process that verifies.

    Raises:
        ProofError: One does not; it names every reason of the step that failed.
        MissingDependencyError: Another version of the backend is installed.
        UnavailableError: The process was killed, by its limits or otherwise.
    """
    require_backend(manifest, backend)
    _require_count("verification keys", len(keys), manifest)
    _raise(find_in_settings(manifest, keys, backend))
    given = [
        (proof, keys[segment])
        for chain in chains
        for segment, proof in sorted(chain.items())
    ]
    backend.verify(given, manifest.srs.verifier, limits)


def verify_segment(
    manifest: Manifest,
    segment: int,
    key: VerificationKey,
    proof: SegmentProof,
    *,
    backend: ProofBackend,
    limits: Limits = VERIFYING,
) -> None:
    """Return if one segment's proof verifies, without those of the others.

    Args:
        manifest: Trusted by the caller.
        segment: Index of the segment.
        key: That the manifest pins for it.
        proof: Of the segment.
        backend: The manifest's.
        limits: Of the process that verifies.

    Raises:
        ProofError: It does not.
        MissingDependencyError: Another version of the backend is installed.
        UnavailableError: The process was killed, by its limits or otherwise.
    """
    require_backend(manifest, backend)
    _raise(_find_in_key(manifest, segment, key, backend))
    _raise(find_in_links(manifest, {segment: proof}, where="proof"))
    backend.verify([(proof, key)], manifest.srs.verifier, limits)


def require_backend(manifest: Manifest, backend: ProofBackend) -> None:
    """Refuse a backend that the manifest was not made with.

    Raises:
        ProofError: It is another backend.
        MissingDependencyError: It is another version: what it accepts, and what that
            shows, nobody has said.
    """
    if backend.name != manifest.backend:
        raise ProofError(
            f"backend: got {backend.name}, the manifest is of {manifest.backend}"
        )
    if backend.version != manifest.backend_version:
        raise MissingDependencyError(
            f"proofs: {backend.name} {backend.version} is installed, the manifest is "
            f"of version {manifest.backend_version}.",
            remedy=f"pip install '{backend.name}=={manifest.backend_version}'",
        )


def find_in_settings(
    manifest: Manifest, keys: Sequence[VerificationKey], backend: ProofBackend
) -> list[Finding]:
    """Return what stands in the way of proofs under these keys showing a run.

    Args:
        manifest: Whose scale is every boundary's.
        keys: In the plan's order.
        backend: Reads their settings.
    """
    return [
        finding
        for segment, key in enumerate(keys)
        for finding in _find_in_key(manifest, segment, key, backend)
    ]


def _find_in_key(
    manifest: Manifest, segment: int, key: VerificationKey, backend: ProofBackend
) -> list[Finding]:
    where = f"segment {segment}"
    try:
        rows = backend.require_settings(key.settings, manifest.ends(segment))
    except SecureError as error:
        want = "settings that bind weights, input and output"
        return [Finding(f"{where} settings", str(error), want)]
    want = f"{manifest.scale}, the manifest's"
    return [
        Finding(f"{where} scale {side}", str(scale), want)
        for side, scale in (("in", rows.input_scale), ("out", rows.output_scale))
        if scale != manifest.scale
    ]


def find_in_links(manifest: Manifest, chain: Chain, *, where: str) -> list[Finding]:
    """Return what breaks a run: proofs of another backend, boundaries that differ.

    Args:
        manifest: Says which segments there are.
        chain: Links are compared where the proofs of both sides are there.
        where: Names the run in findings.
    """
    findings = []
    segments = range(len(manifest.segments))
    for segment, proof in sorted(chain.items()):
        if segment not in segments:
            want = f"one of {len(segments)} segments"
            findings.append(Finding(f"{where} segment", str(segment), want))
        if proof.backend != manifest.backend:
            finding = f"{where} segment {segment} backend"
            findings.append(Finding(finding, proof.backend, manifest.backend))
        before = chain.get(segment - 1)
        if before is not None and before.facts.output != proof.facts.input:
            findings.append(
                Finding(
                    f"{where} link {segment - 1} to {segment}",
                    f"{proof.facts.input} goes in",
                    f"{before.facts.output}, which came out",
                )
            )
    return findings


def _require_count(what: str, got: int, manifest: Manifest) -> None:
    if got != len(manifest.segments):
        raise ProofError(f"{what}: got {got}, want {len(manifest.segments)}, one each")


def _raise(findings: Sequence[Finding]) -> None:
    if findings:
        raise ProofError("proofs do not show a run", findings)
