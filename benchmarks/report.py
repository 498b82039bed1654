"""The one form in which every benchmark says what it found."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any


def report(
    name: str,
    figures: Mapping[str, Any],
    *packages: str,
    **terms: Any,
) -> dict[str, Any]:
    """Return a benchmark's JSON: its figures, and what they depend on.

    Args:
        name: Of the benchmark's module.
        figures: By name.
        packages: Whose versions matter.
        terms: How it was run, such as ``repetitions``.
    """
    return {
        "name": name,
        "figures": figures,
        "environment": {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            **terms,
            **{package: version(package) for package in packages},
        },
    }
