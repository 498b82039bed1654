"""Inputs to try a split on: the caller's own, or guesses from the graph.

Guesses: floats are normal, flags and masks are 0 or 1, indices stay below the smallest
table that they are looked up in, and every free size takes two values. A model that
wants more of its inputs (a valid mesh, two tensors that agree) needs real samples.
"""

from __future__ import annotations

import ast
import math
import operator
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from bentoml_secure.errors import ConfigurationError, MalformedInputError
from bentoml_secure.split.graph import Analysis
from bentoml_secure.split.specs import Sizes
from bentoml_secure.tensors import DTYPES, Array, TensorSpec

Sample = dict[str, Array]

_NOT_AN_ARCHIVE = (
    ValueError,
    AttributeError,
    TypeError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)
_SEED = 0
_ROUNDS = 2
_BATCH = (2, 3)
_IMAGE_SIDE = (32, 64)
_LENGTH = (8, 12)
_IMAGE_RANK = 4
_BYTE_RANGE = 128
_LOOKUPS = {"Gather": 1, "GatherElements": 1}
_PASSES_INDICES = frozenset(
    {
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
_OPERATORS: Mapping[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}


def read_samples(path: Path) -> Sample:
    """Read one sample from an .npz file: an array for each input of the model.

    Raises:
        ConfigurationError: The file cannot be read.
        MalformedInputError: Not an .npz of plain arrays.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            sample = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    except _NOT_AN_ARCHIVE as error:
        raise MalformedInputError(f"{path}: is not an .npz of arrays") from error
    for name, array in sample.items():
        if array.dtype.name not in DTYPES:
            raise MalformedInputError(
                f"{path} {name!r:.60}: got {array.dtype.name}, "
                f"want one of {', '.join(DTYPES)}"
            )
    return sample


def guess(
    model: ModelProto, analysis: Analysis, specs: Sequence[TensorSpec]
) -> tuple[Sample, ...]:
    """Make up inputs, the same ones each time, in two sizes."""
    limits = index_limits(model, analysis)
    return tuple(make_up(specs, limits, turn, {}) for turn in range(_ROUNDS))


def make_up(
    specs: Sequence[TensorSpec], limits: Mapping[str, int], turn: int, known: Sizes
) -> Sample:
    """Make up one set of inputs; see the module.

    Args:
        specs: Of the inputs.
        limits: See ``index_limits``.
        turn: Which set: others have other values, every second one the same sizes.
        known: Sizes that are not to be chosen, by their symbols.
    """
    random = np.random.default_rng(_SEED + turn)
    sizes = _sizes(specs, turn % _ROUNDS, known)
    sample = {}
    for spec in specs:
        shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        limit = limits.get(spec.name)
        sample[spec.name] = _values(spec.dtype, shape, limit, random, turn % _ROUNDS)
    return sample


def _values(
    dtype: str,
    shape: Sequence[int],
    limit: int | None,
    random: np.random.Generator,
    turn: int,
) -> Array:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return random.standard_normal(shape).astype(kind)
    if not shape:
        # A condition, a trip count: both branches are tried, loops go round.
        scalar = turn == 0 if kind.kind == "b" else min(turn + 1, (limit or 3) - 1)
        return np.array(scalar, kind)
    if limit is None and kind.kind in "iu" and kind.itemsize == 1:
        limit = _BYTE_RANGE
    drawn = random.integers(0, limit or 2, shape).astype(kind)
    if limit is None and drawn.size:
        # Likely a mask: one that hides a whole row makes NaN of it.
        drawn[..., 0] = 1
    return drawn


def _sizes(specs: Iterable[TensorSpec], turn: int, known: Sizes) -> Sizes:
    """Choose a size for every symbol; sums and products of others are computed."""
    sizes: Sizes = dict(known)
    composed: dict[str, ast.expr] = {}
    for spec in specs:
        for axis, symbol in enumerate(spec.shape):
            if not isinstance(symbol, str) or symbol in sizes:
                continue
            expression = _expression(symbol)
            if expression is not None:
                composed[symbol] = expression
                continue
            image = (
                len(spec.shape) == _IMAGE_RANK and axis >= 2 and spec.dtype[0] == "f"
            )
            choice = _IMAGE_SIDE if image else _LENGTH if axis else _BATCH
            sizes[symbol] = choice[turn]
    for symbol, expression in composed.items():
        sizes[symbol] = max(_evaluate(expression, sizes, _LENGTH[turn]), 1)
    return sizes


def _expression(symbol: str) -> ast.expr | None:
    """Return a symbol such as ``2*s0 + 1`` parsed, None for a plain name."""
    try:
        parsed = ast.parse(symbol, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return parsed if isinstance(parsed, ast.BinOp) else None


def _evaluate(expression: ast.expr, sizes: Sizes, default: int) -> int:
    match expression:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return sizes.setdefault(name, default)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            first = _evaluate(left, sizes, default)
            second = _evaluate(right, sizes, default)
            divides = isinstance(op, ast.Div | ast.FloorDiv)
            return (
                default
                if divides and not second
                else int(_OPERATORS[type(op)](first, second))
            )
    return default


def index_limits(model: ModelProto, analysis: Analysis) -> dict[str, int]:
    """Return, for inputs that are looked up in tables, the size of the smallest one."""
    tables = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in analysis.nodes:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    tables[node.output[0]] = list(attribute.t.dims)
    origins = {name: {name} for name in analysis.inputs}
    limits: dict[str, int] = {}
    for index in analysis.steps:
        node = analysis.nodes[index]
        at = _LOOKUPS.get(node.op_type)
        if at is not None and node.input[0] in tables:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            shape = tables[node.input[0]]
            if -len(shape) <= axis < len(shape):
                for name in origins.get(node.input[at], ()):
                    limits[name] = min(limits.get(name, math.inf), shape[axis])
        elif node.op_type in _PASSES_INDICES:
            passed = set().union(*(origins.get(name, ()) for name in node.input))
            origins |= dict.fromkeys(node.output, passed)
    return limits
