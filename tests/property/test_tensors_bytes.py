"""tensors-v1: what is written reads back, any other bytes are refused."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bentoml_secure.errors import MalformedInputError, SecureError
from bentoml_secure.tensors import DTYPES, Array, TensorSpec, commit, decode, encode

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    )
)
TENSORS = st.dictionaries(NAMES, ARRAYS, max_size=4)
WHOLE = encode({"x": np.arange(6, dtype=np.float32), "m": np.ones((2, 1), bool)})


@given(TENSORS)
def test_what_is_written_reads_back_bit_for_bit(tensors: dict[str, Array]) -> None:
    made = decode(encode(tensors))
    assert list(made) == sorted(tensors)
    for name, array in tensors.items():
        assert (made[name].dtype, made[name].shape) == (array.dtype, array.shape)
        assert made[name].tobytes() == array.tobytes()


@given(TENSORS)
def test_a_content_has_one_byte_string(tensors: dict[str, Array]) -> None:
    data = encode(tensors)
    assert encode(decode(data)) == data
    assert encode(dict(reversed(tensors.items()))) == data


@given(st.binary(max_size=200))
@example(WHOLE)
def test_any_bytes_read_back_to_themselves_or_are_refused(data: bytes) -> None:
    try:
        made = decode(data)
    except MalformedInputError:
        return
    assert encode(made) == data


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_another_content(at: int, by: int) -> None:
    data = bytearray(WHOLE)
    data[at] ^= by
    try:
        made = decode(data)
    except SecureError:
        return
    assert encode(made) == data
    salts = {name: bytes(32) for name in made}
    assert commit(made, salts) != commit(decode(WHOLE), dict.fromkeys("xm", bytes(32)))


@given(st.integers(0, len(WHOLE)), st.binary(max_size=9), st.integers(0, 9))
def test_spliced_bytes_read_back_to_themselves_or_are_refused(
    at: int, inserted: bytes, dropped: int
) -> None:
    data = WHOLE[:at] + inserted + WHOLE[at + dropped :]
    try:
        made = decode(data)
    except SecureError:
        return
    assert encode(made) == data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda node: (
        st.lists(node, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "dtype", "shape", "allow_nonfinite", "x"]), node
        )
    ),
    max_leaves=8,
)
SPECS = st.builds(
    TensorSpec,
    name=NAMES,
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(0, 1 << 30) | NAMES, max_size=8).map(tuple),
    allow_nonfinite=st.booleans(),
)


@given(SPECS)
def test_a_spec_reads_back(spec: TensorSpec) -> None:
    assert TensorSpec.from_json(spec.to_json(), what="it") == spec


@given(JSON | st.builds(lambda s, j: {**s.to_json(), "shape": j}, SPECS, JSON))
def test_any_document_is_a_spec_or_refused(document: object) -> None:
    try:
        spec = TensorSpec.from_json(document, what="it")
    except SecureError:
        return
    assert isinstance(document, dict)
    assert spec.to_json() == {"allow_nonfinite": False, **document} or (
        spec.to_json() == document or document.get("allow_nonfinite") is False
    )
