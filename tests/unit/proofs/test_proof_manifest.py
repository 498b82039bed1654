"""The manifest: what it refuses to say, and who must have signed it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bentoml_secure.digest import canonical_json, digest_file_bytes
from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.proofs.boundary import FixedTensor, SaltForm
from bentoml_secure.proofs.links import Link
from bentoml_secure.proofs.manifest import (
    MANIFEST_TYPE,
    Manifest,
    sign_manifest,
    verify_manifest,
)
from bentoml_secure.proofs.srs import PERPETUAL, PUBLISHED
from bentoml_secure.signing import SigningKey, parse_envelope, sign
from tests.manifest_case import (
    ACCURACY,
    OWNER,
    PARAMETERS,
    SRS,
    manifest,
    setup,
)


def test_what_is_signed_is_what_is_read() -> None:
    made = manifest()
    envelope = parse_envelope(sign_manifest(made, OWNER).to_json(), what="manifest")
    read = verify_manifest(envelope)
    assert read == made
    assert read.digest == made.digest == envelope.payload_digest
    assert read.signer_id == OWNER.public.key_id


def test_the_digest_changes_with_the_accuracy_that_is_stated() -> None:
    assert manifest().digest != manifest(accuracy=replace(ACCURACY, bound=1.0)).digest


other_tensor = (FixedTensor(name="other", shape=(1, 4)),)
other_shape = (FixedTensor(name="t1", shape=(4, 1)),)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"segments": ()}, "segments: got 0"),
        ({"segments": (setup(0), setup(1, inputs=other_tensor))}, "segment 1 inputs"),
        ({"segments": (setup(0), setup(1, inputs=other_shape))}, "segment 1 inputs"),
        (
            {"segments": (setup(0), setup(1, segment=setup(0).segment))},
            "stands there twice",
        ),
        (
            {
                "segments": (
                    setup(0),
                    setup(1, parameters=replace(PARAMETERS, scale=8)),
                )
            },
            "segment 1 scale: got 8, want 7",
        ),
        ({"scale": 8}, "segment 0 scale: got 7, want 8"),
        (
            {
                "segments": (
                    setup(0),
                    setup(1, parameters=replace(PARAMETERS, logrows=12)),
                )
            },
            r"srs files: got \[11\], want those of the segments, \[11, 12\]",
        ),
        ({"salt": SaltForm(elements=6, bits=22)}, None),
        ({"link": Link.POLYCOMMIT}, "at least 1024 bits for polycommit links"),
        ({"accuracy": replace(ACCURACY, by_output={"t1": 0.25})}, "by_output"),
        ({"signer": "00" * 31}, "Ed25519 key"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    changes: dict[str, Any], reason: str | None
) -> None:
    if reason is None:
        # Just below the circuit's range of 2**24.
        assert manifest(**changes).salt.bits == 22
        return
    with pytest.raises(MalformedInputError, match=reason):
        manifest(**changes)


def test_salt_beyond_the_range_of_a_circuit_is_refused() -> None:
    small = replace(PARAMETERS, decomposition_legs=2)
    with pytest.raises(MalformedInputError, match="salt of 16 bits is out of"):
        manifest(
            segments=(setup(0), setup(1, parameters=small)),
            salt=SaltForm(elements=8, bits=16),
        )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bound": float("inf")}, "bound: got inf"),
        ({"bound": float("nan")}, "bound: got nan"),
        ({"bound": 0.0, "largest": 0.0, "by_output": {"t2": 0.0}}, "above 0"),
        ({"bound": -1.0}, "bound: got -1.0"),
        ({"largest": 0.75, "by_output": {"t2": 0.75}}, "over the bound"),
        ({"by_output": {"t2": 0.125}}, "is not the largest"),
        ({"by_output": {"t2": float("nan")}}, "t2: got nan"),
        ({"by_output": {}}, "by_output"),
        ({"samples": 0}, "samples"),
    ],
)
def test_accuracies_that_say_nothing_are_refused(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MalformedInputError, match=reason):
        replace(ACCURACY, **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unsafe": False}, "srs unsafe: got False, of a string from local"),
        ({"source": PERPETUAL}, "srs unsafe: got True"),
        ({"source": PERPETUAL, "unsafe": False}, "is not of the perpetual powers"),
        ({"source": "mine"}, "srs source: got 'mine'"),
        ({"verifier": bytes(319)}, "got 319 bytes, want 320"),
        ({"files": {}}, "at least one"),
    ],
)
def test_strings_are_what_they_say(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MalformedInputError, match=reason):
        replace(SRS, **changes)


def test_a_published_string_is_called_safe() -> None:
    record = replace(SRS, source=PERPETUAL, unsafe=False, files={11: PUBLISHED[11]})
    assert not manifest(srs=record).srs.unsafe


def document(**changes: Any) -> dict[str, Any]:
    return manifest().to_json() | changes


def entry(**changes: Any) -> dict[str, Any]:
    first, second = manifest().to_json()["segments"]
    return document(segments=[first, second | changes])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (document(more=1), "unknown field 'more'"),
        (document(version=2), "version"),
        (document(version=True), "version: got True"),
        (document(link="kzg"), "link: got 'kzg', want one of hashed, polycommit"),
        (document(link=["hashed"]), "link: got"),
        (document(scale=7.5), "scale: got 7.5"),
        (document(scale=10**400), "scale: out of range"),
        (document(segments={}), "want a list"),
        (document(segments=[{}] * 257), "want a list of at most 256"),
        (document(plan="sha256:" + "0" * 64), "plan"),
        (document(backend="ez\nkl"), "printable"),
        (document(srs=SRS.to_json() | {"unsafe": 1}), "unsafe true or false"),
        (document(srs=SRS.to_json() | {"files": {"011": "x"}}), "got '011'"),
        (document(accuracy=ACCURACY.to_json() | {"samples": 1.5}), "samples: got 1.5"),
        (document(salt={"elements": 10, "bits": 13.0}), "two integers"),
        (entry(rows=0), "segment 1 rows: out of range"),
        (entry(proving_key_bytes=-1), "proving_key_bytes: out of range"),
        (entry(memory_bytes="1"), "memory_bytes: got '1'"),
        (entry(key="sha256:" + "0" * 64), "segment 1 key"),
        (entry(inputs=[]), "inputs: want tensors"),
        (entry(inputs=[{"name": "t1", "shape": [1, 0]}]), "shape: out of range"),
        (entry(inputs=[{"name": "t1", "shape": [1] * 9}]), "list of at most 8"),
        (entry(outputs=[{"name": "t2", "shape": [1 << 20]}] * 2), "each name once"),
        (
            entry(
                outputs=[
                    {"name": "t2", "shape": [1 << 20]},
                    {"name": "t3", "shape": [1]},
                ]
            ),
            "over 1048576 activations",
        ),
        (
            entry(parameters=PARAMETERS.to_json() | {"logrows": 27}),
            "logrows: out of range",
        ),
    ],
)
def test_documents_of_another_form_are_refused(
    given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MalformedInputError, match=reason):
        Manifest.from_json(given)


def test_another_ones_signature_is_refused() -> None:
    other = SigningKey.generate()
    with pytest.raises(MalformedInputError, match="want the key that signs"):
        sign_manifest(manifest(), other)
    forged = sign(other, MANIFEST_TYPE, manifest().to_json())
    with pytest.raises(VerificationError, match="keyid"):
        verify_manifest(forged)
    with pytest.raises(VerificationError, match="does not verify"):
        verify_manifest(replace(forged, key_id=OWNER.public.key_id))


def test_an_edited_manifest_is_refused() -> None:
    signed = sign_manifest(manifest(), OWNER)
    edited = entry(key=digest_file_bytes(b"another vk"))
    with pytest.raises(VerificationError, match="does not verify"):
        verify_manifest(replace(signed, payload=canonical_json(edited)))


def test_what_was_signed_as_something_else_is_refused() -> None:
    signed = sign(OWNER, "application/json", manifest().to_json())
    with pytest.raises(VerificationError, match="payloadType"):
        verify_manifest(signed)
