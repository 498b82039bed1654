"""Tensor specs of a model's values: what inference says, as far as samples bear it out.

Sizes that nobody knows get symbols of their own, so that two unknown sizes are never
taken for one. Where a sample shows another size than inference promised, the sample
is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx import TensorProto, TypeProto

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.split.types import DTYPE_NAMES
from bentoml_secure.tensors import (
    DTYPES,
    MAX_DIMENSIONS,
    MAX_NAME_CHARACTERS,
    MAX_TOTAL_BYTES,
    Array,
    TensorSpec,
    is_finite,
)

Sizes = dict[str, int]
"""Symbol to the size that one call binds it to."""


class Specs:
    """The specs of a model's values by name, made on demand and kept."""

    def __init__(self, types: Mapping[str, TypeProto.Tensor]) -> None:
        self._types = types
        self._made: dict[str, TensorSpec] = {}
        self._symbols = {
            size.dim_param for known in types.values() for size in known.shape.dim
        }

    def refusal(self, name: str) -> str:
        """Return why a value cannot be sent as a tensor, or nothing if it can."""
        if len(name) > MAX_NAME_CHARACTERS:
            return f"its name is longer than {MAX_NAME_CHARACTERS} characters"
        if name in self._made:
            return ""
        known = self._types.get(name)
        if known is None:
            return "it is not a tensor, or its type or rank is not known"
        if known.elem_type not in DTYPE_NAMES:
            names = {number: name for name, number in TensorProto.DataType.items()}
            element = names.get(known.elem_type, f"of type {known.elem_type}")
            return f"its elements are {element}, which tensors-v1 does not carry"
        if len(known.shape.dim) > MAX_DIMENSIONS:
            return f"it has {len(known.shape.dim)} axes, want up to {MAX_DIMENSIONS}"
        if any(size.dim_value > MAX_TOTAL_BYTES for size in known.shape.dim):
            return f"it is larger than {MAX_TOTAL_BYTES} bytes"
        return ""

    def of(self, name: str) -> TensorSpec:
        """Return the spec of a value.

        Raises:
            ConfigurationError: It cannot be sent as a tensor; the message says why.
        """
        if name not in self._made:
            if reason := self.refusal(name):
                raise ConfigurationError(f"tensor {name!r:.100}: {reason}")
            known = self._types[name]
            self._made[name] = TensorSpec(
                name=name,
                dtype=DTYPE_NAMES[known.elem_type],
                shape=tuple(
                    size.dim_value
                    if size.HasField("dim_value") and size.dim_value >= 0
                    else self._symbol(size.dim_param)
                    for size in known.shape.dim
                ),
            )
        return self._made[name]

    def _symbol(self, given: str = "") -> str:
        if 0 < len(given) <= MAX_NAME_CHARACTERS:
            return given
        fresh = f"any_{len(self._symbols)}"
        while fresh in self._symbols:
            fresh += "_"
        self._symbols.add(fresh)
        return fresh

    def learn(self, name: str, array: Array) -> None:
        """Take the type of a value from a sample, if inference did not know it.

        Raises:
            ConfigurationError: The sample's dtype or rank is none that can be sent.
        """
        if name in self._types or name in self._made:
            return
        if array.dtype.name not in DTYPES or array.ndim > MAX_DIMENSIONS:
            raise ConfigurationError(
                f"tensor {name!r:.100}: got {array.dtype.name} with {array.ndim} axes, "
                f"want one of {', '.join(DTYPES)} with up to {MAX_DIMENSIONS}"
            )
        shape = tuple(self._symbol() for _ in range(array.ndim))
        self._made[name] = TensorSpec(name=name, dtype=array.dtype.name, shape=shape)

    def bind(self, names: Sequence[str], arrays: Mapping[str, Array]) -> Sizes:
        """Return the sizes that these arrays give to the symbols, first come."""
        sizes: Sizes = {}
        for name in names:
            spec = self.of(name)
            if len(spec.shape) == arrays[name].ndim:
                for want, size in zip(spec.shape, arrays[name].shape, strict=True):
                    if isinstance(want, str):
                        sizes.setdefault(want, size)
        return sizes

    def observe(self, name: str, array: Array, sizes: Sizes) -> None:
        """Give way to what a run showed of one value.

        A size that inference promised and the run contradicts becomes a symbol; NaN
        or infinity in an honest run makes them part of the tensor's range.

        Args:
            name: Of the value.
            array: What the run made.
            sizes: Of the symbols so far in this run; new ones are added.

        Raises:
            ConfigurationError: The dtype or rank is not the inferred one.
        """
        spec = self.of(name)
        if array.dtype.name != spec.dtype or array.ndim != len(spec.shape):
            raise ConfigurationError(
                f"tensor {name!r:.100}: got {array.dtype.name} {list(array.shape)}, "
                f"the graph says {spec.dtype} {list(spec.shape)}.",
                remedy="Correct the types that the model declares.",
            )
        shape = []
        for want, size in zip(spec.shape, array.shape, strict=True):
            bound = sizes.setdefault(want, size) if isinstance(want, str) else want
            held = want if bound == size else self._symbol()
            if isinstance(held, str):
                sizes.setdefault(held, size)
            shape.append(held)
        self._made[name] = replace(
            spec,
            shape=tuple(shape),
            allow_nonfinite=spec.allow_nonfinite or not is_finite(array),
        )
