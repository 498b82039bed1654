"""Asks the encoder with real sentences, and holds each answer against the whole model.

An answer counts with what its receipt says, late votes included: who answered
otherwise, who gave no answer. The client has judged the receipt before it is looked at.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

import numpy as np
import onnxruntime

from benchmarks.cheats_stage import Stage
from bentoml_secure import SecureClient
from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.errors import QuorumNotReached
from bentoml_secure.split.runtime_onnx import session_options
from bentoml_secure.split.runtimes import GraphLevel
from bentoml_secure.tensors import Array
from examples.encoder.prepare import TOKENIZER, WHOLE
from examples.encoder.sentences import text
from services.wordpieces import WordPieces

# Every fourth request has two texts, so that one of them is filled up.
_PAIR_EVERY = 4
_PARTNER = 1000
ALL_ANSWER_SECONDS = 180.0


def texts_of(number: int) -> list[str]:
    """Return the texts of a request: one, or two."""
    if number % _PAIR_EVERY == _PAIR_EVERY - 1:
        return [text(number), text(number + _PARTNER)]
    return [text(number)]


class Whole:
    """The whole model in this process: what an answer ought to be."""

    def __init__(self, stage: Stage) -> None:
        self._pieces = WordPieces(stage.models / TOKENIZER)
        self._session = onnxruntime.InferenceSession(
            stage.models / WHOLE,
            session_options(1, GraphLevel.EXTENDED),
            providers=["CPUExecutionProvider"],
        )

    def feed(self, number: int) -> dict[str, Array]:
        """Return the model's inputs of a request."""
        return self._pieces.feed(texts_of(number), truncate=False)

    def embeddings(self, number: int) -> Array:
        """Return float32[texts, 384]."""
        (made,) = self._session.run(["sentence_embedding"], self.feed(number))
        return np.asarray(made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request.

    Attributes:
        named: (segment, replica) of all who answered otherwise, as the receipt says.
        absent: Names of the replicas that gave no answer.
        distance: Of the answer from the whole model's; None if they cannot be compared.
        refused: No answer was agreed.
        seconds: Until the receipt had been judged, with its late votes.
    """

    named: frozenset[tuple[int, str]]
    absent: frozenset[str]
    distance: float | None
    refused: bool
    seconds: float


class Questioner:
    """Asks one deployment, each time something new.

    Args:
        url: Of the entry.
        stage: What it serves.
    """

    def __init__(self, url: str, stage: Stage) -> None:
        self._client = SecureClient(url, stage.trust, wait_seconds=20.0)
        self._whole = Whole(stage)
        self._distance = load_rule("within_tolerance").distance
        self._number = 0

    def ask(self) -> Asked:
        """Ask the next request.

        Raises:
            SecureError: It was refused for another reason than disagreement, or its
                receipt does not hold.
            RuntimeError: The receipt still waits for votes.
        """
        number, self._number = self._number, self._number + 1
        want = self._whole.embeddings(number)
        started = time.monotonic()
        try:
            answer = self._client.call("embed", {"texts": texts_of(number)})
        except QuorumNotReached:
            taken = time.monotonic() - started
            return Asked(
                named=frozenset(),
                absent=frozenset(),
                distance=None,
                refused=True,
                seconds=taken,
            )
        taken = time.monotonic() - started
        if answer.is_provisional:
            raise RuntimeError(f"receipt {answer.receipt_id}: votes are still out")
        claims = answer.verdict.claims
        got = np.asarray(answer.value, np.float32)
        return Asked(
            named=frozenset((d["segment"], d["replica"]) for d in claims["dissenters"]),
            absent=frozenset(a["replica"] for a in claims["absent"]),
            distance=self._distance({"y": got}, {"y": want}),
            refused=False,
            seconds=taken,
        )

    def ask_until_whole(self) -> None:
        """Ask until every replica has answered one request.

        Raises:
            RuntimeError: They do not within ``ALL_ANSWER_SECONDS``.
        """
        ends = time.monotonic() + ALL_ANSWER_SECONDS
        asked = self.ask()
        while asked.refused or asked.absent:
            if time.monotonic() > ends:
                absent = ", ".join(sorted(asked.absent)) or "a quorum"
                raise RuntimeError(f"not there yet: {absent}")
            time.sleep(0.3)
            asked = self.ask()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
