"""The encoder's graph is the published model; its plan is the graph."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bentoml_secure.digest import digest_file_bytes
from bentoml_secure.errors import (
    ConfigurationError,
    MissingDependencyError,
    VerificationError,
)
from bentoml_secure.split import load_chain
from bentoml_secure.split.runtime_onnx import session_options
from bentoml_secure.split.runtimes import GraphLevel
from bentoml_secure.tensors import Array
from examples.encoder import published
from examples.encoder.graph import build_graph
from examples.encoder.prepare import PLAN, TOKENIZER, WHOLE, samples
from examples.encoder.sentences import SENTENCES, text
from services.wordpieces import WordPieces

LARGEST = 1e-6
"""Of the deviation from the published model in torch; measured: 1.7e-7."""

# The example of the model's page: how near each is to "That is a happy person".
PERSON = "That is a happy person"
NEAR = {
    "That is a happy dog": 0.695,
    "That is a very happy person": 0.943,
    "Today is a sunny day": 0.257,
}


@pytest.fixture(scope="module")
def whole(models: Path) -> Any:
    return onnxruntime.InferenceSession(
        models / WHOLE,
        session_options(1, GraphLevel.EXTENDED),
        providers=["CPUExecutionProvider"],
    )


def embed(whole: Any, feed: dict[str, Array]) -> Array:
    (made,) = whole.run(["sentence_embedding"], feed)
    return np.asarray(made)


def test_embeddings_are_those_of_the_models_page(models: Path, whole: Any) -> None:
    feed = WordPieces(models / TOKENIZER).feed([PERSON, *NEAR], truncate=False)
    made = embed(whole, feed)
    np.testing.assert_allclose((made**2).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(made[1:] @ made[0], list(NEAR.values()), atol=6e-4)


def test_the_graph_is_the_published_model_in_torch(models: Path, whole: Any) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    inner = transformers.BertModel.from_pretrained(
        published.published_folder(), add_pooling_layer=False
    ).eval()
    batches = samples(models / TOKENIZER, [(0, 70, 4097), (9,), (5000, 3)])
    for feed in batches:
        mask = torch.from_numpy(feed["attention_mask"])
        with torch.no_grad():
            made = inner(**{name: torch.from_numpy(a) for name, a in feed.items()})
        kept = mask.unsqueeze(-1).to(torch.float32)
        mean = (made.last_hidden_state * kept).sum(1) / kept.sum(1)
        want = torch.nn.functional.normalize(mean, dim=1).numpy()
        assert np.abs(embed(whole, feed) - want).max() < LARGEST


def test_four_segments_give_the_bits_of_the_whole(models: Path, whole: Any) -> None:
    chain = load_chain(models / PLAN, threads=1)
    assert len(chain.segments) == 4
    assert [len(loaded.segment.outputs) for loaded in chain.segments] == [2, 1, 1, 1]
    (feed,) = samples(models / TOKENIZER, [(11, 64 * 9, 2)])
    made = chain.run(feed)["sentence_embedding"]
    assert made.tobytes() == embed(whole, feed).tobytes()


def test_filling_up_changes_nothing_but_last_bits(models: Path, whole: Any) -> None:
    alone, together = samples(models / TOKENIZER, [(0,), (0, 4100)])
    assert together["attention_mask"][0].sum() < together["attention_mask"].shape[1]
    np.testing.assert_allclose(
        embed(whole, together)[0], embed(whole, alone)[0], atol=LARGEST
    )


def test_the_graph_depends_on_the_weights_alone(models: Path) -> None:
    weights = published.read_weights(published.published_folder())
    made = build_graph(weights).SerializeToString()
    assert digest_file_bytes(made) == digest_file_bytes((models / WHOLE).read_bytes())


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(VerificationError, match=r"model\.safetensors: got sha256-file"):
        published.read_weights(tmp_path)
    assert digest_file_bytes(b"other weights") != published.WEIGHTS_DIGEST


def test_missing_weights_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"encoder's weights: .*No such file"):
        published.read_weights(tmp_path)
    monkeypatch.setattr(published, "PACKAGE", "no_such_package")
    with pytest.raises(MissingDependencyError, match=r"bentoml-secure\[encoder\]"):
        published.published_folder()


def test_every_number_has_a_text_of_its_own() -> None:
    assert len(set(SENTENCES)) == len(SENTENCES) == 64
    texts = [text(number) for number in range(6000)]
    assert len(set(texts)) == len(texts)
    assert all(
        one.split()[:3] != two.split()[:3] for one, two in itertools.pairwise(texts)
    )
