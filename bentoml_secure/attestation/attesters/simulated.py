"""Simulated evidence, under a development root: see ``tees.simulated``.

BENTOML_SECURE_DEV_ROOT   folder made by ``bentoml-secure dev-root``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from bentoml_secure.attestation.attesters import DEV_ROOT
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.errors import ConfigurationError


class DevRootAttester(SimulatedAttester):
    """Signs reports under the development root that the environment names."""

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, clock: Callable[[], datetime]
    ) -> SimulatedAttester:
        """Load the development root and issue a leaf; says so in the log.

        Raises:
            ConfigurationError: None is named, or it is not usable.
        """
        folder = environ.get(DEV_ROOT)
        if not folder:
            raise ConfigurationError(
                f"{DEV_ROOT} is not set: there is no development root.",
                remedy=f"Run `bentoml-secure dev-root DIR` and set {DEV_ROOT}=DIR.",
            )
        return cls.from_folder(Path(folder).resolve(), clock=clock)
