"""What one secured HTTP request gathers between its arrival and its receipt."""

from __future__ import annotations

import asyncio
import secrets
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from bentoml_secure.consensus import committee
from bentoml_secure.digest import NONCE_BYTES, SALT_BYTES, derive_salt, parse_hex
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    SecureError,
    UnavailableError,
)
from bentoml_secure.receipts.draw import DRAW_BYTES, Draw, parse_commitment
from bentoml_secure.receipts.receipt import (
    CALLER,
    ENTRY,
    InferRecord,
    derive_request_id,
)
from bentoml_secure.scenario import Scenario
from bentoml_secure.serving.asgi import Headers, header
from bentoml_secure.serving.draws import Draws
from bentoml_secure.serving.placement import misplaced
from bentoml_secure.session.keys import Session
from bentoml_secure.statements import utc_now

if TYPE_CHECKING:
    from bentoml_secure.serving.endtoend import Doubted
    from bentoml_secure.serving.lockstep import Kept, PendingVotes
    from bentoml_secure.serving.ordering import Provable
    from bentoml_secure.serving.peers import Attested, Peer

NONCE = b"bsec-nonce"
ROOT_SALT = b"bsec-root-salt"
SCENARIO = b"bsec-scenario"
EVIDENCE_NONCE = b"bsec-evidence-nonce"
DRAW = b"bsec-draw"


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """One request: what the caller sent, and what its ``infer`` calls left behind.

    Attributes:
        nonce: The caller's 32 bytes, or the entry's where it sent none.
        root_salt: 32 secret bytes, likewise.
        draw: The entry's 32 bytes; the request id follows from them and the nonce.
        scenario: What the request must carry.
        evidence_nonce: The nonce under which the caller has the entry's evidence.
        session: That the request came sealed by; None where it came as it is.
        infers: Records of the calls so far.
        failure: The first ``infer`` that failed; no answer leaves after that.
        pinned: Evidence of each replica, the same for the whole request.
        out: Why a replica had none when it was drawn; where voices are counted it has
            none for the whole request then.
        late: Votes still being collected.
        doubted: Chains that ended apart from the agreed one.
        kept: What was computed, where the request is to be audited.
        request_id: The 16 bytes that name this request and its receipt.
        seed: 32 bytes that every draw of this request follows from.
    """

    api: str
    nonce: bytes
    nonce_drawn_by: str
    root_salt: bytes
    salt_drawn_by: str
    draw: Draw
    scenario: Scenario
    evidence_nonce: bytes | None
    session: Session | None
    started_at: datetime
    infers: list[InferRecord] = field(default_factory=list)
    next_index: int = 0
    failure: SecureError | None = None
    pinned: dict[str, Attested] = field(default_factory=dict)
    out: dict[str, str] = field(default_factory=dict)
    late: list[PendingVotes] = field(default_factory=list)
    doubted: list[Doubted] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    provable: list[Provable] = field(default_factory=list)
    request_id: bytes = field(init=False)
    seed: bytes = field(init=False)

    def __post_init__(self) -> None:
        # Once: every salt and every exchange of the request needs it.
        r = bytes.fromhex(self.draw.r)
        self.request_id = derive_request_id(r, self.nonce)
        self.seed = committee.seed(r, self.nonce, self.request_id)

    def salt(self, infer_index: int, purpose: str, name: str) -> bytes:
        """Return the salt of one tensor or body of this request."""
        return derive_salt(
            self.root_salt,
            request_id=self.request_id,
            infer_index=infer_index,
            purpose=purpose,
            name=name,
        )

    def pin(self, peer: Peer) -> Attested:
        """Return a replica's evidence, one and the same for the whole request.

        Raises:
            UnavailableError: There is none that the scenario accepts, or it is of a
                kind that may not run that segment.
        """
        if (pinned := self.pinned.get(peer.name)) is not None:
            return pinned
        attested = peer.require(self.scenario.evidence_max_age_seconds)
        reason = misplaced(attested.result.claims, self.scenario, peer.index)
        if reason is not None:
            raise UnavailableError(reason)
        self.pinned[peer.name] = attested
        return attested

    @property
    def kept_bytes(self) -> int:
        """Of the tensors that wait for referees."""
        held: list[Kept] = [*self.kept, *self.doubted]
        return sum(kept.values.nbytes for kept in held if kept.values is not None)

    def forget(self) -> None:
        """Let go of the tensors that wait for referees, who then say so."""
        self.kept[:] = [replace(each, values=None) for each in self.kept]
        self.doubted[:] = [replace(each, values=None) for each in self.doubted]

    async def abandon(self) -> None:
        """Cancel what still runs for this request."""
        tasks = [pending.task for pending in self.late]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_current: ContextVar[RequestContext] = ContextVar("bentoml_secure_request")


def enter(context: RequestContext) -> None:
    """Make ``context`` that of the running task and of what it starts."""
    _current.set(context)


def current() -> RequestContext:
    """Return the context of the request that is being served.

    Raises:
        ConfigurationError: There is none: called outside a request, or from a
            batched API, whose calls belong to several requests at once.
    """
    try:
        return _current.get()
    except LookupError:
        raise ConfigurationError(
            "infer was called outside a secured request.",
            remedy="Call it from an API method of the service (batchable=False).",
        ) from None


def draw_context(
    headers: Headers,
    api: str,
    scenario: Scenario,
    started_at: datetime,
    session: Session | None = None,
    draws: Draws | None = None,
) -> RequestContext:
    """Make the context of a request; what the caller did not send is drawn.

    Raises:
        MalformedInputError: A header of another form; a commitment named outside a
            session, or without a nonce.
        VerificationError: A commitment that is not open in the session.
    """
    nonce = _hex_header(headers, NONCE, NONCE_BYTES)
    root_salt = _hex_header(headers, ROOT_SALT, SALT_BYTES)
    return RequestContext(
        api=api,
        nonce=nonce or secrets.token_bytes(NONCE_BYTES),
        nonce_drawn_by=CALLER if nonce else ENTRY,
        root_salt=root_salt or secrets.token_bytes(SALT_BYTES),
        salt_drawn_by=CALLER if root_salt else ENTRY,
        draw=_draw(headers, nonce, session, draws),
        scenario=scenario,
        evidence_nonce=_hex_header(headers, EVIDENCE_NONCE, NONCE_BYTES),
        session=session,
        started_at=started_at,
    )


def own_context(scenario: Scenario) -> RequestContext:
    """Make the context of a request that the entry makes itself, for a trial."""
    return RequestContext(
        api="",
        nonce=secrets.token_bytes(NONCE_BYTES),
        nonce_drawn_by=ENTRY,
        root_salt=secrets.token_bytes(SALT_BYTES),
        salt_drawn_by=ENTRY,
        draw=Draw.of(secrets.token_bytes(DRAW_BYTES)),
        scenario=scenario,
        evidence_nonce=None,
        session=None,
        started_at=utc_now(),
    )


def _draw(
    headers: Headers, nonce: bytes | None, session: Session | None, draws: Draws | None
) -> Draw:
    name = header(headers, DRAW)
    if name is None:
        return Draw.of(secrets.token_bytes(DRAW_BYTES))
    what = f"header {DRAW.decode()}"
    commitment = parse_commitment(name, what=what)
    if session is None or draws is None:
        raise MalformedInputError(f"{what}: counts in a sealed request only")
    if nonce is None:
        # The entry would draw both, and its commitment would bind it to nothing.
        raise MalformedInputError(f"{what}: wants a {NONCE.decode()} beside it")
    return draws.use(session, commitment)


def _hex_header(headers: Headers, name: bytes, length: int) -> bytes | None:
    text = header(headers, name)
    if text is None:
        return None
    return parse_hex(text, what=f"header {name.decode()}", length=length)
