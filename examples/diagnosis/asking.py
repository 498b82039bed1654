"""Sends the test set to a secured service, one request per sample, and keeps it all.

Of every request four files are kept: the receipt's bundle and the two bodies, so that
anyone can check them again, and the salt that opens the receipt's commitments, which
is the caller's secret.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bentoml_secure import SecureClient
from bentoml_secure.client import Answer
from bentoml_secure.errors import QuorumNotReached
from bentoml_secure.receipts.verify import Verdict
from examples.diagnosis.train import Floats

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request that was answered, and whose receipt the client accepted.

    Attributes:
        malignant: float32, as served.
        verdict: On the receipt.
        answer_seconds: Until the answer had come.
        verified_seconds: Until its receipt had been fetched and judged as well; where
            a vote was late, the wait for it included.
        bundle: File of the receipt's bundle; beside it are its other files.
    """

    malignant: np.float32
    verdict: Verdict
    answer_seconds: float
    verified_seconds: float
    bundle: Path

    def parties(self) -> Sequence[Mapping[str, Any]]:
        """Return the processes whose evidence the receipt holds, as verified."""
        parties: Sequence[Mapping[str, Any]] = self.verdict.claims["parties"]
        return parties

    def dissenters(self) -> set[str]:
        """Return the replicas that answered otherwise, late votes included."""
        return {entry["replica"] for entry in self.verdict.claims["dissenters"]}

    def absent(self) -> set[str]:
        """Return the replicas that gave no answer, though they were asked."""
        return self._missing() - self.quarantined()

    def quarantined(self) -> set[str]:
        """Return the replicas that had no vote, for what they answered before."""
        return {
            entry["replica"]
            for entry in self.verdict.claims["absent"]
            if entry.get("reason", "").startswith(("in quarantine", "expelled"))
        }

    def _missing(self) -> set[str]:
        return {entry["replica"] for entry in self.verdict.claims["absent"]}


def ask_all(
    url: str,
    trust: Path,
    features: Floats,
    folder: Path,
    *,
    scenario: str,
    before: Callable[[int], None] = lambda number: None,
) -> tuple[Asked, ...]:
    """Ask about one sample after the other.

    Args:
        url: Of the entry.
        trust: The caller's trust file.
        features: float32[samples, 30].
        folder: Gets the files.
        scenario: What each receipt must carry.
        before: Called with the number of each request, from 0.

    Raises:
        SecureError: A refusal, or a receipt that does not hold.
    """
    folder.mkdir(parents=True)
    asked = []
    with SecureClient(url, trust, scenario=scenario) as client:
        for number, sample in enumerate(features):
            before(number)
            started = time.perf_counter()
            answer = client.call("diagnose", {"features": [sample.tolist()]})
            if answer.is_provisional:
                answer = client.confirm(answer)
            seconds = time.perf_counter() - started
            asked.append(kept(answer, seconds, folder / f"{number:03}"))
    return tuple(asked)


def await_all(
    url: str,
    trust: Path,
    sample: Floats,
    *,
    scenario: str,
    seconds: float = PATIENCE_SECONDS,
) -> None:
    """Ask until no replica is missing from the receipt, or the patience ends.

    A deployment is ready once a quorum is. Who stays away is named in later receipts.

    Args:
        url: Of the entry.
        trust: The caller's trust file.
        sample: float32[30].
        scenario: What each receipt must carry.
        seconds: Of patience.
    """
    ends = time.monotonic() + seconds
    with SecureClient(url, trust, scenario=scenario) as client:
        while time.monotonic() < ends:
            # Where one of the first two lies, there is no quorum before the third.
            with suppress(QuorumNotReached):
                answer = client.call("diagnose", {"features": [sample.tolist()]})
                if not answer.verdict.claims["absent"]:
                    return
            time.sleep(0.2)


def kept(answer: Answer, seconds: float, stem: Path) -> Asked:
    """Write the files of one answered request.

    Args:
        answer: Whose receipt the client accepted.
        seconds: Until then.
        stem: Of the files' names.
    """
    bundle = stem.with_suffix(".bundle.json")
    bundle.write_text(json.dumps(answer.bundle.to_json()))
    stem.with_suffix(".request").write_bytes(answer.question.body)
    stem.with_suffix(".response").write_bytes(answer.body)
    stem.with_suffix(".salt").write_text(answer.root_salt.hex())
    waited = answer.answered_at - answer.question.asked_at
    return Asked(
        malignant=np.float32(answer.value["malignant"][0]),
        verdict=answer.verdict,
        answer_seconds=waited.total_seconds(),
        verified_seconds=seconds,
        bundle=bundle,
    )


def percentile_ms(seconds: Sequence[float], percent: float) -> float:
    """Return a percentile of durations, in milliseconds."""
    return float(np.percentile(seconds, percent)) * 1000
