"""Opening commitments: does a receipt speak of the very bytes that the caller holds.

Only who holds the request's root salt can do this: a receipt alone does not let its
reader try inputs, however few there are to try.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bentoml_secure.digest import (
    SALT_BYTES,
    Digest,
    Scheme,
    commit_body,
    derive_salt,
    equal,
)
from bentoml_secure.errors import ConfigurationError
from bentoml_secure.receipts.case import Report
from bentoml_secure.receipts.proof_opening import TENSOR_PURPOSE
from bentoml_secure.receipts.receipt import Receipt
from bentoml_secure.tensors import Array, commit

Opened = bytes | Mapping[str, Array]
"""A body's bytes, or the tensors of the first ``infer`` by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the caller holds of a request.

    Attributes:
        salt: The 32-byte root salt.
        request: Body of the request, or the tensors that went into the chain.
        response: Body of the response, or the tensors that came out of it.

    Raises:
        ConfigurationError: Something to compare and no salt, or the reverse; a salt
            of another length.
    """

    salt: bytes | None
    request: Opened | None = None
    response: Opened | None = None

    def __post_init__(self) -> None:
        if self.salt is None:
            raise ConfigurationError(
                "opening: got no root salt.",
                remedy="Give the 32-byte salt that the request was made with.",
            )
        if len(self.salt) != SALT_BYTES:
            raise ConfigurationError(
                f"opening: got a root salt of {len(self.salt)} bytes, want {SALT_BYTES}"
            )
        if self.request is None and self.response is None:
            raise ConfigurationError(
                "opening: got a root salt and nothing to compare.",
                remedy="Give the input, the output or both.",
            )


def judge_opening(
    opening: Opening, receipt: Receipt, report: Report, *, served: str = TENSOR_PURPOSE
) -> None:
    """Compare what the caller holds with the receipt's commitments.

    Args:
        opening: What the caller holds.
        receipt: Whose commitments are compared.
        report: Takes the findings.
        served: Purpose of the salts of the answer's tensors: that of the proven answer
            is another than that of what replicas answered.
    """
    first = receipt.infers[0]
    for name, held, body, tensors, purpose in (
        ("request", opening.request, receipt.request, first.inputs, TENSOR_PURPOSE),
        ("response", opening.response, receipt.response, first.outputs, served),
    ):
        if isinstance(held, Mapping):
            salts = {each: _salt(opening, receipt, purpose, each) for each in held}
            _open_tensors(f"opening {name}", held, tensors, salts, report)
        elif held is not None:
            salt = _salt(opening, receipt, "body", name)
            made = commit_body(salt, held, Scheme.of(body))
            _compare(f"opening {name}", made, body, report)


def _open_tensors(
    where: str,
    held: Mapping[str, Array],
    want: Mapping[str, Digest],
    salts: Mapping[str, bytes],
    report: Report,
) -> None:
    if held.keys() != want.keys():
        report.add(f"{where} tensors", sorted(held), sorted(want))
        return
    for name, array in held.items():
        made = commit({name: array}, {name: salts[name]}, Scheme.of(want[name]))
        _compare(f"{where} {name}", made[name], want[name], report)


def _compare(where: str, got: Digest, want: Digest, report: Report) -> None:
    if not equal(got, want):
        report.add(where, got, want)


def _salt(opening: Opening, receipt: Receipt, purpose: str, name: str) -> bytes:
    return derive_salt(
        opening.salt or b"",
        request_id=bytes.fromhex(receipt.receipt_id),
        infer_index=0,
        purpose=purpose,
        name=name,
    )
