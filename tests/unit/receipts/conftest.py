from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from bentoml_secure.testing.deployment import NOW, Deployment, build_deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft


@pytest.fixture(scope="session")
def deployment() -> Deployment:
    return build_deployment()


@pytest.fixture(scope="session")
def draft(deployment: Deployment) -> Draft:
    return build_draft(deployment)


@pytest.fixture(scope="session")
def late_draft(deployment: Deployment) -> Draft:
    """A vote still out in each segment, one of which never came."""
    return build_draft(
        deployment,
        behaviours={(0, 0, 2): Behaviour.LATE, (0, 1, 1): Behaviour.LOST},
    )


@pytest.fixture(scope="session")
def now() -> datetime:
    return NOW + timedelta(seconds=3)
