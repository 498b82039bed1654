"""Proving, as the engine sees it: what is refused, and what is served instead."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from bentoml_secure.errors import ConfigurationError, ProofError
from bentoml_secure.proofs.boundary import (
    activations_of,
    as_served,
    deviations,
    floats_of,
)
from bentoml_secure.receipts.bundle import MAX_BUNDLE_ATTACHMENTS
from bentoml_secure.scenario import Scenario
from bentoml_secure.serving.ordering import Provable, require_provable
from bentoml_secure.serving.proof_desk import ProofDesk
from bentoml_secure.serving.request import RequestContext
from bentoml_secure.tensors import Array

MAX_PROOFS = MAX_BUNDLE_ATTACHMENTS - 8
"""Of one receipt: attachments of other kinds come once each."""


class EntryProving:
    """Proving, as the engine sees it.

    Args:
        desk: Deals with the provers.
    """

    def __init__(self, desk: ProofDesk) -> None:
        self._desk = desk

    def admit(
        self, scenario: Scenario, index: int, inputs: Mapping[str, Array]
    ) -> None:
        """Refuse a request whose proof could not be had, before anybody is asked.

        Args:
            scenario: Of the request.
            index: Of the ``infer``.
            inputs: Of the plan, by name.

        Raises:
            ConfigurationError: More proofs than one receipt holds.
            MalformedInputError: Inputs that no circuit of the set-up takes.
            UnavailableError: Too much is owed already, or a prover is not there, or
                is of a kind that the scenario does not place there.
        """
        segments = len(self._desk.manifest.segments)
        if (index + 1) * segments > MAX_PROOFS:
            raise ConfigurationError(
                f"infer: got call {index + 1} of one request, with {segments} proofs "
                f"each, want at most {MAX_PROOFS} proofs."
            )
        require_provable(self._desk.manifest, inputs)
        self._desk.order_keys(scenario)

    async def proven(
        self, context: RequestContext, provable: Provable
    ) -> dict[str, Array]:
        """Return what the circuits answer, in place of what was agreed on.

        Args:
            context: Of the request; its salts go in.
            provable: As the replicas agreed.

        Raises:
            ProofError: It is farther from the agreed answer than the set-up allows, or
                no number of the answer's type.
            UnavailableError: A prover is not there.
        """
        manifest = self._desk.manifest
        form, scale = manifest.segments[0].inputs, manifest.scale

        def salt(boundary: int) -> tuple[int, ...]:
            """Return the salt that the proof will have there."""
            secret = context.salt(provable.infer, "proof", str(boundary))
            return manifest.salt.expand(secret)

        # In threads: some tensors are large, and the loop serves others.
        inputs = await asyncio.to_thread(activations_of, provable.inputs, form, scale)
        values = (*inputs, *salt(0))
        for index in range(len(manifest.segments)):
            values = await self._desk.execute(index, values, salt(index + 1))
        made = values[: len(values) - manifest.salt.elements]
        floats = await asyncio.to_thread(
            floats_of, made, manifest.segments[-1].outputs, scale
        )
        apart = max(deviations(floats, provable.served).values())
        if not apart <= manifest.accuracy.bound:
            raise ProofError(
                f"the proven answer is {apart:g} from the agreed one, want at most "
                f"{manifest.accuracy.bound:g}"
            )
        return as_served(floats, provable.served)
