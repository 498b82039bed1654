"""The devices of this machine, where it has any: ``pytest --real-tee``.

The environment is read as a deployment's is; see ``attesters``.
"""

from __future__ import annotations

import os
import secrets

import pytest

from bentoml_secure.attestation.attesters import (
    ATTESTERS,
    GPU,
    open_attester,
    open_gpu_attester,
)
from bentoml_secure.attestation.roles import Attester
from bentoml_secure.attestation.tees import load_tee
from bentoml_secure.errors import (
    ConfigurationError,
    MissingEndorsementError,
    UnavailableError,
)
from bentoml_secure.statements import utc_now

DEVICES = sorted(ATTESTERS.keys() - {"simulated"})


def attest_and_verify(attester: Attester, length: int) -> None:
    report_data = secrets.token_bytes(length)
    evidence = attester.attest(report_data)
    tee = load_tee(attester.kind)
    assert tee.describe(evidence)
    try:
        claims = tee.verify(evidence, attester.endorsements, now=utc_now())
    except MissingEndorsementError as error:
        # The evidence is there; certificates of its vendor are fetched elsewhere.
        pytest.skip(f"{attester.kind} made evidence, but: {error}")
    assert claims.report_data is not None
    assert claims.report_data == report_data[: len(claims.report_data)]


@pytest.mark.usefixtures("real_tee")
@pytest.mark.parametrize("kind", DEVICES)
def test_a_device_of_this_machine(kind: str) -> None:
    try:
        attester = open_attester(kind, os.environ, clock=utc_now)
    except (UnavailableError, ConfigurationError) as error:
        pytest.skip(f"no {kind}: {error}")
    attest_and_verify(attester, 64)


@pytest.mark.usefixtures("real_tee")
def test_the_gpus_of_this_machine() -> None:
    try:
        attester = open_gpu_attester({GPU: "nvidia"}, clock=utc_now)
    except (UnavailableError, ConfigurationError) as error:
        pytest.skip(f"no GPU: {error}")
    assert attester is not None
    try:
        attest_and_verify(attester, 32)
    except UnavailableError as error:
        pytest.skip(f"no confidential GPU: {error}")
