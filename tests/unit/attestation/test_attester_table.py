"""The table of attesters, and how the environment chooses from it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from bentoml_secure.attestation.attesters import (
    ATTESTERS,
    GPU_ATTESTERS,
    attester_kind,
    open_attester,
)
from bentoml_secure.attestation.tees import TEES
from bentoml_secure.errors import (
    ConfigurationError,
    UnavailableError,
    UnknownKindError,
)
from bentoml_secure.registry import load

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOWHERE = {
    "BENTOML_SECURE_TSM": "/nowhere/tsm",
    "BENTOML_SECURE_NSM": "/nowhere/nsm",
    "BENTOML_SECURE_TPM_TCTI": "swtpm:path=/nowhere/socket",
}


def test_every_attester_makes_a_kind_that_is_verified() -> None:
    assert ATTESTERS.keys() <= TEES.keys()
    for table in (ATTESTERS, GPU_ATTESTERS):
        for kind in table:
            assert callable(load(kind, table, "none").from_environment)


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({}, None),
        ({"BENTOML_SECURE_ATTESTER": ""}, None),
        ({"BENTOML_SECURE_DEV_ROOT": "root"}, "simulated"),
        (
            {"BENTOML_SECURE_DEV_ROOT": "root", "BENTOML_SECURE_ATTESTER": "tdx"},
            "tdx",
        ),
        ({"BENTOML_SECURE_ATTESTER": "auto"}, "auto"),
    ],
)
def test_what_the_environment_asks_for(
    environ: dict[str, str], kind: str | None
) -> None:
    assert attester_kind(environ) == kind


def test_a_development_root(dev_root: Path, now: datetime) -> None:
    environ = {"BENTOML_SECURE_DEV_ROOT": str(dev_root)}
    attester = open_attester("simulated", environ, clock=lambda: now)
    assert attester.attest(bytes(64)).kind == attester.kind == "simulated"
    assert not attester.endorsements


def test_no_development_root() -> None:
    with pytest.raises(ConfigurationError, match="there is no development root"):
        open_attester("simulated", {}, clock=lambda: NOW)


def test_an_unknown_kind() -> None:
    with pytest.raises(UnknownKindError, match="unknown kind 'abacus'; known: cca"):
        open_attester("abacus", {}, clock=lambda: NOW)


def test_auto_is_never_simulated(dev_root: Path) -> None:
    environ = {**NOWHERE, "BENTOML_SECURE_DEV_ROOT": str(dev_root)}
    with pytest.raises(UnavailableError, match="no device answers") as caught:
        open_attester("auto", environ, clock=lambda: NOW)
    for refusal in ("/nowhere/tsm", "/nowhere/nsm", "tpm2_nvread"):
        assert refusal in str(caught.value)
