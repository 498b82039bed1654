"""Attempts on this machine: a thread each, which waits for a child process."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from bentoml_secure.errors import SecureError, UnavailableError
from bentoml_secure.proofs.backends.one_shot import Children
from bentoml_secure.proofs.work import (
    Event,
    Executed,
    Failed,
    Finished,
    Payload,
    Work,
)


class Local:
    """An executor: whoever schedules bounds how many attempts run at once."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def start(
        self, payload: Payload, tell: Callable[[Event], None]
    ) -> Callable[[], None]:
        """Begin an attempt and return what ends it early."""
        children = Children()
        threading.Thread(
            target=self._attempt,
            args=(payload, tell, children),
            name=f"proof {payload.key}",
            daemon=True,
        ).start()
        return children.kill

    def _attempt(
        self, payload: Payload, tell: Callable[[Event], None], children: Children
    ) -> None:
        with children.of_this_thread():
            tell(perform(self._work, payload, lambda link: tell(Executed(link))))


def perform(
    work: Work, payload: Payload, executed: Callable[[bytes | None], None]
) -> Finished | Failed:
    """Run an attempt to its end, whatever it raises.

    Args:
        work: What to run.
        payload: What to run it on.
        executed: Told once the segment's output is there.
    """
    try:
        return Finished(work.work(payload, executed))
    except SecureError as error:
        return Failed(str(error), retry=isinstance(error, UnavailableError))
    # A job that ends without a word would hold its lease for ever.
    except BaseException as error:  # noqa: BLE001
        # Its message may quote what was worked on; where it arose does not.
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(at.filename).name}:{at.lineno}"
        return Failed(f"{type(error).__name__} at {where}", retry=False)
