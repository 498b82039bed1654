"""What a prover does with an order: opens it, proves it, says what it has proven.

    1. the order opens under this segment's order key, and is about this set-up
    2. the boundary that goes in: the request's tensors, rounded, or what the prover
       before sealed
    3. the boundary that comes out goes on, sealed, as soon as it is known
    4. the proof, verified by its maker
    5. at the model's two ends: the commitments of the receipt's tensors, the distance
       of the proven answer from the served one, and all that sealed for whoever holds
       the root salt

Runs in the prover's service, or in a worker of a cluster that got the same key. What it
returns is public: the prover's service signs it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bentoml_secure.digest import Digest, canonical_json, parse_json, require_fields
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.proofs.boundary import (
    activations_of,
    as_served,
    deviations,
    floats_of,
)
from bentoml_secure.proofs.manifest import Manifest, SegmentSetup
from bentoml_secure.proofs.orders import INPUT, MAX_ORDER_BYTES, SERVED, About, Order
from bentoml_secure.proofs.proof import (
    BoundaryValues,
    Limits,
    ProofBackend,
    ProvingKey,
    SegmentProof,
)
from bentoml_secure.proofs.sealing import (
    PROVEN,
    OrderKey,
    open_link,
    seal_link,
    seal_opening,
)
from bentoml_secure.proofs.work import Payload, Told
from bentoml_secure.tensors import Array, commit

MAX_ABOUT_BYTES = 4096
MAX_RESULT_BYTES = 64 << 20
_LENGTH_BYTES = 4
_ABOUT = ("receipt_id", "receipt_digest", "infer", "segment")


def pack_order(about: About, sealed: bytes) -> bytes:
    """Return a sealed order beside what it says it is about: what queues hold."""
    said = canonical_json(about.to_json())
    return len(said).to_bytes(_LENGTH_BYTES, "big") + said + sealed


def unpack_order(packed: bytes) -> tuple[About, bytes]:
    """Return what a sealed order says it is about, and the sealed order.

    Raises:
        MalformedInputError: Not of ``pack_order``'s form.
    """
    length = int.from_bytes(packed[:_LENGTH_BYTES], "big")
    if not 0 < length <= min(MAX_ABOUT_BYTES, len(packed) - _LENGTH_BYTES):
        raise MalformedInputError(f"packed order: got a head of {length} bytes")
    said, sealed = packed[_LENGTH_BYTES:][:length], packed[_LENGTH_BYTES + length :]
    document = parse_json(said, what="order about", max_bytes=MAX_ABOUT_BYTES)
    about = About(**require_fields(document, _ABOUT, what="order about"))
    if canonical_json(about.to_json()) != said or len(sealed) > 2 * MAX_ORDER_BYTES:
        raise MalformedInputError("packed order: not of its form")
    return about, sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What a prover found, before it is signed: nothing in it is secret.

    Attributes:
        about: Which proof.
        nonce: Of the client, hex.
        proof: Of the segment.
        inputs: Commitments of the request's tensors; of the first segment.
        outputs: Commitments of the answer's tensors; of the last segment.
        deviation: Largest difference of proven and served, by output; likewise.
        proven: Commitments of the proven answer's tensors, where that is what the
            caller was given.
        opening: Sealed for whoever holds the root salt; at the model's two ends.
    """

    about: About
    nonce: str
    proof: SegmentProof
    inputs: Mapping[str, Digest] | None
    outputs: Mapping[str, Digest] | None
    deviation: Mapping[str, float] | None
    proven: Mapping[str, Digest] | None
    opening: bytes | None

    def to_bytes(self) -> bytes:
        """Return it as queues and clusters hand it on."""
        opening = self.opening
        return canonical_json(
            {
                "about": self.about.to_json(),
                "nonce": self.nonce,
                "proof": self.proof.to_json(),
                "inputs": None if self.inputs is None else dict(self.inputs),
                "outputs": None if self.outputs is None else dict(self.outputs),
                "deviation": None if self.deviation is None else dict(self.deviation),
                "proven": None if self.proven is None else dict(self.proven),
                "opening": None
                if opening is None
                else base64.b64encode(opening).decode(),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Proven:
        """Parse what ``to_bytes`` wrote, in a process that is trusted as this one is.

        Raises:
            MalformedInputError: Not of its form.
        """
        document = parse_json(data, what="proven", max_bytes=MAX_RESULT_BYTES)
        got = require_fields(document, cls.__slots__, what="proven")
        about = About(**require_fields(got["about"], _ABOUT, what="proven about"))
        opening = got["opening"]
        return cls(
            about=about,
            nonce=got["nonce"],
            proof=SegmentProof.from_json(got["proof"]),
            inputs=got["inputs"],
            outputs=got["outputs"],
            deviation=got["deviation"],
            proven=got["proven"],
            opening=None if opening is None else base64.b64decode(opening),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentWork:
    """What proves one segment: keys, opened, in the only processes that have them.

    Attributes:
        index: Of the segment.
        manifest: Of the set-up.
        order_key: Opens orders.
        proving_key: Proves.
        srs: Returns the file of the structured reference string, compared with the
            manifest anew: it lies where others may write.
        backend: With it.
        limits: Of each proof.
    """

    index: int
    manifest: Manifest
    order_key: OrderKey
    proving_key: ProvingKey
    srs: Callable[[], Path]
    backend: ProofBackend
    limits: Limits

    @property
    def setup(self) -> SegmentSetup:
        """The manifest's entry."""
        return self.manifest.segments[self.index]

    def work(self, payload: Payload, executed: Told) -> bytes:
        """Do one job of the farm; see ``prove``."""
        return self.prove(payload.order, payload.link, executed).to_bytes()

    def prove(self, packed: bytes, link: bytes | None, executed: Told) -> Proven:
        """Do one order.

        Args:
            packed: From ``pack_order``.
            link: From the prover of the segment before; None for the first.
            executed: Told the link for the next prover; None by the last.

        Raises:
            VerificationError: The order is another's, or about another set-up.
            MalformedInputError: Of another form, or a value out of the circuit's range.
            UnavailableError: The proof's process was killed.
            ProofError: What was proven does not verify.
        """
        about, sealed = unpack_order(packed)
        order = self.order_key.open(sealed, about)
        self._require_order(order)
        boundary = self._boundary(order, link)
        salt = self.manifest.salt.expand(order.salts[1])
        made: list[BoundaryValues] = []

        def came_out(values: BoundaryValues) -> None:
            """Hand on what the next prover waits for."""
            made.append(values)
            link_key = order.link_out
            executed(None if link_key is None else seal_link(link_key, values, about))

        key = replace(self.proving_key, srs=self.srs())
        proof = self.backend.prove(key, boundary, salt, self.limits, came_out)
        return self._proven(order, proof, made[-1][: -len(salt)])

    def _require_order(self, order: Order) -> None:
        for what, got, want in (
            ("segment", order.about.segment, self.index),
            ("segments", order.segments, len(self.manifest.segments)),
            ("segment_identity", order.segment_identity, self.setup.segment),
            ("plan", order.plan, self.manifest.plan),
            ("manifest", order.manifest, self.manifest.digest),
        ):
            if got != want:
                raise VerificationError(f"order {what}: got {got}, want {want}")

    def _boundary(self, order: Order, link: bytes | None) -> BoundaryValues:
        salt = self.manifest.salt.expand(order.salts[0])
        if order.inputs is not None:
            form, scale = self.setup.inputs, self.manifest.scale
            return (*activations_of(order.inputs, form, scale), *salt)
        if link is None or order.link_in is None:
            raise MalformedInputError("order: the segment before handed nothing on")
        values = open_link(order.link_in, link, order.about)
        want = sum(tensor.size for tensor in self.setup.inputs) + len(salt)
        if len(values) != want or values[-len(salt) :] != salt:
            raise VerificationError(
                f"link: got {len(values)} values, want {want} that end with the salt"
            )
        return values

    def _proven(
        self, order: Order, proof: SegmentProof, activations: BoundaryValues
    ) -> Proven:
        inputs = outputs = apart = given = opening = None
        opened: dict[str, Array] = {}
        if order.inputs is not None and order.input_salts is not None:
            inputs = commit(order.inputs, order.input_salts, order.scheme)
            opened |= {INPUT + name: array for name, array in order.inputs.items()}
        if order.served is not None and order.output_salts is not None:
            outputs = commit(order.served, order.output_salts, order.scheme)
            proven = floats_of(activations, self.setup.outputs, self.manifest.scale)
            apart = deviations(proven, order.served)
            if order.proven_salts is not None:
                answer = as_served(proven, order.served)
                given = commit(answer, order.proven_salts, order.scheme)
            opened[PROVEN] = np.array(activations, np.int64)
            opened |= {SERVED + name: array for name, array in order.served.items()}
        if order.opening_key is not None:
            opening = seal_opening(order.opening_key, opened, order.about)
        return Proven(
            about=order.about,
            nonce=order.nonce,
            proof=proof,
            inputs=inputs,
            outputs=outputs,
            deviation=apart,
            proven=given,
            opening=opening,
        )

    def execute(self, boundary: BoundaryValues, salt: BoundaryValues) -> BoundaryValues:
        """Return the boundary that comes out, without a proof.

        Raises:
            MalformedInputError: Another length, or a value out of the circuit's range.
            UnavailableError: The process was killed.
        """
        form = self.manifest.salt
        want = sum(tensor.size for tensor in self.setup.inputs) + form.elements
        if len(boundary) != want or len(salt) != form.elements:
            raise MalformedInputError(
                f"execute: got {len(boundary)} values and {len(salt)} of salt, want "
                f"{want} and {form.elements}"
            )
        key = self.proving_key
        return self.backend.execute(
            key.circuit,
            [(boundary, salt)],
            # Somebody waits for this one: proofs stand back for it.
            replace(self.limits, background=False),
            settings=key.verification.settings,
        )[0]
