"""What a call did, step by step, so that a failure says how far it came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Steps:
    """The steps of one call; an error that ends it carries them as notes."""

    def __init__(self) -> None:
        self._done: list[str] = []

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Do one step; an error within it gets the list of steps so far as notes.

        Args:
            what: The step in words, a verb first.
        """
        try:
            yield
        except Exception as error:
            for number, done in enumerate(self._done, 1):
                error.add_note(f"step {number}, {done}: done")
            error.add_note(f"step {len(self._done) + 1}, {what}: FAILED")
            raise
        self._done.append(what)
