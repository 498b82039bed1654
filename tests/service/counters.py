"""Reads our series out of the text of /metrics."""

from __future__ import annotations

from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

PREFIX = "bentoml_secure_"
Key = tuple[str, ...]


def scrape(text: str) -> Counter[Key]:
    """Return our series: name and sorted label values, to value; no buckets, sums."""
    counts: Counter[Key] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(PREFIX) and not sample.name.endswith(
                ("_bucket", "_sum", "_created")
            ):
                labels = [f"{k}={v}" for k, v in sorted(sample.labels.items())]
                counts[sample.name.removeprefix(PREFIX), *labels] = int(sample.value)
    return counts


def series(name: str, **labels: str) -> Key:
    """Return the key of one series."""
    return (name, *(f"{k}={v}" for k, v in sorted(labels.items())))


def attested_series(replica: str) -> Key:
    """Return the key of a replica's gauge."""
    segment = replica.removeprefix("DiagnosisSegment")[0]
    return series("attested", kind="simulated", segment=segment, replica=replica)
