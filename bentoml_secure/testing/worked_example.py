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
from bentoml_secure.testing.deployment import build_deployment
from bentoml_secure.testing.receipts import Behaviour, Draft, build_draft

PAGE = "receipt-format.md"
BUNDLE = "receipt-example/bundle.json"
TRUST = "receipt-example/trust.toml"
BLOCK = re.compile(r"(<!-- example: (\w+) -->\n```\w+\n)(.*?)(```\n)", re.DOTALL)


def draft(recorded: Bundle | None) -> Draft:
    """Return the example: two segments of three replicas, one lies, one is late.

    Args:
        recorded: The example as it was written, for its evidence; or fresh evidence.
    """
    if recorded is None:
        deployment = build_deployment()
    else:
        evidence = {record.digest: record.evidence for record in recorded.evidence}
        by_name = {
            party.name: evidence[party.evidence]
            for party in parse_receipt(recorded.receipt).parties
        }
        blob = parse_json(
            next(iter(by_name.values())).blob, what="evidence", max_bytes=1 << 16
        )
        root = b64decode(blob["certificates"][1])
        deployment = build_deployment(root=root, recorded=by_name)
    return build_draft(
        deployment,
        label="worked example",
        behaviours={(0, 0, 1): Behaviour.LIAR, (0, 1, 2): Behaviour.LATE},
    )


def pretty(document: Any) -> str:
    """Return JSON as it stands on the page."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def shortened(statement: dict[str, Any]) -> dict[str, Any]:
    """Leave out the envelopes inside: they are shown decoded, once."""
    statement["predicate"]["draw"]["signed"] = "(envelope)"
    for infer in statement["predicate"]["infers"]:
        for segment in infer["segments"]:
            segment["statements"] = dict.fromkeys(segment["statements"], "(envelope)")
    return statement


def blocks(example: Draft) -> dict[str, str]:
    """Return what stands on the page, by name of the block."""
    bundle = example.bundle()
    voted = example.receipt.infers[0].segments[0].statements
    first = voted["DSegment0Replica0"]
    (late,) = bundle.attachments
    signed = example.receipt.draw.signed
    commitment = {} if signed is None else json.loads(signed.payload)
    attachment = json.loads(late.payload)
    for segment in attachment["predicate"]["infers"][0]["segments"]:
        for answer in segment["answers"]:
            answer["statement"] = "(envelope)"
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
