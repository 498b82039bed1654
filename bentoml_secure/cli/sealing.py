"""``seal-model``, ``seal-proofs``, ``sign-model``, ``verify-model``: what owners do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bentoml_secure.cli.outcome import Outcome, State, plain, settle
from bentoml_secure.cli.parameters import FILE, read

if TYPE_CHECKING:
    from bentoml_secure.keys.model_signing import ModelSignature

_SIGNATURE = click.option(
    "--signature", type=FILE, metavar="SIG", help="OpenSSF model signature of it."
)
_PUBLIC_KEY = click.option(
    "--public-key",
    type=FILE,
    metavar="PEM",
    help="The signer's elliptic-curve key; nobody else's signature will do.",
)


@click.command("seal-model")
@click.argument("plan_dir", type=FILE, metavar="PLAN_DIR")
@click.option(
    "--out", type=FILE, required=True, metavar="DIR", help="Folder of the sealed plan."
)
@click.option(
    "--keys",
    "keys_file",
    type=FILE,
    required=True,
    metavar="FILE",
    help="New file for the keys, readable to you only: for `broker add-keys`.",
)
@_SIGNATURE
@_PUBLIC_KEY
def seal_model(
    plan_dir: Path,
    out: Path,
    keys_file: Path,
    signature: Path | None,
    public_key: Path | None,
) -> None:
    """Encrypt the segments of the plan in PLAN_DIR, each under a key of its own.

    DIR can lie anywhere: without the keys it shows the plan and the files' sizes.
    With --signature and --public-key nothing is sealed but what that signer signed.
    """
    if (signature is None) is not (public_key is None):
        raise click.UsageError("want --signature and --public-key together")
    from bentoml_secure.keys.key_file import keys_to_bytes, new_secret
    from bentoml_secure.keys.seal_model import seal_plan

    verified = None
    if signature is not None and public_key is not None:
        verified = _verified(plan_dir, signature, public_key)
    with new_secret(keys_file, what="key file") as pieces:
        plan, keys = seal_plan(plan_dir, out, signature=verified, progress=_tell)
        pieces.append(keys_to_bytes(keys))
    click.echo(
        f"{plain(plan.model_name)}: {len(plan.segments)} segments sealed in {out}"
    )
    for index, (segment, key) in enumerate(keys.keys):
        click.echo(f"  {index}  {segment}  key {key.key_id}")
    click.echo(f"plan {plan.digest}")


@click.command("seal-proofs")
@click.argument("proofs_dir", type=FILE, metavar="PROOFS_DIR")
@click.option(
    "--out", type=FILE, required=True, metavar="DIR", help="Folder of the sealed form."
)
@click.option(
    "--keys",
    "keys_file",
    type=FILE,
    required=True,
    metavar="FILE",
    help="New file for the keys, readable to you only: for `broker add-keys`.",
)
def seal_proofs(proofs_dir: Path, out: Path, keys_file: Path) -> None:
    """Encrypt the circuits and proving keys of the set-up in PROOFS_DIR.

    They hold the model's weights. Each segment's are sealed under a key of their own,
    which a broker releases to provers only; manifest, settings, verification keys and
    structured reference strings go along as they are.
    """
    from bentoml_secure.keys.key_file import keys_to_bytes, new_secret
    from bentoml_secure.keys.seal_proofs import seal_setup

    with new_secret(keys_file, what="key file") as pieces:
        manifest, keys = seal_setup(proofs_dir, out, progress=_tell)
        pieces.append(keys_to_bytes(keys))
    click.echo(f"{len(keys.keys)} segments' proving keys sealed in {out}")
    for index, (segment, key) in enumerate(keys.keys):
        click.echo(f"  {index}  {segment}  prover key {key.key_id}")
    click.echo(f"manifest {manifest.digest}, signed by {manifest.signer_id}")


def _tell(doing: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"sealing {plain(doing)}", err=True)


def _verified(folder: Path, signature: Path, public_key: Path) -> ModelSignature:
    from bentoml_secure.keys.model_signing import (
        MAX_KEY_BYTES,
        MAX_SIGNATURE_BYTES,
        parse_signing_key,
        verify_model,
    )

    pem = read(public_key, what="public key", max_bytes=MAX_KEY_BYTES)
    data = read(signature, what="signature", max_bytes=MAX_SIGNATURE_BYTES)
    return verify_model(folder, data, parse_signing_key(pem))


@click.command("sign-model")
@click.argument("folder", type=FILE, metavar="DIR")
@click.option(
    "--key",
    type=FILE,
    required=True,
    metavar="PEM",
    help="Private key on P-256, P-384 or P-521, without a passphrase.",
)
@click.option(
    "--out", type=FILE, required=True, metavar="SIG", help="New file outside DIR."
)
def sign_model(folder: Path, key: Path, out: Path) -> None:
    """Sign every file in DIR with an OpenSSF model signature.

    What is signed is which files there are and what is in them. `model_signing
    verify key` reads the signature too.
    """
    from bentoml_secure.keys import model_signing

    made = model_signing.sign_model(folder, key, out)
    click.echo(f"{folder}: {len(made.files)} files signed in {out}")


@click.command("verify-model")
@click.argument("folder", type=FILE, metavar="DIR")
@click.option(
    "--signature", type=FILE, required=True, metavar="SIG", help="What signs it."
)
@click.option(
    "--public-key",
    type=FILE,
    required=True,
    metavar="PEM",
    help="The signer's elliptic-curve key.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_model(
    folder: Path, signature: Path, public_key: Path, as_json: bool
) -> None:
    """Verify that DIR holds exactly what the holder of a key signed.

    A file that changed, is missing or was added is refused.
    """

    def judge() -> Outcome:
        """Return the verdict on the folder."""
        verified = _verified(folder, signature, public_key)
        files = dict(sorted(verified.files.items()))
        return Outcome(state=State.ACCEPTED, kind="model", claims={"files": files})

    settle("model", judge, as_json=as_json)
