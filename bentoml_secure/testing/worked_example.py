"""The worked example of docs/receipt-format.md, recomputed from fixed inputs.

Every key, nonce, salt and time follows from names, and Ed25519 is deterministic, so
the example comes out the same byte for byte. The one exception is evidence, which an
attester signs with a key of the moment: it is recorded in ``bundle.json``.

``python -m bentoml_secure.testing.worked_example docs`` writes the example anew,
evidence included.
"""

from __future__ import annotations

import json
import re
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

from bentoml_secure.digest import canonical_json, parse_json
from bentoml_secure.receipts.bundle import Bundle, parse_bundle
from bentoml_secure.receipts.receipt import parse_receipt
from bentoml_secure.scenario import Mode
from bentoml_secure.testing.deployment import build_deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft
from bentoml_secure.testing.tampering import chains_of

PAGE = "receipt-format.md"
BUNDLE = "receipt-example/bundle.json"
TRUST = "receipt-example/trust.toml"
ENVELOPE = "(envelope)"
BLOCK = re.compile(r"(<!-- example: (\w+) -->\n```\w+\n)(.*?)(```\n)", re.DOTALL)


TERMS = {"spares": 1}
WEIGHTS = {"DSegment0Replica1": 2.0, "DSegment0Replica3": 0.5}
BEHAVIOURS = {
    (0, 0, 0): Behaviour.ABSENT,
    (0, 0, 2): Behaviour.LIAR,
    (0, 1, 2): Behaviour.LATE,
}


def draft(recorded: Bundle | None) -> Draft:
    """Return the example: three of four, of whom one is out, one lies, one is late.

    Args:
        recorded: The example as it was written, for its evidence; or fresh evidence.
    """
    root, by_name = None, {}
    if recorded is not None:
        evidence = {record.digest: record.evidence for record in recorded.evidence}
        by_name = {
            party.name: evidence[party.evidence]
            for party in parse_receipt(recorded.receipt).parties
        }
        blob = parse_json(
            next(iter(by_name.values())).blob, what="evidence", max_bytes=1 << 16
        )
        root = b64decode(blob["certificates"][1])
    deployment = build_deployment(
        replicas=4, committee=3, terms=TERMS, root=root, recorded=by_name
    )
    return build_draft(
        deployment, label="worked example", weights=WEIGHTS, behaviours=BEHAVIOURS
    )


def chained() -> Draft:
    """Return another: three chains, in one of which the first replica lies.

    Its evidence is fresh, and none of what is shown of it depends on that.
    """
    deployment = build_deployment(
        audit_rate=0.0, terms={"mode": Mode.END_TO_END, "referee": True}
    )
    liar = {(0, 0, 0): Behaviour.LIAR}
    return build_draft(deployment, label="worked example", behaviours=liar)


def pretty(document: Any) -> str:
    """Return JSON as it stands on the page."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def signed_form(document: Any) -> Any:
    """Return a document with numbers as they are signed."""
    return json.loads(canonical_json(document))


def shortened(statement: dict[str, Any]) -> dict[str, Any]:
    """Leave out the envelopes inside: they are shown decoded, once."""
    statement["predicate"]["draw"]["signed"] = ENVELOPE
    for infer in statement["predicate"]["infers"]:
        for segment in infer["segments"]:
            segment["statements"] = dict.fromkeys(segment["statements"], ENVELOPE)
    return statement


def chain_blocks() -> dict[str, str]:
    """Return what stands on the page of chains, by name of the block."""
    other = chained()
    chains = chains_of(other).to_json()
    chains["statements"] = [
        dict.fromkeys(row, ENVELOPE) for row in chains["statements"]
    ]
    localisation = other.localisation(other.bundle().receipt).to_json()
    for entry in localisation:
        for segment in entry["segments"]:
            segment["statement"] = ENVELOPE
    return {
        "chains": pretty(signed_form(chains)),
        "localisation": pretty(signed_form(localisation)),
    }


def blocks(example: Draft) -> dict[str, str]:
    """Return what stands on the page, by name of the block."""
    bundle = example.bundle()
    voted = example.receipt.infers[0].segments[0].statements
    first = next(iter(voted.values()))
    (late,) = bundle.attachments
    signed = example.receipt.draw.signed
    commitment = {} if signed is None else json.loads(signed.payload)
    attachment = json.loads(late.payload)
    for segment in attachment["predicate"]["infers"][0]["segments"]:
        for answer in segment["answers"]:
            answer["statement"] = ENVELOPE
    values = {
        "root salt": example.salt.hex(),
        "request id": example.receipt.receipt_id,
        "request body": example.request.decode(),
        "response body": example.response.decode(),
        "x": json.dumps(example.inputs["x"].tolist()),
        "y": json.dumps(example.outputs["y"].tolist()),
        "commitment of x": example.receipt.infers[0].inputs["x"],
        "commitment of y": example.receipt.infers[0].outputs["y"],
        "receipt digest": bundle.receipt.payload_digest,
        "receipt signature": bundle.receipt.signature.hex(),
    }
    return {
        "values": "".join(f"{name:18} {value}\n" for name, value in values.items()),
        "key_document": pretty(example.deployment.entry.document.to_json()),
        "commitment": pretty(commitment),
        "statement": pretty(json.loads(first.payload)),
        "receipt": pretty(shortened(json.loads(bundle.receipt.payload))),
        "attachment": pretty(attachment),
        **chain_blocks(),
    }


def write(docs: Path) -> None:
    """Make fresh evidence, and write the bundle and the page's blocks from it."""
    bundle, page = docs / BUNDLE, docs / PAGE
    bundle.write_bytes(canonical_json(draft(None).bundle().to_json()) + b"\n")
    example = draft(parse_bundle(bundle.read_bytes()))
    (docs / TRUST).write_text(example.deployment.trust_file)
    texts = blocks(example)
    page.write_text(BLOCK.sub(lambda m: m[1] + texts[m[2]] + m[4], page.read_text()))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
