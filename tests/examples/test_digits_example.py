"""The digits' parts: the network trains, splits as a chain, and is set up to be proven.

The set-up itself, which chooses parameters for minutes, is a slow test.
"""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.split import load_plan, run_chain
from examples.digits import prepare
from tests.harness import REPOSITORY

EPOCHS = 4


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that ``prepare`` filled, trained for a few epochs."""
    folder = tmp_path_factory.mktemp("digits") / "models"
    # In a process of its own: torch's exporter must print nothing on the terminal.
    code = (
        "import sys, numpy, pathlib\n"
        "from examples.digits.prepare import prepare\n"
        "from examples.digits.train import load_data\n"
        "models, data = pathlib.Path(sys.argv[1]), load_data()\n"
        f"prepare(models, data, epochs={EPOCHS})\n"
        "numpy.savez(models / 'tests.npz', image=data.test_images,\n"
        "    label=data.test_labels)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout + done.stderr == ""
    return folder


def test_a_few_epochs_read_most_digits(digits: Path) -> None:
    tests = np.load(digits / "tests.npz")
    session = onnxruntime.InferenceSession(digits / prepare.WHOLE)
    (logits,) = session.run(None, {"image": tests["image"]})
    assert logits.shape == (450, 10)
    assert (logits.argmax(1) == tests["label"]).mean() > 0.8


def test_the_plan_is_a_chain_of_narrow_boundaries(digits: Path) -> None:
    plan = load_plan(digits / prepare.PLAN)
    assert len(plan.segments) == prepare.SEGMENTS
    made = [spec.name for spec in plan.inputs]
    for segment in plan.segments:
        assert [spec.name for spec in segment.inputs] == made
        made = [spec.name for spec in segment.outputs]
        sizes = [size for size in segment.outputs[0].shape if isinstance(size, int)]
        assert np.prod(sizes) <= 32


def test_the_segments_answer_as_the_whole_model(digits: Path) -> None:
    image = np.load(digits / "tests.npz")["image"][:5]
    session = onnxruntime.InferenceSession(digits / prepare.WHOLE)
    (whole,) = session.run(None, {"image": image})
    logits = run_chain(digits / prepare.PLAN, {"image": image})["logits"]
    np.testing.assert_allclose(logits, whole, atol=1e-5)


def test_the_owners_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "owner.pem"
    prepare.write_owner_key(path)
    key = path.read_bytes()
    prepare.write_owner_key(path)
    assert path.read_bytes() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_owners_key_of_another_kind_is_refused(digits: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    pem = X25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / prepare.OWNER).write_bytes(pem)
    with pytest.raises(ConfigurationError, match="is not an Ed25519 key"):
        prepare.prove_set_up(tmp_path)


@pytest.mark.slow
def test_the_digits_are_set_up_and_proven_answers_are_near(digits: Path) -> None:
    made = prepare.prove_set_up(digits, samples=16)
    assert made.manifest.srs.unsafe
    assert len(made.manifest.segments) == prepare.SEGMENTS
    assert made.manifest.accuracy.largest <= prepare.ACCURACY
    assert max(s.parameters.logrows for s in made.manifest.segments) <= 14
    assert (digits / prepare.PROOFS / "manifest.json").exists()
