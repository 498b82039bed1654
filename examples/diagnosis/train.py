"""Train the classifier of services/diagnosis.py and export it to ONNX.

    python -m examples.diagnosis.train build/diagnosis.onnx

Data: Wisconsin diagnostic breast cancer, 569 samples of 30 measurements, shipped by
scikit-learn. Seeded: the same weights on every run of one machine.
"""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import nn

Floats = NDArray[np.float32]

_REGISTRATION = "torch.onnx._internal.exporter._registration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The data set, split: features float32[samples, 30], labels 1 = malignant."""

    train_features: Floats
    train_labels: Floats
    test_features: Floats
    test_labels: Floats


def load_data() -> Data:
    """Load and split the data, a quarter for testing."""
    bunch: Any = load_breast_cancer()
    labels = (bunch.target == 0).astype(np.float32)
    parts = train_test_split(
        bunch.data.astype(np.float32),
        labels,
        test_size=0.25,
        random_state=7,
        stratify=labels,
    )
    return Data(
        train_features=parts[0],
        test_features=parts[1],
        train_labels=parts[2],
        test_labels=parts[3],
    )


class Classifier(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Standardises the features itself, so that a caller sends them as measured."""

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.layers = nn.Sequential(
            nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the probability of malignancy, float32[samples, 1]."""
        scaled = (features - self.mean) / self.deviation
        return torch.sigmoid(self.layers(scaled))


def train(data: Data, *, epochs: int = 60, seed: int = 7) -> Classifier:
    """Train on the training part."""
    torch.manual_seed(seed)
    features = torch.from_numpy(data.train_features)
    labels = torch.from_numpy(data.train_labels)[:, None]
    model = Classifier(features.mean(0), features.std(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    loss = nn.BCELoss()
    for _ in range(epochs):
        for batch in torch.randperm(len(features)).split(32):
            optimizer.zero_grad()
            loss(model(features[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
    return model


def export(model: Classifier, path: Path) -> None:
    """Export to ONNX with a symbolic batch size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # It looks for torchvision's operators and logs that there are none.
    logging.getLogger(_REGISTRATION).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch's exporter, about torch's own pytree.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        torch.onnx.export(
            model,
            (torch.zeros(2, 30),),
            str(path),
            input_names=["features"],
            output_names=["probability"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


if __name__ == "__main__":
    export(train(load_data()), Path(sys.argv[1]))
