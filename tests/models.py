"""Networks to split: an MLP, a residual CNN and a GPT-2-shaped model, random weights.

Exported by torch once per version of this file, into the system's temporary folder.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bentoml_secure.tensors import Array


class Mlp(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, features: int = 32, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers(features)
        return logits


class ResidualBlock(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut.append(nn.Conv2d(before, after, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(after))

    def forward(self, image: Tensor) -> Tensor:
        inner = torch.relu(self.first_norm(self.first(image)))
        inner = self.second_norm(self.second(inner))
        return torch.relu(inner + self.shortcut(image))


class ResidualCnn(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            ResidualBlock(16, 16),
            ResidualBlock(16, 32, 2),
            ResidualBlock(32, 64, 2),
            ResidualBlock(64, 64),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, image: Tensor) -> Tensor:
        pooled = self.blocks(self.stem(image)).mean((2, 3))
        logits: Tensor = self.head(pooled)
        return logits


class Attention(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, tokens, width = hidden.shape
        query, key, value = (
            part.reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.project(hidden).chunk(3, -1)
        )
        scores = (query @ key.transpose(-1, -2)) / math.sqrt(width // self.heads)
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -1e9).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, tokens, width)
        merged: Tensor = self.merge(mixed)
        return merged


class GptBlock(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.before_layers = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.before_attention(hidden))
        done: Tensor = hidden + self.layers(self.before_layers(hidden))
        return done


class Gpt(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(
        self,
        vocabulary: int = 199,
        width: int = 64,
        heads: int = 4,
        blocks: int = 4,
        context: int = 64,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(GptBlock(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        hidden = self.tokens(ids) + self.positions(places)
        logits: Tensor = self.head(self.norm(self.blocks(hidden)))
        return logits


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network by name ("mlp", "cnn", "gpt") and inputs to trace it with."""
    torch.manual_seed(0)
    if name == "mlp":
        return Mlp().eval(), (torch.randn(8, 32),)
    if name == "cnn":
        network = ResidualCnn().eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        return network, (torch.randn(4, 3, 32, 32),)
    return Gpt().eval(), (torch.randint(0, 199, (2, 16)),)


_INPUTS = {"mlp": "features", "cnn": "image", "gpt": "ids"}


def sample(name: str) -> dict[str, Array]:
    """Return inputs of a network, as arrays by the names of the exported model."""
    (tensor,) = build(name)[1]
    return {_INPUTS[name]: np.asarray(tensor.numpy())}


def exported(name: str) -> Path:
    """Return a network as an ONNX file; batch and sequence are free sizes."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"bentoml-secure-models-{version}"
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        partial = folder / f"{name}.{os.getpid()}.onnx"
        _export(name, partial)
        partial.replace(path)
    return path


def _export(name: str, path: Path) -> None:
    network, example = build(name)
    free = {0: torch.export.Dim("batch")}
    if name == "gpt":
        free[1] = torch.export.Dim("tokens", max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            input_names=[_INPUTS[name]],
            output_names=["logits"],
            dynamic_shapes=(free,),
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)
