"""From an answered request to orders of its proofs: sealed, one per infer and segment.

Made once the receipt is signed, for they name it, and stored with it before the answer
leaves: from then on the proofs come, whichever process dies. Each prover learns the
salts of its own two boundaries, and at the model's ends the tensors that it compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bentoml_secure.digest import Digest
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.proofs.boundary import largest_activation
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.proofs.orders import About, Order, Priority
from bentoml_secure.proofs.sealing import seal_order
from bentoml_secure.receipts.keeping import StoredOrder
from bentoml_secure.serving.prover_work import pack_order
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.tensors import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Provable:
    """One ``infer`` as it was served, kept until its orders are made.

    Attributes:
        infer: Its index.
        inputs: Of the plan, by name.
        served: The plan's outputs that were agreed on, by name; where the scenario
            serves the proven answer, the caller gets that one instead.
    """

    infer: int
    inputs: Mapping[str, Array]
    served: Mapping[str, Array]


def served_salts(context: RequestContext, provable: Provable) -> dict[str, bytes]:
    """Return the salts of commitments to a proven answer that is served.

    Others than those of the agreed answer, whose commitments stand beside.
    """
    return {
        name: context.salt(provable.infer, "served", name) for name in provable.served
    }


def require_provable(manifest: Manifest, inputs: Mapping[str, Array]) -> None:
    """Refuse inputs that no circuit of the set-up takes, before anybody is asked.

    Args:
        manifest: Of the set-up.
        inputs: Of the plan, by name.

    Raises:
        MalformedInputError: Another shape than the one that is proven, or a value
            beyond the circuit's range.
    """
    first = manifest.segments[0]
    parameters = first.parameters
    most = parameters.decomposition_base**parameters.decomposition_legs
    largest = largest_activation(inputs, first.inputs, manifest.scale)
    if largest >= most:
        raise MalformedInputError(
            f"inputs: got a magnitude of {largest / 2**manifest.scale:g}, want less "
            f"than {most / 2**manifest.scale:g}: the proof set-up covers no more"
        )


def make_orders(
    context: RequestContext,
    receipt_digest: Digest,
    provable: Sequence[Provable],
    manifest: Manifest,
    order_keys: Sequence[str],
    *,
    priority: Priority,
    deadline: str,
    held_until: str,
    held: bool,
) -> tuple[StoredOrder, ...]:
    """Return the orders of a request's proofs.

    Args:
        context: Of the request.
        receipt_digest: Of its receipt.
        provable: Each ``infer``.
        manifest: Of the set-up.
        order_keys: Of the provers, by segment.
        priority: Among other orders.
        deadline: Of the proofs, if they are asked for now.
        held_until: How long they are kept for a challenge.
        held: Whether they wait for one.

    Raises:
        MalformedInputError: A tensor too large for an order.
    """
    return tuple(
        StoredOrder(
            key=JobKey(order.about.receipt_id, order.about.infer, index),
            deadline=None if held else deadline,
            held_until=held_until,
            priority=priority.value,
            body=pack_order(order.about, seal_order(order_keys[index], order)),
        )
        for each in provable
        for index, order in enumerate(
            _orders(context, receipt_digest, each, manifest, priority, deadline)
        )
    )


def _orders(
    context: RequestContext,
    receipt_digest: Digest,
    provable: Provable,
    manifest: Manifest,
    priority: Priority,
    deadline: str,
) -> Iterator[Order]:
    count, infer = len(manifest.segments), provable.infer
    serves = context.scenario.serve_proven

    def secret(purpose: str, name: str) -> bytes:
        """Return what holders of the root salt can derive again."""
        return context.salt(infer, purpose, name)

    def salts(tensors: Mapping[str, Array]) -> dict[str, bytes]:
        """Return those of the commitments in the receipt."""
        return {name: secret("tensor", name) for name in tensors}

    for index, setup in enumerate(manifest.segments):
        first, last = index == 0, index == count - 1
        opening = "proven-output" if last else "proven-input"
        yield Order(
            about=About(
                receipt_id=context.request_id.hex(),
                receipt_digest=receipt_digest,
                infer=infer,
                segment=index,
            ),
            segments=count,
            segment_identity=setup.segment,
            plan=manifest.plan,
            manifest=manifest.digest,
            nonce=context.nonce.hex(),
            scheme=context.scenario.commitments,
            priority=priority,
            deadline=deadline,
            salts=(secret("proof", str(index)), secret("proof", str(index + 1))),
            link_in=None if first else secret("proof-link", str(index)),
            link_out=None if last else secret("proof-link", str(index + 1)),
            opening_key=secret(opening, "") if first or last else None,
            inputs=provable.inputs if first else None,
            input_salts=salts(provable.inputs) if first else None,
            served=provable.served if last else None,
            output_salts=salts(provable.served) if last else None,
            proven_salts=served_salts(context, provable) if last and serves else None,
        )
