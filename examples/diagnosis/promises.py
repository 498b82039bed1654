"""What the demo promises, and whether it holds. One that does not ends it with 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bentoml_secure.receipts.receipt import RUNNER
from examples.diagnosis.asking import Asked
from examples.diagnosis.report import Run, listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that the demo promises."""

    promise: str
    holds: bool
    found: str

    def __str__(self) -> str:
        verdict = "ok    " if self.holds else "FAILED"
        return f"  {verdict}  {self.promise}: {self.found}"


def check_runs(
    honest: Run, hurt: Run, *, liar: str, killed: str, altered_rejected: bool
) -> Iterable[Check]:
    """Return everything that must hold after both runs.

    Args:
        honest: With every replica up and honest.
        hurt: With ``liar`` lying throughout and ``killed`` killed on the way.
        liar: Name of a replica.
        killed: Name of a replica.
        altered_rejected: Whether an altered receipt was rejected.
    """
    for run in (honest, hurt):
        count = len(run.asked)
        yield Check(
            promise=f"{run.title}: answers are the whole model's, bit for bit",
            holds=run.equal == count,
            found=f"{run.equal}/{count}",
        )
        yield Check(
            promise=f"{run.title}: every receipt holds offline",
            holds=run.reverified == count,
            found=f"{run.reverified}/{count}",
        )
    accused = honest.named(Asked.dissenters)
    yield Check(
        promise=f"{honest.title}: nobody is accused",
        holds=not accused,
        found=listed(accused),
    )
    accused = hurt.named(Asked.dissenters)
    yield Check(
        # Every receipt says so, unless its answer came later than the grace.
        promise=f"{hurt.title}: the liar is named, and nobody else",
        holds=accused.keys() == {liar}
        and all(
            liar in a.dissenters() | a.absent() | a.quarantined() for a in hurt.asked
        ),
        found=listed(accused),
    )
    missed = hurt.named(Asked.absent)
    yield Check(
        promise=f"{hurt.title}: the killed replica was missed",
        holds=missed[killed] > 0,
        found=listed(missed),
    )
    yield Check(
        promise="a receipt with one digit changed is rejected",
        holds=altered_rejected,
        found="rejected" if altered_rejected else "ACCEPTED",
    )


def check_attested(run: Run, kinds: Mapping[str, str]) -> Iterable[Check]:
    """Return what receipts must say of the replicas' evidence.

    Args:
        run: Whose receipts.
        kinds: Of each replica's evidence.
    """
    shown = {
        (party["name"], party["platform"])
        for asked in run.asked
        for party in asked.parties()
        if party["role"] == RUNNER
    }
    counts = Counter(kind for _, kind in shown)
    yield Check(
        promise=f"{run.title}: every replica shows its own kind of evidence, always",
        holds=shown == set(kinds.items()),
        found=", ".join(f"{kind} x{n}" for kind, n in sorted(counts.items())),
    )
    apart = sum(_is_apart(asked) for asked in run.asked)
    yield Check(
        promise=f"{run.title}: those who agreed sit on two platforms",
        holds=apart == len(run.asked),
        found=f"{apart}/{len(run.asked)}",
    )


def _is_apart(asked: Asked) -> bool:
    out = asked.dissenters() | asked.absent()
    platforms: dict[str, set[str]] = {}
    for party in asked.parties():
        if party["role"] == RUNNER and party["name"] not in out:
            segment = party["name"].rpartition("Replica")[0]
            platforms.setdefault(segment, set()).add(party["platform_id"])
    return len(platforms) == asked.verdict.claims["segments"] and all(
        len(found) >= 2 for found in platforms.values()
    )


def check_sealed(
    *, plain: Sequence[Path], at_owner: Sequence[Path], at_host: Sequence[Path]
) -> Check:
    """Return whether weights lie in plain at the model's owner, and only there.

    Args:
        plain: Files of the plan before it was sealed.
        at_owner: Those of them where weights were found: that they can be.
        at_host: Files where weights were found, of all that the host has.
    """
    where = ", ".join(map(str, at_host)) or "none"
    return Check(
        promise="no file at the replicas' host holds weights in plain",
        holds=bool(plain) and set(at_owner) == set(plain) and not at_host,
        found=f"{where}; {len(at_owner)} of {len(plain)} at the owner",
    )


def check_released(log: Sequence[Mapping[str, Any]], runners: Sequence[str]) -> Check:
    """Return whether keys went to replicas, to each in both runs, and to nobody else.

    Args:
        log: The broker's, verified to be one chain.
        runners: Names of all replicas.
    """
    released = Counter(
        entry["details"]["service"] for entry in log if entry["event"] == "released"
    )
    return Check(
        promise="every replica got its key from the broker in both runs; nobody else",
        holds=released.keys() == set(runners) and min(released.values()) >= 2,
        found=f"{released.total()} releases to {len(released)} replicas",
    )


def check_withdrawal(
    refusal: Mapping[str, Any] | None,
    after: Asked | None,
    *,
    victim: str,
    expected: np.float32,
) -> Iterable[Check]:
    """Return what must become of a machine that was withdrawn.

    Args:
        refusal: Entry of the broker's log.
        after: A request that was asked then.
        victim: The machine's replica.
        expected: The whole model's answer.
    """
    reasons = [f["field"] for f in refusal["details"]["findings"]] if refusal else []
    yield Check(
        promise="a machine that was withdrawn gets no key, for that reason alone",
        holds=reasons == ["revoked_platform"],
        found=", ".join(reasons) or "nothing was refused",
    )
    answered = (
        after is not None
        and victim in after.absent()
        and after.malignant.tobytes() == expected.tobytes()
    )
    yield Check(
        promise="the other replicas go on without it, bit for bit",
        holds=answered,
        found="they do" if answered else "THEY DO NOT",
    )
