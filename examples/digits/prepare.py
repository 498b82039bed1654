"""Make what services/digits.py serves: a plan, and what proves it.

    python -m examples.digits.prepare

1. trains the network and exports it to ONNX
2. splits it into three segments, compared with the whole on the test images
3. calibrates: measures how far honest runtimes lie apart, and sets the tolerances
4. makes the owner's key, if there is none
5. makes the proof set-up: chooses parameters that keep proven logits near served ones
   on the test images, and makes a proving and a verification key for each segment

The structured reference string is generated here. That is UNSAFE: whoever knows the
secret that it is made of, as this machine did, proves what was never computed. A
caller accepts such proofs only with ``unsafe_srs = true`` in the trust file. For
anything but a trial put the published files of the perpetual powers of tau into
``models/srs`` first: ``bentoml-secure prove srs import``.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from bentoml_secure.errors import ConfigurationError, SecureError
from bentoml_secure.proofs.setup import Demands, SetUp, set_up
from bentoml_secure.signing import SigningKey
from bentoml_secure.split import Plan, load_plan, read_samples, split_onnx
from examples.diagnosis.commands import verdict_of
from examples.digits.train import Data, Floats, export, load_data, train

SEGMENTS = 3
NAME = "digits"
MODELS = Path("models")
PLAN, PROOFS, SRS = "digits", "digits-proofs", "srs"
WHOLE, SAMPLES, OWNER = "digits.onnx", "digits-samples.npz", "digits-owner.pem"
"""In the folder of models. The owner's key signs the proof set-up."""

ACCURACY = 0.05
"""Largest difference of a logit, proven and served; logits are up to 5 in size."""

SAMPLES_PROVEN = 128
"""That parameters are chosen on."""

_COMPARED = 8
_CALIBRATION_INPUTS = 128


def prepare(models: Path, data: Data, *, epochs: int = 60) -> Plan:
    """Train, and write the whole model, samples, the plan and the owner's key.

    Args:
        models: Their folder; an earlier plan in it is replaced.
        data: The data set.
        epochs: Of training.

    Raises:
        SecureError: The folder is in use for something else.
    """
    models.mkdir(parents=True, exist_ok=True)
    export(train(data, epochs=epochs), models / WHOLE)
    write_samples(models / SAMPLES, data.train_images)
    write_owner_key(models / OWNER)
    return split_onnx(
        models / WHOLE,
        models / PLAN,
        segments=SEGMENTS,
        samples=({"image": data.test_images[:_COMPARED]},),
        name=NAME,
    )


def write_samples(path: Path, images: Floats) -> None:
    """Write inputs of the model as our commands take them."""
    arrays: dict[str, Any] = {"image": images}
    np.savez(path, allow_pickle=False, **arrays)


def write_owner_key(path: Path) -> None:
    """Make an Ed25519 key that nobody else can read, if there is none."""
    key = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with open(descriptor, "wb") as stream:
        stream.write(key)


def calibrate(models: Path) -> None:
    """Measure honest runtimes on the samples; write tolerances into the plan.

    Raises:
        SecureError: A runtime that does not run.
        RuntimeError: A cheat would pass a tolerance that honest runtimes need.
    """
    words: list[str | Path] = ["calibrate", models / PLAN]
    words += ["--samples", models / SAMPLES]
    verdict_of(*words, "--inputs", str(_CALIBRATION_INPUTS))


def prove_set_up(models: Path, *, samples: int = SAMPLES_PROVEN) -> SetUp:
    """Make the proof set-up of the plan as it is now; an earlier one is replaced.

    Args:
        models: What ``prepare`` made. Structured reference strings that are not there
            are made, which is unsafe.
        samples: How many of the samples the circuits are run on.

    Raises:
        SecureError: No parameters are accurate enough; a proof does not fit in memory.
    """
    shutil.rmtree(models / PROOFS, ignore_errors=True)
    key = load_pem_private_key((models / OWNER).read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{models / OWNER}: is not an Ed25519 key")
    images = read_samples(models / SAMPLES)["image"][:samples]
    return set_up(
        models / PLAN,
        models / PROOFS,
        {"image": images},
        SigningKey(key),
        models / SRS,
        demands=Demands(accuracy=ACCURACY, unsafe_srs=True),
        progress=lambda doing: click.echo(doing, err=True),
    )


@click.command()
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    default=MODELS,
    show_default=True,
    help="Folder that the plan and its companions go to.",
)
@click.option(
    "--calibration/--no-calibration",
    "calibrates",
    default=True,
    help="Measure tolerances, or leave the default.",
)
@click.option("--epochs", default=60, show_default=True, help="Of training.")
@click.option(
    "--samples",
    default=SAMPLES_PROVEN,
    show_default=True,
    help="Images that parameters are chosen on.",
)
def main(models: Path, calibrates: bool, epochs: int, samples: int) -> None:
    """Make what services/digits.py serves: a plan, and what proves it."""
    try:
        prepare(models, load_data(), epochs=epochs)
        if calibrates:
            click.echo("calibrating: a minute", err=True)
            # Before the set-up: tolerances are part of the plan that is proven.
            calibrate(models)
        made = prove_set_up(models, samples=samples)
    except (SecureError, RuntimeError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    plan = load_plan(models / PLAN)
    click.echo(f"{plan.model_name}: {len(plan.segments)} segments in {models / PLAN}")
    for index, segment in enumerate(made.manifest.segments):
        parameters = segment.parameters
        click.echo(
            f"  {index}  {segment.rows} rows of 2^{parameters.logrows}, "
            f"proving key {segment.proving_key_bytes / 1e6:.0f} MB"
        )
    largest = made.manifest.accuracy.largest
    click.echo(f"proven logits within {largest:.2g} of served ones, bound {ACCURACY:g}")
    click.echo(f"plan {plan.digest}\nproofs {made.manifest.digest}")
    if made.manifest.srs.unsafe:
        click.echo(
            "UNSAFE: the structured reference string was made on this machine, which "
            "could forge every proof. For trials only."
        )


if __name__ == "__main__":
    main()
