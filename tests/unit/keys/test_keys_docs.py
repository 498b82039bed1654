"""What docs/sealed-models.md shows works as it is shown."""

from __future__ import annotations

import io
import re
from pathlib import Path

from bentoml_secure.digest import digest_json
from bentoml_secure.keys.broker_policy import _MODEL, _TOP
from bentoml_secure.keys.sealed_weights import seal
from bentoml_secure.keys.segment_key import SegmentKey

PAGE = Path(__file__).parents[3] / "docs" / "sealed-models.md"


def block(language: str, containing: str) -> str:
    text = PAGE.read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (found,) = (shown for shown in blocks if containing in shown)
    return str(found)


def test_the_reader_of_the_format_opens_a_sealed_file() -> None:
    key, plain, sealed = SegmentKey.generate(), bytes(range(256)) * 50, io.BytesIO()
    seal(
        io.BytesIO(plain),
        sealed,
        key,
        segment=digest_json("segment"),
        path="segment-0.onnx",
        plain_bytes=len(plain),
        chunk_bytes=4096,
    )
    names = {"data": sealed.getvalue(), "key": key.reveal()}
    exec(compile(block("python", "AESGCM"), str(PAGE), "exec"), names)  # noqa: S102
    assert names["plain"] == plain


def test_the_policy_shown_has_every_key() -> None:
    shown = block("toml", "[[models]]")
    for name in _MODEL | _TOP:
        assert re.search(rf"^(\[+)?{name}\b", shown, re.MULTILINE), name
