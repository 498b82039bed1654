"""What an operator of the table is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Tensors of torch, which is untyped here; None for an optional one that is left out.
Inputs = Sequence[Any]
Attributes = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """How torch does what an ONNX operator asks.

    Attributes:
        run: Makes the outputs from the inputs and the attributes: one tensor, or a
            tuple of them.
        attributes: Those that ``run`` regards; a node with any other is refused.
        fixed: Attributes that may be there with this value alone.
        most_outputs: A node that wants more is refused.
    """

    run: Callable[[Inputs, Attributes], Any]
    attributes: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    most_outputs: int = 1
