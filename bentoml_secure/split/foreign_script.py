"""Runs one segment in another Python environment; started as a script, by path.

It needs onnxruntime and numpy there, and nothing of this package. Tensors come and go
in files of tensors-v1 (safetensors: a length, a JSON header, raw little-endian data);
no byte of it is ever unpickled.

Without arguments it prints the version of ONNX Runtime. With a folder it does what that
folder's job.json says: {"outputs": [names], "runs": [{"level", "threads", "feeds":
[files], "made": [files]}]}, all files in that folder beside its model.onnx.
"""

from __future__ import annotations

import json
import pathlib
import struct
import sys
from typing import Any

import numpy as np
import onnxruntime

_DTYPES = {
    "BOOL": "bool",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
}
_NAMES = {name: wire for wire, name in _DTYPES.items()}


def _decode(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length].decode())
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        tensors[name] = np.zeros(entry["shape"], dtype)
        if end > begin:
            array = np.frombuffer(data[begin:end], dtype.newbyteorder("<"))
            tensors[name] = array.astype(dtype).reshape(entry["shape"])
    return tensors


def _encode(tensors: dict[str, Any]) -> bytes:
    header, parts, offset = {}, [], 0
    for name in sorted(tensors):
        array = tensors[name]
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        parts.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def _session(folder: pathlib.Path, run: dict[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, run["level"]
    )
    options.log_severity_level = 4
    options.intra_op_num_threads = run["threads"]
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )


def main(arguments: list[str]) -> None:
    """Print the version, or do a folder's job."""
    if not arguments:
        print(json.dumps({"onnxruntime": onnxruntime.__version__}))
        return
    folder = pathlib.Path(arguments[0])
    job = json.loads((folder / "job.json").read_text("utf-8"))
    for run in job["runs"]:
        session = _session(folder, run)
        for feed, made in zip(run["feeds"], run["made"], strict=True):
            tensors = _decode((folder / feed).read_bytes())
            outputs = session.run(job["outputs"], tensors)
            named = dict(zip(job["outputs"], outputs, strict=True))
            (folder / made).write_bytes(_encode(named))


if __name__ == "__main__":
    main(sys.argv[1:])
