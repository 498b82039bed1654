"""A segment as one ONNX message, its external data taken in."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from onnx import ModelProto

from bentoml_secure.errors import MalformedInputError, VerificationError
from bentoml_secure.split.plan import Segment
from bentoml_secure.split.protos import external_location, parse_model, tensors_of
from bentoml_secure.split.weights import MAX_PROTO_BYTES


def inline_segment(segment: Segment, contents: Mapping[str, bytes]) -> ModelProto:
    """Return a segment's model with every tensor in it.

    Args:
        segment: Its entry in the plan.
        contents: The bytes of each of its files by path, compared with their digests.

    Raises:
        MalformedInputError: Not ONNX, data over the end of a file, or too large to be
            one message.
        VerificationError: A tensor names a file that the plan does not list.
    """
    model = parse_model(contents[segment.file], what=segment.file)
    folder = posixpath.dirname(segment.file)
    taken = 0
    for tensor in tensors_of(model):
        location = external_location(tensor)
        if location is None:
            continue
        data = contents.get(posixpath.join(folder, location.path))
        if data is None:
            raise VerificationError(
                f"{segment.file}: tensor {tensor.name!r:.100} names the file "
                f"{location.path!r:.100}, which the plan does not list"
            )
        length = location.require_within(len(data), tensor.name)
        taken += length
        if taken > MAX_PROTO_BYTES:
            raise MalformedInputError(
                f"{segment.file}: over {MAX_PROTO_BYTES} bytes of weights, more than "
                "one ONNX message holds.",
                remedy="Split the model into more segments.",
            )
        tensor.raw_data = data[location.offset : location.offset + length]
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return model
