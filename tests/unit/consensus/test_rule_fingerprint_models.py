"""What fingerprints tell of real networks: honest runs, cheaper weights, less layers.

TOPLOC's published thresholds are for bfloat16 on GPUs: a tolerance of 1. Of a network
with random weights they accept weights of four bits and a network without one of its
blocks; of a trained encoder they see both, and accept eight bits. A tolerance for
float32 that leaves room for two of 128 places sees all of these. Weights rounded to
float16 are below what bfloat16 can tell; ``within_tolerance`` sees them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bentoml_secure.consensus.rules import load_rule
from bentoml_secure.tensors import Array
from tests.models import Gpt

PUBLISHED = 1.0
CALIBRATED = 2 / 38
"""For float32 on CPUs: honest runs have one place of 128 exchanged at most."""

TEXTS = [
    "The bridge is 120 metres long and crosses a river in the north, near the mill.",
    "Paris is the capital of France and its largest city, of two million people.",
]


def rounded(weights: Tensor, steps: int) -> Tensor:
    """Round to so many steps on each side of zero, scaled by row."""
    step = weights.abs().amax(1, keepdim=True) / steps
    return (weights / step).round() * step


CHEATS: dict[str, Callable[[Tensor], Tensor]] = {
    "float16": lambda weights: weights.half().float(),
    "int8": lambda weights: rounded(weights, 127),
    "int4": lambda weights: rounded(weights, 7),
}


def cheaper(network: nn.Module, cheat: str) -> Any:
    """Return a copy whose linear layers and embeddings have fewer bits."""
    copied = copy.deepcopy(network)
    for part in copied.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            part.weight.data = CHEATS[cheat](part.weight.data)
    return copied


def distance(a: Array, b: Array, rule: str = "fingerprint") -> float:
    found = load_rule(rule).distance({"hidden": a}, {"hidden": b})
    assert found is not None
    return found


@pytest.fixture(scope="module")
def gpt() -> Any:
    torch.manual_seed(0)
    network = Gpt(vocabulary=1000, context=128).eval()
    network.head = nn.Identity()
    return network


def run(network: Any) -> Array:
    ids = torch.randint(0, 1000, (2, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden: Array = network(ids).float().numpy()
    return hidden


def test_random_weights(gpt: Any) -> None:
    served = run(gpt)
    assert distance(served, run(copy.deepcopy(gpt).double())) <= 1 / 38
    skipped = copy.deepcopy(gpt)
    del skipped.blocks[2]
    for cheat in (run(cheaper(gpt, "int4")), run(skipped)):
        assert CALIBRATED < distance(served, cheat) < PUBLISHED


def test_trained_weights(minilm: Any) -> None:
    served = minilm.hidden(TEXTS)
    honest = minilm.hidden(TEXTS, copy.deepcopy(minilm.encoder).double())
    assert distance(served, honest) <= 1 / 38
    eight = minilm.hidden(TEXTS, cheaper(minilm.encoder, "int8"))
    assert CALIBRATED < distance(served, eight) < PUBLISHED
    skipped = copy.deepcopy(minilm.encoder)
    del skipped.encoder.layer[3]
    four = minilm.hidden(TEXTS, cheaper(minilm.encoder, "int4"))
    assert distance(served, four) > PUBLISHED
    assert distance(served, minilm.hidden(TEXTS, skipped)) > PUBLISHED


def test_half_precision_is_not_seen(gpt: Any) -> None:
    served, cheat = run(gpt), run(cheaper(gpt, "float16"))
    assert distance(served, cheat) < CALIBRATED
    assert distance(served, cheat, "within_tolerance") > 10 * 2e-5
