"""The process: every replica of a deployment on a port of its own, and control.

POST /behave   {"replica": NAME, "infer": BEHAVIOUR, "attest": BEHAVIOUR}
GET  /state    {"replicas": {NAME: URL}, "trapped": COUNT}
*    /trap     counted: where redirects lead
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from asyncio import StreamWriter
from pathlib import Path
from typing import Any

from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.errors import ConfigurationError, SecureError
from bentoml_secure.serving.asgi import Receive, Scope, Send
from bentoml_secure.serving.exchange import decode_reveal
from bentoml_secure.serving.runner_app import PREFIX, RunnerDoor
from bentoml_secure.serving.sealed import REVEAL
from bentoml_secure.session.bodies import RequestOpener, Whole
from bentoml_secure.split.runtime import load_segment
from bentoml_secure.statements import utc_now
from bentoml_secure.testing.rogue.answers import BODIES
from bentoml_secure.testing.rogue.attestations import ATTESTATIONS, as_offer
from bentoml_secure.testing.rogue.commitments import (
    COMMITTERS,
    COPYCAT,
    HONEST_COMMITTER,
    copied_answer,
)
from bentoml_secure.testing.rogue.records import RECORDS
from bentoml_secure.testing.rogue.replica import (
    HONEST,
    Answered,
    Replica,
    Turn,
    answer_reply,
)
from bentoml_secure.testing.rogue.streams import STREAMS
from bentoml_secure.testing.rogue.wire import (
    Port,
    Reply,
    Request,
    call,
    json_reply,
)

DEAD = "dead"
INFER = (HONEST, DEAD, *BODIES, *RECORDS, *STREAMS, *COMMITTERS)
ATTEST = (HONEST, *ATTESTATIONS)


async def _healthy(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand in for what BentoML answers behind the door: its health paths."""
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


class Host:
    """All replicas of one deployment in one process.

    Args:
        service: What ``bentoml_secure.service`` made.
        port: Of control.
        marker: Folder that pickles make where they are loaded.
    """

    def __init__(self, service: Any, port: int, marker: Path) -> None:
        self.trapped = 0
        self._control = Port(self._serve_control, port)
        made = service.all_services()
        names = sorted(name for name in made if name != service.name)
        self.deployment = made[names[0]].inner.deployment
        self.replicas = {
            name: self._replica(made[name].inner, marker) for name in names
        }
        self._ports = {
            name: Port(_Served(replica).serve)
            for name, replica in self.replicas.items()
        }
        for replica in self.replicas.values():
            replica.neighbour = next(
                other
                for other in self.replicas.values()
                if other is not replica and other.segment_index == replica.segment_index
            )

    def _replica(self, runner: Any, marker: Path) -> Replica:
        deployment, index = runner.deployment, runner.segment_index
        loaded = load_segment(deployment.folder, deployment.plan, index, threads=1)
        core = deployment.runner(runner.name, index, loaded.run_unchecked)
        dev_root = Path(os.environ["BENTOML_SECURE_DEV_ROOT"])
        return Replica(
            name=runner.name,
            segment_index=index,
            core=core,
            run=loaded.run_unchecked,
            door=RunnerDoor(_healthy, lambda: core, deployment.max_message_bytes),
            attester=SimulatedAttester.from_folder(dev_root, clock=utc_now),
            trap_url=f"{self._control.url}/trap",
            marker=marker,
            max_message_bytes=deployment.max_message_bytes,
        )

    def url(self, name: str) -> str:
        """Return where a replica answers, once it does."""
        return self._ports[name].url

    async def start(self) -> None:
        """Begin to listen on every port."""
        for port in (*self._ports.values(), self._control):
            await port.open()

    async def shut(self) -> None:
        """Refuse connections on every port."""
        for port in (*self._ports.values(), self._control):
            await port.shut()

    async def _serve_control(self, request: Request, writer: StreamWriter) -> bool:
        reply = await self.controlled(request)
        writer.write(reply.encode())
        await writer.drain()
        return True

    async def controlled(self, request: Request) -> Reply:
        """Answer a request to the control port."""
        if request.path.startswith("/trap"):
            self.trapped += 1
            return json_reply({})
        if request.path == "/behave":
            return await self._behave(json.loads(request.body))
        urls = {name: self.url(name) for name in self.replicas}
        return json_reply({"replicas": urls, "trapped": self.trapped})

    async def _behave(self, wanted: dict[str, str]) -> Reply:
        name = wanted.get("replica", "")
        infer, attest = wanted.get("infer", HONEST), wanted.get("attest", HONEST)
        if name not in self.replicas or infer not in INFER or attest not in ATTEST:
            return json_reply({"error": f"no such replica or behaviour: {wanted}"}, 404)
        replica = self.replicas[name]
        replica.infer, replica.attest = infer, attest
        if infer == DEAD:
            await self._ports[name].shut()
        else:
            await self._ports[name].open()
        return json_reply({})


class _Served:
    """One replica's port."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def serve(self, request: Request, writer: StreamWriter) -> bool:
        replica = self._replica
        if request.path == f"{PREFIX}/infer":
            return await self._infer(request, writer)
        if request.path == f"{PREFIX}/reveal":
            return await self._reveal(request, writer)
        if request.path == f"{PREFIX}/session/hello" and replica.attest != HONEST:
            nonce = bytes.fromhex(json.loads(request.body)["nonce"])
            shown = ATTESTATIONS[replica.attest](replica, nonce)
            reply = json_reply(as_offer(shown))
        else:
            reply = await call(replica.door, request)
        writer.write(reply.encode())
        await writer.drain()
        return True

    async def _infer(self, request: Request, writer: StreamWriter) -> bool:
        replica = self._replica
        try:
            turn = Turn.of(replica, request)
        except SecureError:
            # What does not open is refused as an honest replica refuses it.
            writer.write((await call(replica.door, request)).encode())
            await writer.drain()
            return True
        if replica.infer in STREAMS:
            async for piece in STREAMS[replica.infer](turn):
                writer.write(piece)
                await writer.drain()
            return False
        if replica.infer in RECORDS:
            sealed = RECORDS[replica.infer](turn)
        elif turn.exchange.commit:
            sealed = turn.sealed(await _committed(turn))
        elif replica.infer in BODIES:
            sealed = turn.sealed(BODIES[replica.infer](turn))
        elif replica.infer == COPYCAT:
            sealed = turn.sealed(turn.body(await copied_answer(turn)))
        else:
            body = turn.body()
            sealed = turn.sealed(body)
            replica.answered = Answered(sealed, body)
            replica.shown = {turn.exchange.request_id: turn.outputs}
        writer.write(answer_reply(sealed).encode())
        await writer.drain()
        return True

    async def _reveal(self, request: Request, writer: StreamWriter) -> bool:
        replica, asked = self._replica, Whole(0)
        opener = RequestOpener(
            replica.core.responder, REVEAL, len(request.body), lambda _: asked
        )
        try:
            opener.feed(request.body)
            answering = opener.finish()
            kept, show = replica.pledges.pop(decode_reveal(asked.result()))
        except (SecureError, KeyError):
            writer.write((await call(replica.door, request)).encode())
            await writer.drain()
            return True
        body = await show(kept)
        replica.shown = {kept.turn.exchange.request_id: kept.outputs}
        sealed = b"".join(answering.seal(200, (body,), (len(body),)).pieces)
        writer.write(answer_reply(sealed).encode())
        await writer.drain()
        return True


async def _committed(turn: Turn) -> bytes:
    replica = turn.replica
    committer = COMMITTERS.get(replica.infer, HONEST_COMMITTER)
    kept = await committer.commit(turn)
    replica.pledged = {turn.exchange.request_id: kept}
    replica.pledges[turn.exchange.exchange_id] = kept, committer.reveal
    return kept.said


def load_service(target: str) -> Any:
    """Import ``module:Class`` from the working folder.

    Raises:
        ConfigurationError: Not of that form.
    """
    module, _, name = target.partition(":")
    if not module or not name:
        raise ConfigurationError(f"service: got {target!r:.100}, want module:Class")
    sys.path.insert(0, str(Path.cwd()))
    return getattr(importlib.import_module(module), name)


async def run(target: str, port: int, marker: Path) -> None:
    """Host the replicas of a service until cancelled."""
    host = Host(load_service(target), port, marker)
    await host.start()
    await asyncio.Event().wait()
