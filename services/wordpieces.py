"""Texts to word pieces, as all-MiniLM-L6-v2 reads them: bounded before anything is cut.

The tokenizer decides what the model is asked, and nobody votes on that: its file is
pinned here, by the digest of the published one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bentoml_secure.digest import Digest, digest_file_bytes
from bentoml_secure.errors import (
    ConfigurationError,
    MalformedInputError,
    MissingDependencyError,
    VerificationError,
)
from bentoml_secure.tensors import Array

MAX_TEXTS = 32
MAX_CHARACTERS = 4096
MAX_TOKENS = 256
"""What the model reads of a text, its first and last marks included; model card."""

TOKENIZER_DIGEST = Digest(
    "sha256-file-v1:be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
)
_PREPARE = "Run `python -m examples.encoder.prepare`."


def read_tokenizer_file(path: Path) -> bytes:
    """Read the tokenizer's file, which must be the published one.

    Raises:
        ConfigurationError: It cannot be read.
        VerificationError: It is another file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"tokenizer: {error}.", remedy=_PREPARE) from error
    if (got := digest_file_bytes(data)) != TOKENIZER_DIGEST:
        raise VerificationError(
            f"{path}: got {got}, want {TOKENIZER_DIGEST}.", remedy=_PREPARE
        )
    return data


class WordPieces:
    """Makes the model's inputs of texts.

    Args:
        path: Of the published tokenizer.json.

    Raises:
        ConfigurationError: The file cannot be read.
        VerificationError: It is another file.
        MissingDependencyError: tokenizers is not installed.
    """

    def __init__(self, path: Path) -> None:
        data = read_tokenizer_file(path)
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingDependencyError(
                "the encoder: tokenizers is not installed.",
                remedy="pip install 'bentoml-secure[encoder]'",
            ) from error
        self._tokenizer = Tokenizer.from_str(data.decode())
        # As published it cuts at 128 and fills up to 128, without a word.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def feed(self, texts: Sequence[str], *, truncate: bool) -> dict[str, Array]:
        """Return the model's inputs: int64[texts, tokens], filled up with zeros.

        Args:
            texts: 1 to ``MAX_TEXTS`` of up to ``MAX_CHARACTERS`` characters.
            truncate: Whether a text of over ``MAX_TOKENS`` is cut, or refused.

        Raises:
            MalformedInputError: Too many texts, or none; one that is too long, or
                that is not Unicode.
        """
        _require_bounded(texts)
        rows = [self._cut(index, text, truncate) for index, text in enumerate(texts)]
        shape = (len(rows), max(map(len, rows)))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros(shape, np.int64),
        }

    def _cut(self, index: int, text: str, truncate: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        if len(ids) <= MAX_TOKENS:
            return ids
        if not truncate:
            raise MalformedInputError(
                f"texts {index}: got {len(ids)} tokens, the model reads {MAX_TOKENS}.",
                remedy="Shorten it, or have it cut there with truncate=true.",
            )
        # The end mark stays the last one.
        return [*ids[: MAX_TOKENS - 1], ids[-1]]


def _require_bounded(texts: Sequence[str]) -> None:
    if not 0 < len(texts) <= MAX_TEXTS:
        raise MalformedInputError(f"texts: got {len(texts)}, want 1 to {MAX_TEXTS}")
    for index, text in enumerate(texts):
        if len(text) > MAX_CHARACTERS:
            raise MalformedInputError(
                f"texts {index}: got {len(text)} characters, "
                f"want at most {MAX_CHARACTERS}"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise MalformedInputError(f"texts {index}: not Unicode: {error}") from error
