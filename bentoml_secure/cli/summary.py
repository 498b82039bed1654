"""A verdict on a receipt in lines for people: what happened, on whose word."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Claims = Mapping[str, Any]

_APART = {
    "none": "",
    "platform": ", on as many platforms",
    "vendor": ", under as many vendors",
}


def receipt_lines(claims: Claims) -> list[str]:
    """Return what an accepted receipt says, the most telling first.

    Args:
        claims: As ``receipts.verify.Verdict.to_json`` returns them.
    """
    scenario, labels = claims["scenario"], claims["labels"]
    return [
        f"receipt {claims['receipt_id']}",
        f"  {claims['receipt_digest']}",
        f"{claims['service']} answered {claims['api']} with status {claims['status']}",
        f"  from {claims['started_at']} to {claims['issued_at']}",
        f"scenario {scenario['name']}: {_agreement(claims)}",
        f"  {scenario['digest']}",
        f"plan {claims['plan_digest']}",
        f"configuration {claims['config_digest']}",
        f"nonce {claims['client_nonce']}",
        *_parties(claims["parties"]),
        *_rulings(claims["ruled"]),
        *_replicas("dissent", claims["dissenters"]),
        *_chains(claims["dissenting_chains"]),
        *_replicas("no answer", claims["absent"]),
        *_replicas("skipped", claims["skipped"]),
        *_replicas("not blind", claims["not_blind"]),
        *_audit(claims["audited"]),
        *_epoch(claims),
        *_proofs(claims),
        *(f"still to come: {kind}" for kind in claims["missing_attachments"]),
        *_words(labels),
        *_unchecked(claims["unchecked"]),
    ]


def _parties(parties: Sequence[Claims]) -> Iterator[str]:
    platforms = {party["platform_id"] for party in parties}
    count = f"{len(platforms)} platform{'s' if len(platforms) != 1 else ''}"
    yield f"attested: {len(parties)} parties on {count}"
    width = max(len(party["name"]) for party in parties)
    for party in parties:
        where = f"{party['platform']}  {party['platform_id']}"
        yield f"  {party['name']:<{width}}  {party['role']:<6}  {where}"


def _agreement(claims: Claims) -> str:
    quorum = f"at least {claims['quorum']} of {claims['replicas']}"
    if claims["mode"] == "end-to-end":
        return (
            f"{quorum} chains of replicas agree at their ends, after"
            f" {claims['segments']} segments"
        )
    ruled = ", or its referee decides" if claims["ruled"] else ""
    return (
        f"{quorum} replicas agree{_APART[claims['independence']]}, for each of"
        f" {claims['segments']} segments{ruled}"
    )


def _replicas(what: str, entries: Sequence[Claims]) -> Iterator[str]:
    for entry in entries:
        where = f" ({entry['where']})" if "where" in entry else ""
        reason = f": {entry['reason']}" if "reason" in entry else ""
        yield f"{what}: {entry['replica']}, {_place(entry)}{where}{reason}"


def _rulings(entries: Sequence[Claims]) -> Iterator[str]:
    for entry in entries:
        yield f"no quorum: {entry['referee']} decided alone, {_place(entry)}"


def _chains(entries: Sequence[Claims]) -> Iterator[str]:
    for entry in entries:
        chain = " > ".join(entry["chain"])
        yield f"ended apart: {chain}, infer {entry['infer']}"


def _audit(entries: Sequence[Claims]) -> Iterator[str]:
    if entries:
        agree = sum(entry["verdict"] == "agrees" for entry in entries)
        yield f"audited: {agree} of {len(entries)} segments computed again, and agree"


def _epoch(claims: Claims) -> Iterator[str]:
    epoch = claims.get("epoch")
    if epoch is None:
        return
    auditors, place = (
        epoch["auditors"],
        f"receipt {epoch['index'] + 1} of {epoch['of']}",
    )
    drawn = f"challenged, proofs due by {epoch['deadline']}"
    yield f"epoch {epoch['number']}: {place}"
    yield f"  {drawn if epoch['challenged'] else 'not challenged'}"
    if not auditors:
        yield "  drawn by the entry alone, which could arrange the epoch to suit itself"
    yield from (f"  drawn by auditor {auditor} too" for auditor in auditors)


def _proofs(claims: Claims) -> Iterator[str]:
    proofs = claims.get("proofs")
    if proofs is None:
        return
    deviation = proofs["deviation"]
    count = f"{proofs['verified']} of {proofs['of']} segments"
    yield f"proven: {count}, {proofs['backend']}"
    yield f"  {proofs['manifest']}, signed by {proofs['signer']}"
    if claims["unsafe_srs"]:
        yield f"  UNSAFE SRS {proofs['srs']}: whoever generated it can forge proofs"
    if proofs["links"] != "hashed":
        yield "  POLYCOMMIT LINKS: the proofs tell of what went between segments"
    if deviation:
        largest = max(deviation.values())
        yield f"  within {largest:.3g} of the answer; at most {proofs['bound']:g}"
    yield f"  opening {claims['proof_opening']}"


def _place(entry: Claims) -> str:
    return f"segment {entry['segment']} of infer {entry['infer']}"


def _words(labels: Mapping[str, str]) -> Iterator[str]:
    """Say together what rests on the same word."""
    by_word: dict[str, list[str]] = defaultdict(list)
    for name, word in labels.items():
        by_word[word].append(name)
    for word, names in by_word.items():
        yield f"{word}: {', '.join(names)}"


def _unchecked(fields: Sequence[Claims]) -> Iterator[str]:
    """Say once what was left out for many parties for the same reason."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for left in fields:
        name = left["field"]
        if name.startswith("party "):
            name = f"{name.rpartition(' ')[2]} of parties"
        counts[name, left["reason"]] += 1
    for (name, reason), count in counts.items():
        times = f" ({count})" if count > 1 else ""
        yield f"left out: {name}{times}: {reason}"
