"""Simulated evidence, under a development root: see ``tees.simulated``.

BENTOML_SECURE_DEV_ROOT   folder made by ``bentoml-secure dev-root``
BENTOML_SECURE_SIMULATED_PLATFORM   machine to claim, in which {service} stands for the
name of the process's service; default: this host, for all of them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from bentoml_secure.attestation.attesters import DEV_ROOT, SERVICE
from bentoml_secure.attestation.tees.simulated import SimulatedAttester
from bentoml_secure.errors import ConfigurationError

SIMULATED_PLATFORM = "BENTOML_SECURE_SIMULATED_PLATFORM"


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
        platform = environ.get(SIMULATED_PLATFORM)
        return cls.from_folder(
            Path(folder).resolve(),
            clock=clock,
            platform_id=platform
            and platform.replace("{service}", environ.get(SERVICE, "")),
        )
