"""Train the network of services/digits.py and export it to ONNX.

    python -m examples.digits.train build/digits.onnx

Data: 1,797 handwritten digits of 8x8 pixels, shipped by scikit-learn (UCI, optical
recognition of handwritten digits). Seeded: the same weights on every run of one
machine.

The network is shaped for proving. Strides make images smaller, where pooling would
compare numbers; what passes between two layers is small, as every element that leaves
or enters a segment is hashed in its circuit; logits stay small, as a circuit's numbers
have a range.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

BRIGHTEST = 16.0
"""Pixels of the data set are 0 to 16; the network takes 0 to 1."""

BATCH = 32

_REGISTRATION = "torch.onnx._internal.exporter._registration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The data set, split: images float32[samples, 1, 8, 8] of 0 to 1, labels 0-9."""

    train_images: Floats
    train_labels: Labels
    test_images: Floats
    test_labels: Labels


def load_data() -> Data:
    """Load and split the data, a quarter for testing."""
    bunch: Any = load_digits()
    images = (bunch.images / BRIGHTEST).astype(np.float32)[:, None]
    parts = train_test_split(
        images,
        bunch.target.astype(np.int64),
        test_size=0.25,
        random_state=7,
        stratify=bunch.target,
    )
    return Data(
        train_images=parts[0],
        test_images=parts[1],
        train_labels=parts[2],
        test_labels=parts[3],
    )


def build_network() -> nn.Sequential:
    """Return the network, untrained: wide inside, narrow where it is to be cut.

    64 pixels, 32 activations, 32, 10 logits; within the parts 128, 128, 160.
    """
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 128),
        nn.ReLU(),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 160),
        nn.ReLU(),
        nn.Linear(160, 10),
    )


def train(data: Data, *, epochs: int = 60, seed: int = 7) -> nn.Sequential:
    """Train on the training part."""
    torch.manual_seed(seed)
    images = torch.from_numpy(data.train_images)
    labels = torch.from_numpy(data.train_labels)
    model = build_network()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = epochs * math.ceil(len(images) / BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    # Smoothed labels are reached with small logits.
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            rate.step()
    model.eval()
    return model


def accuracy(logits: Floats, labels: Labels) -> float:
    """Return the share of images whose largest logit is that of their label."""
    return float((logits.argmax(1) == labels).mean())


def export(model: nn.Module, path: Path) -> None:
    """Export to ONNX with a symbolic batch size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # It looks for torchvision's operators and logs that there are none.
    logging.getLogger(_REGISTRATION).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch's exporter, about torch's own pytree.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        torch.onnx.export(
            model,
            (torch.zeros(2, 1, 8, 8),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


if __name__ == "__main__":
    export(train(load_data()), Path(sys.argv[1]))
