"""The entry's desk for proofs: what one prover, order or link costs the others."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bentoml_secure.attestation.evidence import VerifiedClaims
from bentoml_secure.digest import Digest, canonical_json, parse_json
from bentoml_secure.errors import ConfigurationError, UnavailableError
from bentoml_secure.proofs.folder import parse_verification_keys
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.proofs.sealing import PUBLIC_BYTES
from bentoml_secure.receipts.keeping import StoredOrder
from bentoml_secure.receipts.store import SqliteReceiptStore
from bentoml_secure.serving import proof_desk
from bentoml_secure.serving.peers import Peer
from bentoml_secure.serving.proof_desk import ProofDesk
from bentoml_secure.serving.proving import MAX_PROOFS, EntryProving
from bentoml_secure.session.keys import Session
from bentoml_secure.testing.receipts import build_draft
from tests import proven_case

SOON, LATER = "2126-11-23T12:00:00.000Z", "2126-11-23T13:00:00.000Z"
CLAIMS = VerifiedClaims(
    kind="simulated",
    report_data=bytes(64),
    claims={},
    platform_id="one",
    vendor="none",
    root=Digest("sha256:" + "00" * 32),
    issued_at=None,
    expires_at=None,
    simulated=True,
)


@dataclass
class Prover:
    """The other end of a channel: says of each order what a test wants it to."""

    state: Callable[[JobKey], str] = lambda key: "waiting"
    link: Callable[[JobKey], bytes | None] = lambda key: None
    name: str = "Prover"
    may_report: asyncio.Event | None = None
    submitted: list[JobKey] = field(default_factory=list)
    linked: list[JobKey] = field(default_factory=list)

    def require(self, _: float) -> Any:
        """Return one session, and what was shown in it."""
        result = SimpleNamespace(claims=CLAIMS)
        return SimpleNamespace(session=self, result=result)

    async def keep_attested(self) -> None:
        """Be attested."""

    async def close(self) -> None:
        """Have nothing to close."""

    async def ask(
        self, path: str, operation: str, message: bytes, _: Session, *, max_bytes: int
    ) -> bytes:
        """Answer as a prover does."""
        said = parse_json(message, what="message", max_bytes=max_bytes)
        if said["ask"] == "collect" and self.may_report is not None:
            await self.may_report.wait()
        return canonical_json(self._answer(said))

    def _answer(self, said: Any) -> dict[str, Any]:
        match said["ask"]:
            case "order-key":
                manifest = proven_case.set_up().manifest.digest
                return {"order_key": "00" * PUBLIC_BYTES, "manifest": manifest}
            case "submit":
                keys = [JobKey(*order["key"]) for order in said["orders"]]
                self.submitted += keys
                return {"taken": [True] * len(keys)}
            case "link":
                self.linked.append(JobKey(*said["key"]))
            case "collect":
                return {"jobs": [self._job(JobKey(*key)) for key in said["keys"]]}
        return {}

    def _job(self, key: JobKey) -> dict[str, Any]:
        link = self.link(key)
        return {
            "key": [key.receipt_id, key.infer, key.segment],
            "state": self.state(key),
            "link": None if link is None else base64.b64encode(link).decode(),
            "attachment": None,
            "reason": "",
        }


def order(receipt_id: str, segment: int, deadline: str = SOON) -> StoredOrder:
    return StoredOrder(
        key=JobKey(receipt_id, 0, segment),
        deadline=deadline,
        held_until=LATER,
        priority="critical",
        body=b"sealed",
    )


@pytest.fixture
def store(tmp_path: Path) -> SqliteReceiptStore:
    return SqliteReceiptStore(tmp_path / "receipts.sqlite")


def owe(store: SqliteReceiptStore, label: str, *orders: tuple[int, str]) -> str:
    """Keep a receipt that owes proofs; return its id."""
    draft = build_draft(proven_case.deploy(), label=label)
    name = draft.receipt.receipt_id
    kept = tuple(order(name, segment, deadline) for segment, deadline in orders)
    store.put(draft.receipt, replace(draft.bundle(), attachments=()), kept)
    return name


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nobody sets an event
        await asyncio.sleep(0.01)


@asynccontextmanager
async def working(
    store: SqliteReceiptStore, *provers: Prover, ended: list[str] | None = None
) -> AsyncIterator[ProofDesk]:
    set_up = proven_case.set_up()
    desk = ProofDesk(
        [(cast(Peer, prover), prover) for prover in provers],
        parse_verification_keys(set_up.document),
        set_up.document,
        set_up.backend,
        store,
    )

    async def note(receipt_id: str, proven: bool) -> None:
        """Write down which receipts were given up."""
        assert not proven
        if ended is not None:
            ended.append(receipt_id)

    await desk.start(note)
    try:
        async with asyncio.timeout(20):
            await until(lambda: desk.is_ready)
            yield desk
    finally:
        await desk.close()
        store.close()


async def test_orders_that_failed_do_not_hide_those_behind_them(
    store: SqliteReceiptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_desk, "_BATCH", 2)
    failing = [owe(store, f"failing {n}", (0, SOON), (1, SOON)) for n in range(3)]
    behind = owe(store, "behind", (0, LATER))
    prover = Prover(lambda key: "waiting" if key.receipt_id == behind else "failed")
    async with working(store, prover, Prover()) as desk:
        for receipt_id in failing:
            assert not await desk.wait(receipt_id, 10)
        await until(lambda: JobKey(behind, 0, 0) in prover.submitted)
        names = (*failing, behind)
        await until(lambda: [store.owed(name) for name in names] == [0, 0, 0, 1])
        # Dropped is not proven, whoever asks later.
        assert not await desk.wait(failing[0], 10)


async def test_a_receipt_that_two_provers_fail_ends_once(
    store: SqliteReceiptStore,
) -> None:
    name = owe(store, "a request", (0, SOON), (1, SOON))
    ended: list[str] = []
    second = Prover(lambda key: "failed", may_report=asyncio.Event())
    async with working(
        store, Prover(lambda key: "failed"), second, ended=ended
    ) as desk:
        assert not await desk.wait(name, 10)
        await until(lambda: ended == [name])
        # It was asked before that, and answers only now.
        assert second.may_report is not None
        second.may_report.set()
        behind = owe(store, "behind", (1, LATER))
        desk.wake(1)
        await until(lambda: behind in ended)
    assert ended == [name, behind]


async def test_a_link_is_handed_on_again_to_who_has_lost_it(
    store: SqliteReceiptStore,
) -> None:
    name = owe(store, "a request", (0, SOON), (1, SOON))
    first = Prover(lambda key: "running", link=lambda key: b"sealed link")
    second = Prover()
    # Its queue was lost after the link had come, and it is given the order again.
    second.state = lambda key: (
        "missing" if len(second.linked) == len(second.submitted) == 1 else "waiting"
    )
    async with working(store, first, second):
        await until(lambda: len(second.linked) == 2)
    assert second.submitted[:2] == [JobKey(name, 0, 1)] * 2


async def test_tensors_go_to_no_prover_that_a_scenario_does_not_place(
    store: SqliteReceiptStore,
) -> None:
    scenario = proven_case.deploy().scenario
    async with working(store, Prover(), Prover()) as desk:
        assert len(desk.order_keys(scenario)) == 2
        placed = replace(scenario, placement={"1": ("tdx",)})
        with pytest.raises(UnavailableError, match="simulated may not run segment 1"):
            desk.order_keys(placed)


async def test_more_proofs_than_a_receipt_holds_are_not_promised(
    store: SqliteReceiptStore,
) -> None:
    deployment = proven_case.deploy()
    inputs = build_draft(deployment).inputs
    async with working(store, Prover(), Prover()) as desk:
        proving = EntryProving(desk)
        last = MAX_PROOFS // 2 - 1
        proving.admit(deployment.scenario, last, inputs)
        with pytest.raises(ConfigurationError, match=f"at most {MAX_PROOFS} proofs"):
            proving.admit(deployment.scenario, last + 1, inputs)
