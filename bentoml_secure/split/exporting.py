"""From a torch module to a folder with its plan, by way of torch's ONNX exporter."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from bentoml_secure.errors import ConfigurationError, MissingDependencyError
from bentoml_secure.split.plan import Plan
from bentoml_secure.split.splitting import Samples, split_onnx
from bentoml_secure.split.weights import INLINE_BYTES


def split_torch(
    module: Any,
    example_inputs: Sequence[Any] | Mapping[str, Any],
    out: str | Path,
    *,
    segments: int | None = None,
    cuts: Sequence[str | Sequence[str]] | None = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int | None = None,
    tolerance: float = 2e-5,
    runtime: str | None = None,
    samples: Samples | None = None,
    name: str | None = None,
    inline_bytes: int = INLINE_BYTES,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Export a torch module with ``torch.onnx`` and cut it; see ``split_onnx``.

    Args:
        module: A ``torch.nn.Module``, in the mode in which it is to be exported;
            ``eval()`` is the caller's.
        example_inputs: Tensors to trace it with, by position or by argument name.
        out: See ``split_onnx``.
        segments: See ``split_onnx``.
        cuts: See ``split_onnx``; the names are those that the exporter gives.
        dynamic_shapes: As ``torch.export`` takes them; without, every size is fixed.
        input_names: Of the model's inputs; by default as the exporter names them.
        output_names: Of its outputs.
        opset_version: Of ONNX; by default torch's own.
        tolerance: See ``split_onnx``.
        runtime: See ``split_onnx``.
        samples: See ``split_onnx``; by default ``example_inputs``.
        name: Of the model; by default that of its class.
        inline_bytes: See ``split_onnx``.
        progress: Told in a few words what is being done.

    Raises:
        MissingDependencyError: torch or onnxscript is not installed.
        ConfigurationError: torch cannot export the module; see ``split_onnx`` too.
    """
    torch = _torch()
    if progress is not None:
        progress("exporting the module")
    by_name = isinstance(example_inputs, Mapping)
    try:
        program = torch.onnx.export(
            module,
            () if by_name else tuple(example_inputs),
            kwargs=dict(example_inputs)
            if isinstance(example_inputs, Mapping)
            else None,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            input_names=input_names,
            output_names=output_names,
            opset_version=opset_version,
            verbose=False,
        )
    except (torch.onnx.errors.OnnxExporterError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{type(module).__name__}: torch cannot export it: {error}"
        ) from error
    with tempfile.TemporaryDirectory(prefix="bentoml-secure-") as work:
        path = Path(work) / "model.onnx"
        program.save(path)
        return split_onnx(
            path,
            out,
            segments=segments,
            cuts=cuts,
            tolerance=tolerance,
            runtime=runtime,
            samples=_as_sample(path, example_inputs) if samples is None else samples,
            name=type(module).__name__ if name is None else name,
            inline_bytes=inline_bytes,
            progress=progress,
        )


def _torch() -> Any:
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it, and says so late
        import torch.onnx
    except ImportError as error:
        raise MissingDependencyError(
            f"split_torch: {error.name} is not installed.",
            remedy="pip install 'bentoml-secure[torch]'",
        ) from error
    return torch


def _as_sample(
    path: Path, example_inputs: Sequence[Any] | Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the example under the exported model's names, if it maps one to one."""
    wanted = [
        value.name for value in onnx.load(path, load_external_data=False).graph.input
    ]
    if isinstance(example_inputs, Mapping):
        given = [example_inputs[name] for name in wanted if name in example_inputs]
    else:
        given = list(example_inputs)
    if len(given) != len(wanted) or not all(hasattr(t, "numpy") for t in given):
        # Nested or optional arguments: let the samples be made up.
        return None
    return {
        name: tensor.detach().cpu().numpy()
        for name, tensor in zip(wanted, given, strict=True)
    }
