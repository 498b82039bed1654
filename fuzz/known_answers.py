"""Files of known answers."""

from __future__ import annotations

import numpy as np

from bentoml_secure.consensus.known_answers import (
    KnownAnswer,
    KnownAnswers,
    parse_known_answers,
)
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import SecureError
from fuzz._same import require_same


def seeds() -> list[bytes]:
    """Return files of no segment, and of two with two answers each."""
    answer = KnownAnswer(
        inputs={"x": np.arange(4, dtype=np.float32)},
        outputs={"y": np.ones((2, 2), np.bool_), "z": np.array(1.5)},
    )
    return [
        KnownAnswers(plan=digest_json("p"), segments=segments).to_bytes()
        for segments in ((), ((answer, answer), (answer, answer)))
    ]


def one(data: bytes) -> None:
    """Read bytes as known answers."""
    try:
        answers = parse_known_answers(data)
    except SecureError:
        return
    require_same(answers.to_bytes(), data)
