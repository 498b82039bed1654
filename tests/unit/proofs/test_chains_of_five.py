"""Chains longer than two: every boundary between a first and a last is hashed twice."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from bentoml_secure.errors import ProofError
from bentoml_secure.proofs.linking import verify_chain
from bentoml_secure.proofs.proof import BoundaryValues, SegmentProof
from bentoml_secure.testing.proof_set_up import LIMITS, ProofSetUp
from tests.proven_case import FEATURES, SALT, circuit, set_up_with

SEGMENTS = 5


@functools.cache
def set_up() -> ProofSetUp:
    """Return five segments, each of which doubles."""
    double = 2 * np.eye(FEATURES, dtype=np.float32)
    return set_up_with([circuit(double)] * SEGMENTS, "five")


@functools.cache
def proven() -> tuple[list[SegmentProof], list[BoundaryValues]]:
    """Return the proofs of one run, and its boundaries."""
    made = set_up()
    salts = [SALT.expand(bytes([index]) * 32) for index in range(SEGMENTS + 1)]
    boundaries: list[BoundaryValues] = [(128, -64, 3, 0, *salts[0])]
    proofs = [
        made.backend.prove(key, boundaries[-1], salt, LIMITS, boundaries.append)
        for key, salt in zip(made.keys, salts[1:], strict=True)
    ]
    return proofs, boundaries


def verify(proofs: list[SegmentProof]) -> None:
    made = set_up()
    keys = [key.verification for key in made.keys]
    verify_chain(made.manifest, keys, proofs, backend=made.backend, limits=LIMITS)


def test_five_segments_are_proven_and_linked() -> None:
    proofs, boundaries = proven()
    verify(proofs)
    assert boundaries[-1][:FEATURES] == (128 * 32, -64 * 32, 3 * 32, 0)
    hashes = [proof.facts.input for proof in proofs] + [proofs[-1].facts.output]
    assert hashes == set_up().backend.hash(boundaries, LIMITS)
    # A salt of its own for each: nothing of one boundary is seen in another.
    assert len(set(hashes)) == SEGMENTS + 1


@pytest.mark.parametrize("left_out", range(SEGMENTS))
def test_a_segment_that_is_left_out_is_missed(left_out: int) -> None:
    proofs, _ = proven()
    fewer = [proof for index, proof in enumerate(proofs) if index != left_out]
    with pytest.raises(ProofError, match=r"4|segment"):
        verify(fewer)


@pytest.mark.parametrize("place", range(SEGMENTS - 1))
def test_two_segments_that_changed_places_do_not_link(place: int) -> None:
    # Of equal circuits each proof verifies in the other's place: the link does not.
    proofs = list(proven()[0])
    proofs[place], proofs[place + 1] = proofs[place + 1], proofs[place]
    with pytest.raises(ProofError, match="link"):
        verify(proofs)


def test_one_of_another_run_does_not_link() -> None:
    proofs, boundaries = proven()
    made = set_up()
    other = list(proofs)
    # The same activations, another salt: another boundary.
    again = SALT.expand(b"again".ljust(32))
    given = (*boundaries[2][:FEATURES], *again)
    after = boundaries[3][FEATURES:]
    other[2] = made.backend.prove(made.keys[2], given, after, LIMITS, lambda _: None)
    assert other[2].facts.output == proofs[2].facts.output
    with pytest.raises(ProofError, match="link"):
        verify(other)
    claimed = replace(other[2].facts, input=proofs[2].facts.input)
    other[2] = replace(other[2], facts=claimed)
    with pytest.raises(ProofError, match="verify"):
        verify(other)
