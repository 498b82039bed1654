"""Sentence embeddings, verifiable: all-MiniLM-L6-v2 in four segments, three replicas.

``python -m examples.encoder.prepare`` makes the plan and the tokenizer's file of the
published weights; then

    bentoml serve services.encoder:Encoder

is an entry and twelve runners.
"""

from __future__ import annotations

import asyncio

import bentoml
from bentoml.exceptions import InvalidArgument

import bentoml_secure
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.serving.deployment import find
from services.wordpieces import WordPieces

PLAN = "models/encoder"
TOKENIZER = "models/encoder-tokenizer.json"
"""Beside the plan's folder: a signed one holds nothing but what was signed."""


@bentoml_secure.service(
    plan=PLAN,
    replicas=3,
    scenarios="services/encoder.toml",
    name="Encoder",
    traffic={"timeout": 30},
)
class Encoder:
    """Maps sentences to unit vectors: near in meaning is near in angle."""

    secure: bentoml_secure.Secure

    def __init__(self) -> None:
        self._word_pieces = WordPieces(find(TOKENIZER, __name__))

    @bentoml.api
    async def embed(
        self, texts: list[str], truncate: bool = False
    ) -> list[list[float]]:
        """Return the embedding of each text, [texts, 384], each of length 1.

        Args:
            texts: 1 to 32 of up to 4096 characters.
            truncate: Cut what is longer than the model reads, 256 tokens; such a text
                is refused otherwise.
        """
        try:
            feed = await asyncio.to_thread(
                self._word_pieces.feed, texts, truncate=truncate
            )
        except MalformedInputError as error:
            # BentoML's own: it answers 400 and says why.
            raise InvalidArgument(str(error)) from error
        out = await self.secure.infer(feed)
        embeddings: list[list[float]] = out["sentence_embedding"].tolist()
        return embeddings
