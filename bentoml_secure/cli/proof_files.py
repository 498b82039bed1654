"""``verify proof`` and ``inspect proof``: one segment's proof, by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bentoml_secure.cli.outcome import (
    Outcome,
    State,
    claim_lines,
    own_files,
    settle,
)
from bentoml_secure.cli.owned import write_out
from bentoml_secure.cli.parameters import FILE, as_json, hex_bytes, read
from bentoml_secure.errors import ConfigurationError, MalformedInputError

if TYPE_CHECKING:
    from bentoml_secure.receipts.bundle import Bundle
    from bentoml_secure.receipts.proof_files import Against, Held, ProofFile
    from bentoml_secure.tensors import Array

MAX_OWN_FILE_BYTES = 1 << 20
MAX_TENSORS_BYTES = 64 << 20


@click.command("proof")
@click.argument("proof_file", type=FILE, metavar="FILE")
@click.option(
    "--manifest",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Of the proof set-up, signed: its manifest.json.",
)
@click.option(
    "--vk",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Verification key of the segment.",
)
@click.option(
    "--settings",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Of the segment's circuit.",
)
@click.option(
    "--srs",
    type=FILE,
    required=True,
    metavar="FILE",
    help="A structured reference string of the set-up, of any size.",
)
@click.option(
    "--trust",
    type=FILE,
    required=True,
    metavar="FILE",
    help="What the caller accepts; see `bentoml-secure trust`.",
)
@click.option(
    "--input",
    "input_file",
    type=FILE,
    metavar="FILE",
    help="Input tensors, .safetensors: with the first segment's proof.",
)
@click.option(
    "--output",
    "output_file",
    type=FILE,
    metavar="FILE",
    help="Output tensors, likewise with the last segment's.",
)
@click.option(
    "--salt",
    type=hex_bytes(32),
    metavar="HEX",
    envvar="BENTOML_SECURE_SALT",
    show_envvar=True,
    help="The request's root salt, a secret: better given in the environment.",
)
@as_json
def verify_proof(
    proof_file: Path,
    manifest: Path,
    vk: Path,
    settings: Path,
    srs: Path,
    trust: Path,
    input_file: Path | None,
    output_file: Path | None,
    salt: bytes | None,
    as_json: bool,
) -> None:
    """Check one segment's proof against a set-up that the trust file accepts.

    FILE is a proof as `inspect proof --extract` writes it, or a receipt's attachment.
    Who proved it, and for which answer, `verify receipt` checks.
    """
    from bentoml_secure.receipts.proof_files import (
        MAX_PROOF_FILE_BYTES,
        parse_proof_file,
        verify_proof_file,
    )

    against = _against(manifest, vk, settings, srs, trust)
    held = _held(input_file, output_file, salt)

    def judge() -> Outcome:
        """Return the verdict on the proof."""
        data = read(proof_file, what="proof", max_bytes=MAX_PROOF_FILE_BYTES)
        claims = verify_proof_file(parse_proof_file(data), against, held)
        return Outcome(state=State.ACCEPTED, kind="proof", claims=claims)

    settle("proof", judge, as_json=as_json)


def _against(
    manifest: Path, vk: Path, settings: Path, srs: Path, trust: Path
) -> Against:
    from bentoml_secure.digest import parse_json
    from bentoml_secure.proofs.folder import MAX_KEY_BYTES, MAX_SETTINGS_BYTES
    from bentoml_secure.proofs.manifest import MAX_MANIFEST_BYTES
    from bentoml_secure.proofs.proof import VerificationKey
    from bentoml_secure.proofs.srs import verifier_part
    from bentoml_secure.receipts.proof_files import Against
    from bentoml_secure.receipts.trust import parse_trust
    from bentoml_secure.signing import parse_envelope

    most = 2 * MAX_MANIFEST_BYTES
    with own_files(str(manifest)):
        data = read(manifest, what="manifest", max_bytes=most)
        document = parse_json(data, what="manifest", max_bytes=most)
        envelope = parse_envelope(document, what="manifest")
    with own_files(str(trust)):
        accepted = parse_trust(read(trust, what="trust", max_bytes=MAX_OWN_FILE_BYTES))
    with own_files(str(srs)):
        verifier = verifier_part(srs)
    with own_files("verification key"):
        key = VerificationKey(
            settings=read(settings, what="settings", max_bytes=MAX_SETTINGS_BYTES),
            key=read(vk, what="vk", max_bytes=MAX_KEY_BYTES),
        )
    return Against(manifest=envelope, key=key, srs=verifier, trust=accepted)


def _held(
    input_file: Path | None, output_file: Path | None, salt: bytes | None
) -> Held:
    from bentoml_secure.receipts.proof_files import Held
    from bentoml_secure.tensors import decode

    def tensors(path: Path | None) -> dict[str, Array] | None:
        """Return what a file holds."""
        if path is None:
            return None
        return decode(read(path, what="tensors", max_bytes=MAX_TENSORS_BYTES))

    with own_files("opening"):
        return Held(salt=salt, inputs=tensors(input_file), outputs=tensors(output_file))


@click.command("proof")
@click.argument("file", type=FILE, metavar="FILE")
@click.option(
    "--extract",
    type=FILE,
    metavar="DIR",
    help="Write the proofs of a receipt's bundle there, with what verifies them.",
)
@as_json
def inspect_proof(file: Path, extract: Path | None, as_json: bool) -> None:
    """Show what a proof says: FILE holds one, or is a receipt's bundle.

    Nothing is verified here.
    """
    from bentoml_secure.receipts.bundle import MAX_BUNDLE_BYTES

    data = read(file, what="proof", max_bytes=MAX_BUNDLE_BYTES)
    bundle, proofs = _read_proofs(data)
    if extract is not None:
        if bundle is None:
            raise ConfigurationError(f"{file}: is no receipt's bundle.")
        _extract(bundle, proofs, extract)
    described = [_described(proof) for proof in proofs]
    if as_json:
        document = {"verified": False, "proofs": described}
        click.echo(json.dumps(document, sort_keys=True))
        return
    for each in described:
        place = f"infer {each['infer']} segment {each['segment']}"
        click.echo(f"proof of {each['backend']}, {place}")
        click.echo("\n".join(claim_lines(each)))
    click.echo("NOT VERIFIED  see `bentoml-secure verify proof`")


def _read_proofs(data: bytes) -> tuple[Bundle | None, list[ProofFile]]:
    from bentoml_secure.receipts.attachments import read_attachment
    from bentoml_secure.receipts.bundle import parse_bundle
    from bentoml_secure.receipts.proof_files import (
        MAX_PROOF_FILE_BYTES,
        ProofFile,
        parse_proof_file,
    )
    from bentoml_secure.receipts.proofs import PROOF, ProofRecord

    if len(data) <= MAX_PROOF_FILE_BYTES and b'"key_documents"' not in data:
        return None, [parse_proof_file(data)]
    bundle = parse_bundle(data)
    attachments = [read_attachment(envelope) for envelope in bundle.attachments]
    records = [
        ProofRecord.from_attachment(attachment)
        for attachment in attachments
        if attachment.kind == PROOF
    ]
    if not records:
        raise MalformedInputError("bundle: no proof is attached to its receipt")
    return bundle, [ProofFile.of(record) for record in records]


def _described(proof: ProofFile) -> dict[str, Any]:
    return {
        "backend": proof.proof.backend,
        **proof.about.to_json(),
        "instances": proof.proof.facts.to_json(),
        "proof_bytes": len(proof.proof.proof),
        "opening_bytes": None if proof.opening is None else len(proof.opening),
    }


def _extract(bundle: Bundle, proofs: list[ProofFile], folder: Path) -> None:
    from bentoml_secure.proofs.folder import KEY, SETTINGS, parse_verification_keys

    if bundle.verification_keys is None:
        raise MalformedInputError("bundle: it has no verification keys")
    keys = parse_verification_keys(bundle.verification_keys)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_out(folder / "manifest.json", _text(keys.envelope.to_json()))
        for index, key in enumerate(keys.keys):
            part = folder / str(index)
            part.mkdir(exist_ok=True)
            (part / SETTINGS).write_bytes(key.settings)
            (part / KEY).write_bytes(key.key)
        for proof in proofs:
            name = f"{proof.about.infer}-{proof.about.segment}.proof.json"
            write_out(folder / name, _text(proof.to_json()))
    except OSError as error:
        raise ConfigurationError(f"{folder}: cannot be written: {error}") from error


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True) + "\n"
