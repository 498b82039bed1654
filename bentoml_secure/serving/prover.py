"""A prover: one segment's proofs, asked for by the entry, made by its farm.

What it answers, in an attested session with the entry of its deployment:

    order-key   what orders are to be sealed to
    submit      take in orders; twice is once
    link        what the segment before handed on
    collect     how far they are; what was handed on; the signed proof
    forget      the entry has them
    cancel      nobody needs them any more
    execute     a circuit's answer, without a proof

A proof is signed when it is there, by the keys of then, with evidence over a nonce that
follows from the receipt: so neither this process nor the entry can have made it before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bentoml_secure.digest import Digest, canonical_json, parse_json
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.proofs.farm import Farm
from bentoml_secure.proofs.jobs.job import Job, JobKey, JobStatus, Priority, State
from bentoml_secure.proofs.jobs.store import JobStore
from bentoml_secure.proofs.proof import BoundaryValues
from bentoml_secure.receipts.proofs import ProofRecord, evidence_nonce, issue_proof
from bentoml_secure.receipts.strict import fields
from bentoml_secure.serving.prover_messages import (
    JobReport,
    key_from_json,
    parse_answer,
    parse_keys,
    parse_orders,
    parse_values,
    reports_to_json,
)
from bentoml_secure.serving.prover_work import Proven, unpack_order
from bentoml_secure.session.identity import Identity
from bentoml_secure.session.responders import Responder
from bentoml_secure.signing import MAX_ENVELOPE_BYTES, decode_base64
from bentoml_secure.statements import format_time, parse_time, utc_now

MAX_LINK_BYTES = 16 << 20
_MOST_COLLECTED_BYTES = 16 << 20
"""Of links and proofs at once: the others are told as they are, and come later."""

_STATES: Mapping[State, str] = {
    State.WAITING: "waiting",
    State.READY: "waiting",
    State.RUNNING: "running",
    State.DONE: "done",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}


Execute = Callable[[BoundaryValues, BoundaryValues], BoundaryValues]
"""Runs a circuit without a proof: from boundary and next salt to what comes out."""


class ProverCore:
    """One segment's prover. Knows nothing of HTTP.

    Args:
        index: Of the segment.
        manifest: Digest of the proof set-up's manifest.
        order_key: What orders are to be sealed to, hex.
        identity: The process's keys and attester.
        responder: Its sessions.
        store: Where jobs wait.
        memory_bytes: That one of its proofs takes.
        execute: Runs the circuit.
        clock: For the time of a proof.
    """

    def __init__(
        self,
        index: int,
        manifest: Digest,
        order_key: str,
        identity: Identity,
        responder: Responder,
        store: JobStore,
        *,
        memory_bytes: int,
        execute: Execute,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.identity = identity
        self.responder = responder
        self.store = store
        self._index = index
        self._manifest = manifest
        self._order_key = order_key
        self._memory_bytes = memory_bytes
        self._execute = execute
        self._clock = clock
        # Each takes a process: never more at once than would slow the proofs.
        self._executing = asyncio.Semaphore(1)
        self.farm: Farm | None = None

    def sign(self, key: JobKey, result: bytes) -> bytes:
        """Return the signed attachment of a finished proof; blocks on a device.

        Args:
            key: Of the job.
            result: As ``Proven.to_bytes`` has it.

        Raises:
            UnavailableError: The device that attests does not answer.
            MalformedInputError: The result is another job's.
        """
        proven = Proven.from_bytes(result)
        about = proven.about
        if (about.receipt_id, about.infer, about.segment) != (
            key.receipt_id,
            key.infer,
            key.segment,
        ):
            raise MalformedInputError(f"job {key}: its result is about {about}")
        keys = self.identity.keys
        nonce = evidence_nonce(about.receipt_digest, about.infer, about.segment)
        record = ProofRecord(
            receipt_id=about.receipt_id,
            receipt_digest=about.receipt_digest,
            issued_at=format_time(self._clock()),
            infer=about.infer,
            segment=about.segment,
            nonce=proven.nonce,
            manifest=self._manifest,
            proof=proven.proof,
            key_document=keys.document,
            evidence=self.identity.attest(nonce, keys),
            inputs=proven.inputs,
            outputs=proven.outputs,
            deviation=proven.deviation,
            proven=proven.proven,
            opening=proven.opening,
        )
        return canonical_json(issue_proof(record, keys.signing).to_json())

    async def answer(self, message: bytes) -> bytes:
        """Answer one message of the entry.

        Raises:
            SecureError: Of another form, or it cannot be done now.
        """
        said = parse_answer(message)
        ask = said.get("ask") if isinstance(said, dict) else None
        if ask == "execute":
            return canonical_json(await self._run_circuit(said))
        answering = _ANSWERS.get(ask) if isinstance(ask, str) else None
        if answering is None:
            raise MalformedInputError(f"prover: got {ask!r:.40}, want a known question")
        return canonical_json(await asyncio.to_thread(answering, self, said))

    async def _run_circuit(self, said: Any) -> dict[str, Any]:
        got = fields(said, ("ask", "boundary", "salt"), what="execute")
        boundary = parse_values(got["boundary"], what="execute boundary")
        salt = parse_values(got["salt"], what="execute salt")
        async with self._executing:
            made = await asyncio.to_thread(self._execute, boundary, salt)
        return {"boundary": list(made)}

    def _tell_order_key(self, said: Any) -> dict[str, Any]:
        fields(said, ("ask",), what="order-key")
        return {"order_key": self._order_key, "manifest": self._manifest}

    def _submit(self, said: Any) -> dict[str, Any]:
        got = fields(said, ("ask", "orders"), what="submit")
        taken = []
        for order in parse_orders(got["orders"]):
            about, _ = unpack_order(order.body)
            if order.key.segment != self._index or order.key != JobKey(
                about.receipt_id, about.infer, about.segment
            ):
                raise MalformedInputError(
                    f"order {order.key}: is about {about.segment} of "
                    f"{about.receipt_id}, want segment {self._index}"
                )
            job = Job(
                key=order.key,
                order=order.body,
                priority=Priority(order.priority),
                deadline=parse_time(order.deadline, what="order deadline"),
                memory_bytes=self._memory_bytes,
            )
            taken.append(self.store.submit(job))
        self._wake()
        return {"taken": taken}

    def _link(self, said: Any) -> dict[str, Any]:
        got = fields(said, ("ask", "key", "link"), what="link")
        link = decode_base64(got["link"], what="link", max_bytes=MAX_LINK_BYTES)
        self.store.put_link(key_from_json(got["key"]), link)
        self._wake()
        return {}

    def _collect(self, said: Any) -> dict[str, Any]:
        keys = _keys(said, "collect")
        found = self.store.status(keys)
        links = self.store.links([k for k in keys if k in found and found[k].linked])
        done = [k for k in keys if k in found and found[k].state is State.DONE]
        results = self.store.results(done)
        reports, left = [], _MOST_COLLECTED_BYTES
        for key in keys:
            size = len(links.get(key, b"")) + len(results.get(key, b""))
            # Neither, where not both: an order whose link was not seen is not settled.
            fits = left == _MOST_COLLECTED_BYTES or size <= left
            given = (links, results) if fits else ({}, {})
            left -= size if fits else 0
            reports.append(_report(key, found.get(key), *given))
        return reports_to_json(reports)

    def _forget(self, said: Any) -> dict[str, Any]:
        self.store.forget(_keys(said, "forget"))
        return {}

    def _cancel(self, said: Any) -> dict[str, Any]:
        for key in _keys(said, "cancel"):
            self.store.cancel(key, "nobody needs it any more")
        self._wake()
        return {}

    def _wake(self) -> None:
        if self.farm is not None:
            self.farm.wake()


def _keys(said: Any, ask: str) -> Sequence[JobKey]:
    return parse_keys(fields(said, ("ask", "keys"), what=ask)["keys"])


def _report(
    key: JobKey,
    status: JobStatus | None,
    links: Mapping[JobKey, bytes],
    results: Mapping[JobKey, bytes],
) -> JobReport:
    if status is None:
        return JobReport(key=key, state="missing")
    result = results.get(key)
    return JobReport(
        key=key,
        state=_STATES[status.state],
        link=links.get(key),
        attachment=None
        if result is None
        else parse_json(result, what="proof", max_bytes=MAX_ENVELOPE_BYTES),
        reason=status.reason,
    )


_ANSWERS: Mapping[str, Callable[[ProverCore, Any], dict[str, Any]]] = {
    "order-key": ProverCore._tell_order_key,
    "submit": ProverCore._submit,
    "link": ProverCore._link,
    "collect": ProverCore._collect,
    "forget": ProverCore._forget,
    "cancel": ProverCore._cancel,
}
