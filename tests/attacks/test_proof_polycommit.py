"""Boundaries that are committed to, in place of hashed: cheaper, and they tell.

ezkl's visibility ``polycommit`` costs no rows. But the column is not blinded, and its
value at one point stands in every proof. With a salt as short as a hash needs, a reader
of one proof knows all of it, and the activations behind it. So such links take a longer
one, which the equations of a run do not determine, and a caller who accepts what is
left of the leak. Everything else holds as it does for hashes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pytest

from bentoml_secure.errors import MalformedInputError, ProofError
from bentoml_secure.proofs.field import FIELD_MODULUS
from bentoml_secure.proofs.linking import verify_chain
from bentoml_secure.proofs.links import HASHED, Ends, Link
from bentoml_secure.proofs.proof import (
    BoundaryValues,
    Facts,
    ProvingKey,
    SegmentProof,
    VerificationKey,
)
from bentoml_secure.receipts.verify import State
from bentoml_secure.testing.proof_set_up import LIMITS
from bentoml_secure.testing.proofs import Records, prove_draft
from bentoml_secure.testing.receipts import Draft, build_draft
from tests import proven_case
from tests.attacks.columns import Column, Opened, small_solution, take_apart
from tests.attacks.proofs import findings, judge, with_facts

COMMITTED = Ends(Link.POLYCOMMIT, Link.POLYCOMMIT)
ACTIVATIONS = (300, 17, 2, 1023)
ACTIVATION_BITS = 10
LOGROWS = proven_case.PARAMETERS.logrows
BOUNDARY, SALT, NEXT = range(3)
"""Order of commitments, and of evaluations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """One run of a segment whose boundaries are committed to; its proof verifies."""

    boundary: BoundaryValues
    salt: BoundaryValues
    out: BoundaryValues
    facts: Facts
    proof: Opened


@functools.cache
def key_of_both() -> ProvingKey:
    """Return a segment's key that commits at both ends, with the salt of hashes."""
    backend = proven_case.set_up().backend
    model = proven_case.circuit(proven_case.IDENTITY)
    settings, _ = backend.measure(model, proven_case.PARAMETERS, LIMITS, COMMITTED)
    circuit = backend.compile(model, settings, LIMITS)
    proving, srs = proven_case.folder() / "committing.pk", proven_case.srs()[1]
    proving.touch()
    made = backend.set_up(circuit, srs, proving, LIMITS)
    verification = VerificationKey(settings=settings, key=made)
    return ProvingKey(circuit=circuit, key=proving, verification=verification, srs=srs)


def prove(boundary: BoundaryValues, salt: BoundaryValues) -> Proven:
    backend = proven_case.set_up().backend
    outs: list[BoundaryValues] = []
    made = backend.prove(key_of_both(), boundary, salt, LIMITS, outs.append)
    return Proven(
        boundary=boundary,
        salt=salt,
        out=outs[0],
        facts=made.facts,
        proof=take_apart(made.proof),
    )


@pytest.fixture(scope="module")
def runs() -> tuple[Proven, Proven, Proven]:
    """Two segments in a row; and the second, of a boundary that is one unit off."""
    first, second, third = (proven_case.SALT.expand(bytes([n]) * 32) for n in (1, 2, 3))
    off = (ACTIVATIONS[0] + 1, *ACTIVATIONS[1:])
    return (
        prove((*ACTIVATIONS, *first), second),
        prove((*ACTIVATIONS, *second), third),
        prove((*off, *second), third),
    )


class TestTheLeak:
    def test_equal_boundaries_have_equal_commitments(
        self, runs: tuple[Proven, Proven, Proven]
    ) -> None:
        first, second, off = runs
        came_out = first.facts.output
        assert bytes.fromhex(came_out) == first.proof.points[NEXT]
        assert second.facts.input == came_out
        assert off.facts.input != came_out

    def test_every_proof_tells_a_value_of_each_column(
        self, runs: tuple[Proven, Proven, Proven]
    ) -> None:
        run, column = runs[0], Column(LOGROWS)
        boundary, salt, out = run.proof.values[:3]
        point = column.point((run.boundary, boundary), (run.salt, salt))
        assert column.value(run.out, point) == out

    def test_who_reads_one_proof_knows_a_boundary_of_short_salt(
        self, runs: tuple[Proven, Proven, Proven]
    ) -> None:
        """Nothing is taken from the run but sizes and, for short, the public point."""
        run, column = runs[0], Column(LOGROWS)
        told = run.proof.values
        point = column.point((run.boundary, told[BOUNDARY]), (run.salt, told[SALT]))
        weights, empty = column.weights(point), column.value((), point)
        size = proven_case.SALT.elements
        salt = small_solution(weights[:size], told[SALT] - empty, proven_case.SALT.bits)
        assert tuple(salt) == run.salt
        width = proven_case.FEATURES
        behind = sum(w * s for w, s in zip(weights[width:], salt, strict=False))
        rest = told[NEXT] - empty - behind
        found = small_solution(weights[:width], rest, ACTIVATION_BITS)
        assert tuple(found) == ACTIVATIONS

    def test_an_equation_does_not_tell_a_salt_of_more_bits_than_its_own(self) -> None:
        """Why the longer one is: it has more bits than all equations of a run."""
        # 16 integers of 22 bits in 254 bits; a third of the salt that links take.
        column, point = Column(LOGROWS), 0x1234567890ABCDEF << 128
        salt = proven_case.LONG_SALT.expand(bytes(32))[:16]
        weights = column.weights(point)[: len(salt)]
        told = column.value(salt, point) - column.value((), point)
        found = small_solution(weights, told, proven_case.SALT.bits)
        # It fits, as many others do.
        fits = sum(w * value for w, value in zip(weights, found, strict=True))
        assert (fits - told) % FIELD_MODULUS == 0
        assert tuple(found) != salt

    def test_a_short_salt_is_refused(self) -> None:
        made = proven_case.committing().manifest
        with pytest.raises(MalformedInputError, match="want at least 1024 bits"):
            replace(made, salt=proven_case.SALT)


class TestSettings:
    """What commits where it is to hash is refused, and the other way round."""

    @pytest.mark.parametrize(
        "ends",
        [
            Ends(Link.POLYCOMMIT, Link.HASHED),
            Ends(Link.HASHED, Link.POLYCOMMIT),
            COMMITTED,
        ],
        ids=["input", "output", "both"],
    )
    def test_of_other_ends(self, ends: Ends) -> None:
        backend = proven_case.set_up().backend
        model = proven_case.circuit(proven_case.IDENTITY)
        made, _ = backend.measure(model, proven_case.PARAMETERS, LIMITS, ends)
        backend.require_settings(made, ends)
        with pytest.raises(ProofError, match="visibility: got 'KZGCommit'"):
            backend.require_settings(made)
        hashed, _ = backend.measure(model, proven_case.PARAMETERS, LIMITS, HASHED)
        with pytest.raises(ProofError, match=r"visibility: got .'Hashed'"):
            backend.require_settings(hashed, ends)

    def test_a_hashing_manifest_does_not_take_committing_circuits(self) -> None:
        made = proven_case.committing()
        hashing = replace(made.manifest, link=Link.HASHED)
        keys = [key.verification for key in made.keys]
        with pytest.raises(ProofError, match="visibility: got 'KZGCommit'"):
            verify_chain(hashing, keys, proofs_of_a_run(), backend=made.backend)


@functools.cache
def committed() -> tuple[Draft, Records]:
    """Return a request to a service whose proofs are linked by commitments."""
    draft = build_draft(proven_case.deploy(proven_case.committing()))
    return draft, prove_draft(draft)


def proofs_of_a_run() -> list[SegmentProof]:
    return [record.proof for _, record in sorted(committed()[1].items())]


@pytest.fixture
def draft() -> Draft:
    return committed()[0]


@pytest.fixture
def records() -> Records:
    return dict(committed()[1])


class TestReceipts:
    def test_are_accepted_by_whom_it_suits(
        self, draft: Draft, records: Records
    ) -> None:
        first, middle, last = (records[0, index].proof.facts for index in range(3))
        assert [len(f.commitments) for f in (first, middle, last)] == [1, 3, 2]
        verdict = judge(draft, records)
        assert verdict.state is State.ACCEPTED
        assert verdict.claims["proofs"]["links"] == "polycommit"
        assert any(left.field == "links" for left in verdict.unchecked)

    def test_are_refused_by_everybody_else(
        self, draft: Draft, records: Records
    ) -> None:
        trust = replace(draft.deployment.trust, polycommit_links=False)
        found = findings(draft, records, trust=trust)
        assert found == {"manifest link": "polycommit"}

    def test_are_opened_at_both_ends(self, draft: Draft, records: Records) -> None:
        opened = judge(draft, records, opened=True)
        assert opened.state is State.ACCEPTED
        assert opened.claims["proof_opening"] == "checked"

    def test_segments_of_two_requests_do_not_link(
        self, draft: Draft, records: Records
    ) -> None:
        other = build_draft(draft.deployment, label="another request")
        records[0, 1] = replace(records[0, 1], proof=prove_draft(other)[0, 1].proof)
        found = findings(draft, records)
        assert {"proof infer 0 link 0 to 1", "proof infer 0 link 1 to 2"} <= set(found)

    def test_a_proof_does_not_link_by_what_it_only_claims(
        self, draft: Draft, records: Records
    ) -> None:
        other = build_draft(draft.deployment, label="another request")
        strange = replace(records[0, 1], proof=prove_draft(other)[0, 1].proof)
        mine = records[0, 1].proof.facts
        records[0, 1] = with_facts(strange, input=mine.input, output=mine.output)
        found = findings(draft, records)
        assert "begins with other commitments than it claims" in found["proof"]

    def test_commitments_put_into_a_proof_do_not_verify(
        self, draft: Draft, records: Records
    ) -> None:
        # As ``ezkl.swap_proof_commitments`` does it.
        other = build_draft(draft.deployment, label="another request")
        strange = prove_draft(other)[0, 1].proof
        mine = records[0, 1].proof
        size = len(bytes.fromhex("".join(mine.facts.commitments)))
        forged = replace(
            strange, facts=mine.facts, proof=mine.proof[:size] + strange.proof[size:]
        )
        records[0, 1] = replace(records[0, 1], proof=forged)
        assert "does not verify" in findings(draft, records)["proof"]

    @pytest.mark.parametrize("segment", [0, 1, 2])
    def test_a_hash_is_no_commitment(
        self, draft: Draft, records: Records, segment: int
    ) -> None:
        facts = records[0, segment].proof.facts
        changed = (facts.hashes or committed()[1][0, 0].proof.facts.hashes)[0]
        for name in ("input", "output"):
            other = dict(records)
            stated = getattr(facts, name)
            put = "00" * 64 if len(stated) == 64 else changed
            other[0, segment] = with_facts(records[0, segment], **{name: put})
            found = findings(draft, other)
            assert "hashes and commitments" in found["proof"]


class TestManifests:
    def test_rows_are_the_same_of_all_segments(self) -> None:
        made = proven_case.committing().manifest
        first, *others = made.segments
        taller = replace(first, parameters=replace(first.parameters, logrows=13))
        srs = replace(made.srs, files={**made.srs.files, 13: made.srs.files[12]})
        with pytest.raises(MalformedInputError, match=r"logrows: got \[12, 13\]"):
            replace(made, segments=(taller, *others), srs=srs)

    def test_a_boundary_is_one_column(self) -> None:
        # What does not fit is committed to apart, and nothing would compare that.
        made = proven_case.committing().manifest
        wide = tuple(
            replace(tensor, shape=(1, 4096 - 32 - proven_case.LONG_SALT.elements + 1))
            for tensor in made.segments[0].outputs
        )
        first, middle, last = made.segments
        segments = (
            replace(first, outputs=wide),
            replace(middle, inputs=wide),
            last,
        )
        with pytest.raises(MalformedInputError, match="want at most 4064"):
            replace(made, segments=segments)
