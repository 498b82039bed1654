"""Attempts on a Ray cluster, which finds each a node with the memory that it needs.

    farm -> thread -> driver (a child without keys) -> cluster -> worker -> the proof

Cancelling kills the driver; the cluster ends what a driver leaves behind. Nothing that
travels is secret: orders, links and results as in the job store, and ``context``. A
worker gets its keys as a prover does, or has none.

What a cluster's nodes take from each other they run: it is one trust domain, and its
ports are for its own nodes only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bentoml_secure.errors import ConfigurationError, SecureError, UnavailableError
from bentoml_secure.proofs.backends.one_shot import Task, run
from bentoml_secure.proofs.executors.local import Local
from bentoml_secure.proofs.jobs.job import MAX_LINK_BYTES, MAX_RESULT_BYTES
from bentoml_secure.proofs.proof import Limits
from bentoml_secure.proofs.work import Event, Payload
from bentoml_secure.signing import decode_base64

_DRIVER = "bentoml_secure.proofs.executors.ray_driver"
_DRIVER_BYTES = 8 << 30
"""Of address space that Ray's threads set aside; it uses some 100 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an attempt may run, and on what.

    Attributes:
        address: Of the cluster's head, host:port.
        path: "module:function" that opens the work on a worker, from the context.
        context: What it is told; nothing secret.
        cpus: That an attempt is given.
        seconds: Until an attempt is given up, the wait for a node included.
        resources: Of the cluster, that a node must have, by name.
    """

    address: str
    path: str
    context: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 1
    seconds: float = 3600.0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        # Ray also takes "auto" and "local": clusters of its own choosing.
        if not host or not port.isdecimal() or self.cpus < 1 or self.seconds <= 0:
            raise ConfigurationError(
                f"cluster: got {self.address!r:.80} with {self.cpus} cores for "
                f"{self.seconds} s, want host:port and more than nothing of both."
            )


class RayCluster:
    """An executor. A job's memory is reserved on the node that its attempt runs on."""

    def __init__(self, placement: Placement) -> None:
        self._local = Local(_Driven(placement))

    def start(
        self, payload: Payload, tell: Callable[[Event], None]
    ) -> Callable[[], None]:
        """Begin an attempt and return what ends it early."""
        return self._local.start(payload, tell)


class _Driven:
    """The work, as a driver sees to it."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    def work(self, payload: Payload, executed: Callable[[bytes | None], None]) -> bytes:
        """Have one attempt made."""
        results: list[bytes] = []

        def said(event: dict[str, Any]) -> None:
            """Take one event of the driver."""
            match event:
                case {"executed": None}:
                    executed(None)
                case {"executed": data}:
                    executed(_bytes(data, "link", MAX_LINK_BYTES))
                case {"finished": data}:
                    results.append(_bytes(data, "result", MAX_RESULT_BYTES))
                case {"failed": reason, "retry": retry}:
                    kind = UnavailableError if retry is True else SecureError
                    raise kind(str(reason))

        seconds = self._placement.seconds
        run(
            self._task(payload),
            Limits(memory_bytes=_DRIVER_BYTES, seconds=seconds),
            said,
        )
        if len(results) != 1:
            raise UnavailableError("cluster: an attempt ended without a result")
        return results[0]

    def _task(self, payload: Payload) -> Task:
        placement, key = self._placement, payload.key
        files = {"order": payload.order}
        if payload.link is not None:
            files["link"] = payload.link
        return Task(
            module=_DRIVER,
            name="attempt",
            arguments={
                "address": placement.address,
                "path": placement.path,
                "context": dict(placement.context),
                "cpus": placement.cpus,
                "resources": dict(placement.resources),
                "memory_bytes": payload.memory_bytes,
                "key": [key.receipt_id, key.infer, key.segment],
                "name": f"proof {key}",
            },
            files=files,
            missing="ray",
            # How the cluster's connections are encrypted, and who may make them.
            environment={
                name: value
                for name, value in os.environ.items()
                if name.startswith("RAY_")
            },
        )


def _bytes(data: object, what: str, most: int) -> bytes:
    return decode_base64(data, what=f"cluster {what}", max_bytes=most)
