"""ONNX operators as torch computes them: those of common networks, on their inputs.

Enough for transformer encoders and decoders, multilayer perceptrons and small
convolutional networks, of operator sets 13 to 23. Whatever is not in the table, or has
an attribute that its entry does not name, is refused when a segment is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from bentoml_secure.split.torch_operators.elementwise import ELEMENTWISE
from bentoml_secure.split.torch_operators.layers import LAYERS
from bentoml_secure.split.torch_operators.operator import Operator
from bentoml_secure.split.torch_operators.shaping import SHAPING

OPERATORS: Mapping[str, Operator] = {**ELEMENTWISE, **SHAPING, **LAYERS}
"""By ONNX's name, of its own domain."""
