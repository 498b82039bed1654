"""What a request must carry, and what a deployment is: documents with digests."""

from __future__ import annotations

from bentoml_secure.scenario.configuration import (
    Configuration,
    Topology,
    prover_name,
    referee_name,
    runner_name,
)
from bentoml_secure.scenario.demands import Independence, Mode, Proving
from bentoml_secure.scenario.reading import read_independence
from bentoml_secure.scenario.scenarios import (
    MAX_SCENARIO_BYTES,
    Scenario,
    Scenarios,
    parse_scenarios,
)

__all__ = [
    "Configuration",
    "Independence",
    "MAX_SCENARIO_BYTES",
    "Mode",
    "Proving",
    "Scenario",
    "Scenarios",
    "Topology",
    "parse_scenarios",
    "prover_name",
    "read_independence",
    "referee_name",
    "runner_name",
]
