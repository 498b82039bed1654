"""A device that is slow: who waits for it is bounded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bentoml_secure.session.responders import MAX_WAITING, RateLimitedError
from tests.unit.serving.serving_parts import Ground, make_ground, split_skips


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("skips")
    split_skips(folder)
    return make_ground(folder / "plan")


def test_callers_beyond_a_few_do_not_wait(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    responder = ground.core(0).responder
    gate, attest = threading.Event(), responder.identity.attest

    def slow(*arguments: object) -> object:
        assert gate.wait(10)
        return attest(*arguments)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(responder.identity, "attest", slow)
    hello = {"version": 1, "nonce": "00" * 32}
    with ThreadPoolExecutor(MAX_WAITING) as pool:
        waiting = [pool.submit(responder.offer, hello) for _ in range(MAX_WAITING)]
        while responder._waiting._value:
            gate.wait(0.01)
        with pytest.raises(RateLimitedError, match="wait for the device already"):
            responder.offer(hello)
        gate.set()
        assert all(offered.result()["nonce"] for offered in waiting)
    # And again, once they are served.
    assert responder.offer(hello)["nonce"]
