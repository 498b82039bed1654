"""Inputs that honest runs are compared on: rows of a batch, one by one and together.

One *input* is one row of the batch where all inputs of the model are led by the same
free size, and one whole request elsewhere. Inputs of other sizes (longer texts, larger
images) cannot be stacked, so they come in groups of equal sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.split.graph import analyse
from bentoml_secure.split.plan import Plan
from bentoml_secure.split.samples import Sample, index_limits, make_up
from bentoml_secure.tensors import TensorSpec
from bentoml_secure.tensors import require as require_tensors

_GROUPS = 2


def batch_symbol(plan: Plan) -> str | None:
    """Return the free size that leads all inputs, None if there is none."""
    leading = {spec.shape[0] if spec.shape else None for spec in plan.inputs}
    symbol = leading.pop() if len(leading) == 1 else None
    return symbol if isinstance(symbol, str) else None


def is_led_by(spec: TensorSpec, symbol: str | None) -> bool:
    """Return whether a tensor has a row for each input of a batch."""
    return symbol is not None and bool(spec.shape) and spec.shape[0] == symbol


def draw_inputs(
    plan: Plan, models: Sequence[ModelProto], samples: Sample | None, count: int
) -> tuple[tuple[Sample, ...], ...]:
    """Return inputs in groups of equal sizes, each input a request of its own.

    Args:
        plan: Whose inputs they are.
        models: Of its segments, to make inputs up from.
        samples: The caller's, stacked along the batch or a first axis of their own;
            made up from the model's types if None.
        count: How many inputs.

    Raises:
        ConfigurationError: Too few samples, or other ones than the plan's inputs.
        MalformedInputError: A sample of another dtype or shape.
    """
    if samples is None:
        return _made_up(plan, models, count)
    want = {spec.name for spec in plan.inputs}
    if samples.keys() != want:
        raise ConfigurationError(
            f"samples: got {sorted(samples)!r:.200}, want {sorted(want)!r:.200}"
        )
    rows = _rows(plan, samples)
    if len(rows) < count:
        raise ConfigurationError(
            f"samples: got {len(rows)} inputs, want {count}.",
            remedy="Give more rows in the .npz, along the batch or a first axis.",
        )
    for row in rows[:count]:
        require_tensors(row, plan.inputs)
    return (tuple(rows[:count]),)


def _rows(plan: Plan, samples: Sample) -> list[Sample]:
    """Take stacked samples apart."""
    batched = batch_symbol(plan) is not None
    lengths = set()
    stacked = all(
        samples[spec.name].ndim == len(spec.shape) + 1 for spec in plan.inputs
    )
    for spec in plan.inputs:
        array = samples[spec.name]
        if not stacked and (not batched or array.ndim != len(spec.shape)):
            raise ConfigurationError(
                f"samples {spec.name!r:.60}: got {list(array.shape)}, want inputs of "
                f"{list(spec.shape)!r:.100} stacked along a first axis"
            )
        lengths.add(len(array))
    if len(lengths) != 1:
        raise ConfigurationError(
            f"samples: got {sorted(lengths)} inputs, want as many of each array"
        )
    if stacked:
        return [
            {name: array[at] for name, array in samples.items()}
            for at in range(lengths.pop())
        ]
    return split_rows(samples, lengths.pop())


def _made_up(
    plan: Plan, models: Sequence[ModelProto], count: int
) -> tuple[tuple[Sample, ...], ...]:
    limits: dict[str, int] = {}
    for model in models:
        for name, limit in index_limits(model, analyse(model)).items():
            limits[name] = min(limit, limits.get(name, limit))
    symbol, groups = batch_symbol(plan), []
    for turn in range(_GROUPS):
        size = count // _GROUPS + (turn < count % _GROUPS)
        if symbol is None:
            turns = range(turn, turn + _GROUPS * size, _GROUPS)
            groups.append([make_up(plan.inputs, limits, t, {}) for t in turns])
        else:
            whole = make_up(plan.inputs, limits, turn, {symbol: size})
            groups.append(split_rows(whole, size))
    return tuple(tuple(group) for group in groups if group)


def split_rows(tensors: Sample, count: int) -> list[Sample]:
    """Return the rows of a batch, each as a batch of one."""
    return [
        {name: array[at : at + 1] for name, array in tensors.items()}
        for at in range(count)
    ]
