"""Operators that move elements about, make them or reduce them along axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from bentoml_secure.split.torch_operators.operator import Attributes, Inputs, Operator

_MANY = 1 << 10


def _optional(inputs: Inputs, place: int) -> Any:
    return inputs[place] if len(inputs) > place else None


def _numbers(inputs: Inputs, place: int) -> list[int] | None:
    tensor = _optional(inputs, place)
    return None if tensor is None else tensor.tolist()


def _reshape(inputs: Inputs, attributes: Attributes) -> Any:
    sizes = inputs[1].tolist()
    if not attributes.get("allowzero", 0):
        sizes = [
            inputs[0].shape[axis] if size == 0 else size
            for axis, size in enumerate(sizes)
        ]
    return inputs[0].reshape(sizes)


def _transpose(inputs: Inputs, attributes: Attributes) -> Any:
    order = attributes.get("perm", range(inputs[0].dim())[::-1])
    return inputs[0].permute(*order)


def _expand(inputs: Inputs, _: Attributes) -> Any:
    wanted = torch.Size(inputs[1].tolist())
    shape = torch.broadcast_shapes(inputs[0].shape, wanted)
    return inputs[0].broadcast_to(shape)


def _gather(inputs: Inputs, attributes: Attributes) -> Any:
    axis = attributes.get("axis", 0) % max(inputs[0].dim(), 1)
    return inputs[0][(slice(None),) * axis + (inputs[1].long(),)]


def _gather_elements(inputs: Inputs, attributes: Attributes) -> Any:
    axis = attributes.get("axis", 0)
    places = inputs[1].long()
    size = inputs[0].shape[axis]
    return torch.gather(inputs[0], axis, torch.where(places < 0, places + size, places))


def _concat(inputs: Inputs, attributes: Attributes) -> Any:
    return torch.cat(list(inputs), dim=attributes["axis"])


def _split(inputs: Inputs, attributes: Attributes) -> Any:
    axis = attributes.get("axis", 0)
    sizes = _numbers(inputs, 1)
    if sizes is not None:
        return torch.split(inputs[0], sizes, dim=axis)
    whole, count = inputs[0].shape[axis], attributes["num_outputs"]
    return torch.split(inputs[0], -(-whole // count), dim=axis)


def _slice(inputs: Inputs, _: Attributes) -> Any:
    found = inputs[0]
    starts, ends = inputs[1].tolist(), inputs[2].tolist()
    axes = _numbers(inputs, 3) or list(range(len(starts)))
    steps = _numbers(inputs, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Python's rules of slices are those of ONNX, negative steps included.
        places = range(*slice(start, end, step).indices(found.shape[axis]))
        found = found.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return found


def _squeeze(inputs: Inputs, _: Attributes) -> Any:
    axes = _numbers(inputs, 1)
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))


def _unsqueeze(inputs: Inputs, _: Attributes) -> Any:
    axes, made = inputs[1].tolist(), inputs[0]
    rank = made.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        made = made.unsqueeze(axis)
    return made


def _flatten(inputs: Inputs, attributes: Attributes) -> Any:
    rank = inputs[0].dim()
    axis = attributes.get("axis", 1)
    axis = axis + rank if axis < 0 else axis
    rows = int(torch.Size(inputs[0].shape[:axis]).numel())
    columns = int(torch.Size(inputs[0].shape[axis:]).numel())
    return inputs[0].reshape(rows, columns)


def _shape(inputs: Inputs, attributes: Attributes) -> Any:
    sizes = list(inputs[0].shape)[attributes.get("start", 0) : attributes.get("end")]
    return torch.tensor(sizes, dtype=torch.int64)


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Any:
    value = attributes.get("value", torch.zeros(1))
    return value.reshape(()).broadcast_to(inputs[0].tolist()).clone()


def _range(inputs: Inputs, _: Attributes) -> Any:
    start, limit, step = (value.item() for value in inputs)
    return torch.arange(start, limit, step, dtype=inputs[0].dtype)


def _trilu(inputs: Inputs, attributes: Attributes) -> Any:
    offset = _optional(inputs, 1)
    diagonal = 0 if offset is None else int(offset.item())
    cut = torch.triu if attributes.get("upper", 1) else torch.tril
    return cut(inputs[0], diagonal)


def _arg_max(inputs: Inputs, attributes: Attributes) -> Any:
    keep = bool(attributes.get("keepdims", 1))
    # torch does not promise which of equal ones; the first by value and place.
    axis = attributes.get("axis", 0)
    largest = inputs[0].amax(axis, keepdim=True)
    return (inputs[0] == largest).byte().argmax(axis, keepdim=keep)


def _reducer(reduce: Callable[[Any, tuple[int, ...], bool], Any]) -> Operator:
    def run(inputs: Inputs, attributes: Attributes) -> Any:
        axes = _numbers(inputs, 1)
        if axes is None:
            axes = attributes.get("axes")
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return inputs[0]
        along = tuple(axes) if axes else tuple(range(inputs[0].dim()))
        return reduce(inputs[0], along, bool(attributes.get("keepdims", 1)))

    known = frozenset({"axes", "keepdims", "noop_with_empty_axes"})
    return Operator(run=run, attributes=known)


def _norm2(value: Any, axes: tuple[int, ...], keep: bool) -> Any:
    return torch.sqrt(torch.sum(value * value, axes, keepdim=keep))


SHAPING: Mapping[str, Operator] = {
    "ArgMax": Operator(
        run=_arg_max,
        attributes=frozenset({"axis", "keepdims"}),
        fixed={"select_last_index": 0},
    ),
    "Concat": Operator(run=_concat, attributes=frozenset({"axis"})),
    "Constant": Operator(
        run=lambda _, attributes: attributes["value"], attributes=frozenset({"value"})
    ),
    "ConstantOfShape": Operator(
        run=_constant_of_shape, attributes=frozenset({"value"})
    ),
    "Expand": Operator(run=_expand),
    "Flatten": Operator(run=_flatten, attributes=frozenset({"axis"})),
    "Gather": Operator(run=_gather, attributes=frozenset({"axis"})),
    "GatherElements": Operator(run=_gather_elements, attributes=frozenset({"axis"})),
    "Range": Operator(run=_range),
    "ReduceL2": _reducer(_norm2),
    "ReduceMax": _reducer(lambda v, axes, keep: torch.amax(v, axes, keepdim=keep)),
    "ReduceMean": _reducer(lambda v, axes, keep: torch.mean(v, axes, keepdim=keep)),
    "ReduceMin": _reducer(lambda v, axes, keep: torch.amin(v, axes, keepdim=keep)),
    "ReduceSum": _reducer(
        lambda v, axes, keep: torch.sum(v, axes, keepdim=keep, dtype=v.dtype)
    ),
    "Reshape": Operator(run=_reshape, attributes=frozenset({"allowzero"})),
    "Shape": Operator(run=_shape, attributes=frozenset({"start", "end"})),
    "Slice": Operator(run=_slice),
    "Split": Operator(
        run=_split, attributes=frozenset({"axis", "num_outputs"}), most_outputs=_MANY
    ),
    "Squeeze": Operator(run=_squeeze),
    "Tile": Operator(run=lambda inputs, _: inputs[0].repeat(*inputs[1].tolist())),
    "Transpose": Operator(run=_transpose, attributes=frozenset({"perm"})),
    "Trilu": Operator(run=_trilu, attributes=frozenset({"upper"})),
    "Unsqueeze": Operator(run=_unsqueeze),
}
