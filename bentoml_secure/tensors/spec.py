"""What a plan promises of a tensor, and whether an array keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentoml_secure.errors import MalformedInputError

Array = NDArray[Any]

MAX_DIMENSIONS = 8
MAX_NAME_CHARACTERS = 512
MAX_TOTAL_BYTES = 1 << 30

DTYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
}
"""Names as in plan.json and numpy, to those of safetensors."""

_MANY = 4096
_NAMES = {np.dtype(name): name for name in DTYPES}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return numpy's name of a dtype, of either byte order."""
    # numpy spells the name anew at every call, which takes longer than a lookup.
    return _NAMES.get(dtype) or dtype.name


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What a plan promises of a tensor.

    Attributes:
        name: The model's own name of the value.
        dtype: A key of ``DTYPES``.
        shape: A size, or the symbol of a size that only the input fixes, per axis.
        allow_nonfinite: NaN and infinity are part of this tensor's range.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    allow_nonfinite: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the entry of plan.json."""
        entry: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
        }
        if self.allow_nonfinite:
            entry["allow_nonfinite"] = True
        return entry

    @classmethod
    def from_json(cls, entry: object, *, what: str) -> TensorSpec:
        """Parse an entry of plan.json; anything unexpected is refused.

        Raises:
            MalformedInputError: A field is missing, unknown or out of range.
        """
        if not isinstance(entry, dict):
            raise MalformedInputError(f"{what}: want an object")
        if unknown := entry.keys() - {"name", "dtype", "shape", "allow_nonfinite"}:
            raise MalformedInputError(f"{what}: unknown field {sorted(unknown)[0]!r}")
        name, dtype, shape = entry.get("name"), entry.get("dtype"), entry.get("shape")
        require_name(name, what)
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise MalformedInputError(
                f"{what} dtype: got {dtype!r:.40}, want one of {', '.join(DTYPES)}"
            )
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
            raise MalformedInputError(
                f"{what} shape: want a list of at most {MAX_DIMENSIONS} dimensions"
            )
        for size in shape:
            if isinstance(size, bool) or not (
                (isinstance(size, int) and 0 <= size <= MAX_TOTAL_BYTES)
                or (isinstance(size, str) and 0 < len(size) <= MAX_NAME_CHARACTERS)
            ):
                raise MalformedInputError(f"{what} shape: bad dimension {size!r:.40}")
        nonfinite = entry.get("allow_nonfinite", False)
        if not isinstance(nonfinite, bool):
            raise MalformedInputError(f"{what} allow_nonfinite: want true or false")
        return cls(
            name=str(name),
            dtype=str(dtype),
            shape=tuple(shape),
            allow_nonfinite=nonfinite,
        )


def require_name(name: object, what: str) -> None:
    """Refuse what cannot name a tensor.

    Raises:
        MalformedInputError: No text, empty or too long.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise MalformedInputError(
            f"{what} name: got {name!r:.60}, want 1 to {MAX_NAME_CHARACTERS} characters"
        )


def require(tensors: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Refuse tensors that are not exactly those that ``specs`` promise.

    A symbol stands for one size throughout the call.

    Raises:
        MalformedInputError: A name missing or too many, another dtype or shape, or
            NaN or infinity where the spec does not allow them.
    """
    require_shapes(
        {n: (dtype_name(a.dtype), a.shape) for n, a in tensors.items()}, specs
    )
    require_values(tensors, specs)


def require_shapes(
    found: Mapping[str, tuple[str, tuple[int, ...]]], specs: Sequence[TensorSpec]
) -> None:
    """Refuse names, dtypes and shapes other than those of ``specs``.

    Raises:
        MalformedInputError: With the first tensor that differs.
    """
    wanted = {spec.name for spec in specs}
    if found.keys() != wanted:
        raise MalformedInputError(
            f"tensors: got {sorted(found)!r:.200}, want {sorted(wanted)!r:.200}"
        )
    symbols: dict[str, int] = {}
    for spec in specs:
        dtype, shape = found[spec.name]
        if dtype != spec.dtype:
            raise MalformedInputError(
                f"tensor {spec.name!r} dtype: got {dtype}, want {spec.dtype}"
            )
        fits = len(shape) == len(spec.shape) and all(
            size == (symbols.setdefault(want, size) if isinstance(want, str) else want)
            for size, want in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            raise MalformedInputError(
                f"tensor {spec.name!r} shape: got {list(shape)}, "
                f"want {list(spec.shape)}"
            )


def with_sizes(
    specs: Sequence[TensorSpec],
    given: Sequence[TensorSpec],
    tensors: Mapping[str, Array],
) -> tuple[TensorSpec, ...]:
    """Return ``specs`` with every symbol that the given tensors fix as a size.

    Args:
        specs: What is expected, such as a segment's outputs.
        given: What the tensors were required to be, such as its inputs.
        tensors: Of the names and shapes of ``given``.
    """
    sizes: dict[int | str, int] = {}
    for spec in given:
        sizes.update(zip(spec.shape, tensors[spec.name].shape, strict=True))
    return tuple(
        replace(
            spec,
            shape=tuple(
                sizes.get(axis, axis) if isinstance(axis, str) else axis
                for axis in spec.shape
            ),
        )
        for spec in specs
    )


def require_values(tensors: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Refuse NaN and infinity where not allowed, and booleans that are neither.

    Args:
        tensors: Of the names, dtypes and shapes that ``specs`` promise.
        specs: The plan's.

    Raises:
        MalformedInputError: With the first tensor at fault.
    """
    for spec in specs:
        array = tensors[spec.name]
        if spec.dtype == "bool" and array.size and array.view(np.uint8).max() > 1:
            raise MalformedInputError(f"tensor {spec.name!r}: a bool is not 0 or 1")
        if not spec.allow_nonfinite and not is_finite(array):
            raise MalformedInputError(f"tensor {spec.name!r}: holds NaN or infinity")


def is_finite(array: Array) -> bool:
    """Tell whether every element is finite, in one cheap pass for the usual case."""
    if array.dtype.kind != "f" or not array.size:
        return True
    flat = array.reshape(-1)
    if flat.size > _MANY and array.dtype.itemsize == 4:
        with np.errstate(over="ignore", invalid="ignore"):
            # A finite sum of squares proves it; an overflow proves nothing.
            if np.isfinite(np.dot(flat, flat)):
                return True
    return bool(np.isfinite(flat).all())
