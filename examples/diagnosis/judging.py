"""Judging receipts from their files alone, as anyone with the trust file can."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

from bentoml_secure.errors import ReceiptError
from bentoml_secure.receipts.bundle import Bundle, parse_bundle
from bentoml_secure.receipts.opening import Opening
from bentoml_secure.receipts.trust import Trust
from bentoml_secure.receipts.verify import State, verify_bundle
from examples.diagnosis.asking import Asked
from examples.diagnosis.commands import printed, say


def holds_offline(asked: Asked, trust: Trust) -> bool:
    """Tell whether a receipt's files hold by themselves, bodies and salt included."""
    file = asked.bundle
    stem = file.with_name(file.name.removesuffix(".bundle.json"))
    opening = Opening(
        salt=bytes.fromhex(stem.with_suffix(".salt").read_text()),
        request=stem.with_suffix(".request").read_bytes(),
        response=stem.with_suffix(".response").read_bytes(),
    )
    try:
        verdict = verify_bundle(
            parse_bundle(file.read_bytes()),
            trust,
            now=datetime.now(UTC),
            opening=opening,
        )
    except ReceiptError as error:
        say(f"{file}: {error}")
        return False
    return verdict.state is State.ACCEPTED


def alter(file: Path) -> Bundle:
    """Return a bundle with one digit of its receipt changed: the HTTP status."""
    bundle = parse_bundle(file.read_bytes())
    payload = bundle.receipt.payload.replace(b'"status":200', b'"status":201')
    if payload == bundle.receipt.payload:
        raise RuntimeError(f"{file}: no status 200 to alter")
    receipt = dataclasses.replace(bundle.receipt, payload=payload)
    return dataclasses.replace(bundle, receipt=receipt)


def is_rejected(bundle: Bundle, trust: Trust) -> bool:
    """Tell whether a bundle is rejected."""
    try:
        verify_bundle(bundle, trust, now=datetime.now(UTC))
    except ReceiptError:
        return True
    return False


def verify_by_command(bundle: Path, trust: Path) -> bool:
    """Verify one receipt by the command line, shown for pasting."""
    stem = str(bundle).removesuffix(".bundle.json")
    arguments = ["verify", "receipt", str(bundle), "--trust", str(trust)]
    arguments += ["--input", f"{stem}.request", "--output", f"{stem}.response"]
    say("\nAnyone who has the trust file can check any of them again:\n")
    print(f"BENTOML_SECURE_SALT=$(cat {stem}.salt) .venv/bin/bentoml-secure \\")
    print(f"  {' '.join(arguments[:5])} \\\n  {' '.join(arguments[5:])}\n")
    salt = Path(f"{stem}.salt").read_text()
    code, output = printed(*arguments, "--salt", salt)
    *claims, warning, verdict = output.splitlines()
    say(f"  ({len(claims)} lines of what it shows)\n{warning}\n{verdict}")
    return code == 0
