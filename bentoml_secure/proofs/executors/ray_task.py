"""What a worker of a Ray cluster runs: one attempt, as a stream of plain tuples.

    ("executed", link or None), then ("finished", result) or ("failed", reason, retry)

Workers import this module by name; no code of ours travels.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, cast

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.executors.local import perform
from bentoml_secure.proofs.jobs.job import JobKey
from bentoml_secure.proofs.work import Finished, Payload, Work

Told = tuple[str, *tuple[Any, ...]]
OpenWork = Callable[[Mapping[str, str]], Work]


class _Opening:
    """A work that opens when it is used, so that what fails then fails the attempt."""

    def __init__(self, path: str, context: Mapping[str, str]) -> None:
        self._named = (path, tuple(sorted(context.items())))

    def work(self, payload: Payload, executed: Callable[[bytes | None], None]) -> bytes:
        """Open the work, and do it."""
        return _opened(*self._named).work(payload, executed)


# Ray keeps workers: opening may mean to attest this process, and to fetch a key.
@lru_cache(maxsize=4)
def _opened(path: str, context: tuple[tuple[str, str], ...]) -> Work:
    module, _, name = path.partition(":")
    try:
        open_work = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"cluster: a worker cannot import {path}: {error}.",
            remedy="Install the same release, and the project, on every node.",
        ) from error
    return cast(OpenWork, open_work)(dict(context))


def attempt(
    path: str,
    context: Mapping[str, str],
    key: tuple[str, int, int],
    order: bytes,
    link: bytes | None,
    memory_bytes: int,
) -> Iterator[Told]:
    """Run one attempt; yield what it tells while it runs.

    Args:
        path: "module:function" of what opens the work.
        context: What that is called with; nothing secret.
        key: Of the job.
        order: Of the job.
        link: Of the job.
        memory_bytes: That the attempt may take.
    """
    payload = Payload(
        key=JobKey(*key), order=order, link=link, memory_bytes=memory_bytes
    )
    told: queue.SimpleQueue[Told] = queue.SimpleQueue()

    def run() -> None:
        """Put in the queue what the work tells."""
        work = _Opening(path, context)
        ended = perform(work, payload, lambda made: told.put(("executed", made)))
        match ended:
            case Finished(result):
                told.put(("finished", result))
            case _:
                told.put(("failed", ended.reason, ended.retry))

    threading.Thread(target=run, daemon=True).start()
    while True:
        event = told.get()
        yield event
        if event[0] != "executed":
            return
