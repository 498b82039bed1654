"""tensors-v1: one byte string per content, every limit held before anything is made."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from bentoml_secure.digest import Scheme
from bentoml_secure.errors import MalformedInputError
from bentoml_secure.tensors import (
    DTYPES,
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_NAME_CHARACTERS,
    MAX_TENSORS,
    MAX_TOTAL_BYTES,
    Array,
    TensorCommitments,
    TensorSpec,
    as_bytes,
    canonical,
    commit,
    decode,
    encode,
    header_length,
    is_finite,
    layout_of,
    parse_header,
    require,
    require_layout,
    require_shapes,
    require_values,
    wire_dtype,
)

SALT = bytes(range(32))


def pack(text: bytes | str | dict[str, Any], *, pad: bool = True) -> bytes:
    """Return a header as an attacker would write it."""
    if isinstance(text, dict):
        text = json.dumps(text, separators=(",", ":"), ensure_ascii=False)
    if isinstance(text, str):
        text = text.encode()
    if pad:
        text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def sample(dtype: str) -> Array:
    return np.arange(6).reshape(2, 3).astype(dtype)


# Round trips


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back(dtype: str) -> None:
    made = decode(encode({"x": sample(dtype)}))
    np.testing.assert_array_equal(made["x"], sample(dtype), strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_others_read_what_we_write(dtype: str) -> None:
    made = safetensors.numpy.load(encode({"x": sample(dtype), "a": sample("int8")}))
    assert made.keys() == {"x", "a"}
    np.testing.assert_array_equal(made["x"], sample(dtype), strict=True)


@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (0, 3), (3, 0, 2), (1,) * MAX_DIMENSIONS]
)
def test_odd_shapes_come_back(shape: tuple[int, ...]) -> None:
    made = decode(encode({"x": np.ones(shape, np.float32)}))["x"]
    np.testing.assert_array_equal(made, np.ones(shape, np.float32), strict=True)
    assert made.shape == shape


def test_the_bytes_are_these() -> None:
    header = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
    header += '"ä":{"dtype":"F32","shape":[],"data_offsets":[2,6]}}'.encode()
    header += b" " * (-len(header) % 8)
    wanted = struct.pack("<Q", len(header)) + header + b"\x01\x02" + b"\x00\x00\x80?"
    tensors: dict[str, Array] = {
        "ä": np.array(1, np.float32),
        "a": np.array([1, 2], np.uint8),
    }
    assert encode(tensors) == wanted
    assert encode(dict(reversed(tensors.items()))) == wanted


def test_the_memory_layout_does_not_show() -> None:
    plain = sample("float32")
    for odd in (
        np.asfortranarray(plain),
        plain.astype(">f4"),
        np.repeat(plain, 2, axis=1)[:, ::2],
        plain[::-1][::-1],
    ):
        assert encode({"x": odd}) == encode({"x": plain})
    assert canonical(plain) is plain or np.shares_memory(canonical(plain), plain)


def test_no_tensors_at_all() -> None:
    assert decode(encode({})) == {}
    assert parse_header(pack({})).total_bytes == 16


def test_decoding_makes_views() -> None:
    data = bytearray(encode({"x": sample("float64")}))
    made = decode(data)["x"]
    data[-1] ^= 0xFF
    assert made[-1, -1] != 5.0
    assert bytes(as_bytes(sample("int8"))) == sample("int8").tobytes()


# What is refused


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"", "length does not fit"),
        (struct.pack("<Q", 8) + b"{}", "length does not fit"),
        (struct.pack("<Q", 0), "got 0 bytes"),
        (pack(b"{}", pad=False), "got 2 bytes, want a multiple of 8"),
        (pack(b" " * (MAX_HEADER_BYTES + 8)), "want a multiple of 8 up to"),
        (pack(b"\xff" * 8), "not valid JSON"),
        (pack(b"[]"), "want an object"),
        (pack(b"7"), "want an object"),
        (pack({f"{n:03}": 1 for n in range(MAX_TENSORS + 1)}), "want an object of at"),
        (pack({"x": 1}), "'x': want dtype, shape and data_offsets"),
        (pack({"x": {"dtype": "F32"}}), "want dtype, shape and data_offsets"),
        (pack(entry(more=1)), "want dtype, shape and data_offsets"),
        (pack({"__metadata__": {"a": "b"}}), "want dtype, shape"),
        (pack(entry(dtype="F8_E4M3")), "dtype: got 'F8_E4M3'"),
        (pack(entry(dtype="float32")), "dtype: got 'float32'"),
        (pack(entry(dtype=["F32"])), "dtype: got"),
        (pack(entry(shape=2)), "want at most 8 axes"),
        (pack(entry(shape=[1] * 9)), "want at most 8 axes"),
        (pack(entry(shape=[-2])), "bad dimension -2"),
        (pack(entry(shape=[True])), "bad dimension True"),
        (pack(entry(shape=[2.0])), "bad dimension 2.0"),
        (pack(entry(shape=["2"])), "bad dimension '2'"),
        (pack(entry(shape=[None])), "bad dimension None"),
        (pack(entry(data_offsets=[0, 7])), "data_offsets: got"),
        (pack(entry(data_offsets=[1, 9])), r"want \[0, 8\]"),
        (pack(entry(data_offsets=[8, 0])), "data_offsets"),
        (pack(entry(data_offsets=8)), "data_offsets"),
        (pack(entry(data_offsets=[0, 8, 8])), "data_offsets"),
        (pack(entry(data_offsets=[False, 8])), "not in its canonical form"),
        (pack(entry(data_offsets=[0.0, 8.0])), "not in its canonical form"),
        (pack(entry(shape=[MAX_TOTAL_BYTES + 1])), "over 1073741824 bytes"),
        (pack(entry(shape=[1 << 20, 1 << 20, 1])), "over 1073741824 bytes"),
        # A zero must not hide what stands before or after it.
        (pack(entry(shape=[0, 1 << 40], data_offsets=[0, 0])), "over 1073741824"),
        (pack(entry(shape=[1 << 40, 0], data_offsets=[0, 0])), "over 1073741824"),
        (pack({"": entry()["x"]}), "name: got ''"),
        (pack({"n" * (MAX_NAME_CHARACTERS + 1): entry()["x"]}), "1 to 512 characters"),
        (pack(json.dumps(entry())), "not in its canonical form"),
        (pack(json.dumps(entry(), separators=(",", ":")) + " " * 8), "canonical"),
        (pack(b" " + json.dumps(entry(), separators=(",", ":")).encode()), "canonical"),
        (
            pack('{"x":{"shape":[2],"dtype":"F32","data_offsets":[0,8]}}'),
            "not in its canonical form",
        ),
        (
            pack('{"\\u0078":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
            "not in its canonical form",
        ),
        (
            pack(
                '{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                '"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
            ),
            "not in its canonical form",
        ),
        (
            pack(
                '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
            ),
            "stands twice",
        ),
    ],
)
def test_a_header_that_is_none(header: bytes, why: str) -> None:
    with pytest.raises(MalformedInputError, match=why):
        parse_header(header)


def test_many_tensors_that_are_too_large_together() -> None:
    half = MAX_TOTAL_BYTES // 2 + 1
    document = {
        name: {
            "dtype": "U8",
            "shape": [half],
            "data_offsets": [n * half, n * half + half],
        }
        for n, name in enumerate("ab")
    }
    with pytest.raises(
        MalformedInputError, match=f"got {2 * half} bytes, want at most"
    ):
        parse_header(pack(document))


def test_as_many_tensors_as_are_allowed() -> None:
    tensors = {f"{n:03}": np.array([n], np.uint16) for n in range(MAX_TENSORS)}
    assert decode(encode(tensors))["255"][0] == 255
    with pytest.raises(MalformedInputError, match="at most 256 tensors"):
        encode({**tensors, "256": np.zeros(1, np.uint16)})


@pytest.mark.parametrize("data", [b"", bytes(7)])
def test_bytes_that_are_too_few_for_a_length(data: bytes) -> None:
    with pytest.raises(MalformedInputError, match="want at least 8"):
        decode(data)


def test_every_truncation_and_every_extra_byte_is_refused() -> None:
    whole = encode({"x": sample("float32"), "y": sample("int8")})
    for end in range(8, len(whole)):
        with pytest.raises(MalformedInputError, match="tensors-v1: "):
            decode(whole[:end])
    with pytest.raises(MalformedInputError, match=f"got {len(whole) + 1} bytes, want"):
        decode(whole + b"\0")


def test_nothing_is_allocated_for_what_is_only_announced() -> None:
    header = pack(
        entry(shape=[MAX_TOTAL_BYTES // 4], data_offsets=[0, MAX_TOTAL_BYTES])
    )
    tracemalloc.start()
    with pytest.raises(MalformedInputError, match="want 1073741"):
        decode(header + bytes(64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"": sample("int8")}, "tensor name: got ''"),
        ({"n" * 513: sample("int8")}, "1 to 512 characters"),
        ({"\ud800": sample("int8")}, "tensor name: .*surrogates"),
        ({"x": np.zeros(1, np.complex64)}, "dtype: got complex64"),
        ({"x": np.array(["text"])}, "dtype: got str"),
        ({"x": np.array([object()])}, "dtype: got object"),
        ({"x": np.zeros(1, "datetime64[s]")}, r"dtype: got datetime64\[s\]"),
        ({"x": np.zeros(1, [("a", "f4")])}, "dtype: got void32"),
        ({"x": np.zeros((1,) * 9, np.int8)}, "want at most 8 axes"),
    ],
)
def test_arrays_that_have_no_form(tensors: dict[str, Array], why: str) -> None:
    with pytest.raises(MalformedInputError, match=why):
        encode(tensors)


def test_header_lengths_are_bounded() -> None:
    assert header_length(struct.pack("<Q", MAX_HEADER_BYTES)) == MAX_HEADER_BYTES + 8
    for length in (0, 7, MAX_HEADER_BYTES + 8, (1 << 64) - 8):
        with pytest.raises(MalformedInputError, match=f"got {length} bytes"):
            header_length(struct.pack("<Q", length))


def test_names_of_dtypes_are_one_table() -> None:
    assert {wire_dtype(np.zeros(0, name)) for name in DTYPES} == set(DTYPES.values())


# Specs


def spec(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "dtype": "float32", "shape": ["batch", 4], **changes}


def test_a_spec_comes_back() -> None:
    for document in (spec(), spec(shape=[]), spec(allow_nonfinite=True)):
        assert TensorSpec.from_json(document, what="it").to_json() == document
    assert (
        "allow_nonfinite"
        not in TensorSpec.from_json(spec(allow_nonfinite=False), what="it").to_json()
    )


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (None, "want an object"),
        ([], "want an object"),
        (spec(more=1), "unknown field 'more'"),
        ({"name": "x"}, "dtype: got None"),
        (spec(name=""), "name: got ''"),
        (spec(name=None), "name: got None"),
        (spec(name="n" * 513), "1 to 512 characters"),
        (spec(dtype="F32"), "dtype: got 'F32'"),
        (spec(dtype=[]), "dtype: got"),
        (spec(shape=None), "shape: want a list of at most 8"),
        (spec(shape=[1] * 9), "shape: want a list of at most 8"),
        (spec(shape=[-1]), "bad dimension -1"),
        (spec(shape=[True]), "bad dimension True"),
        (spec(shape=[1.0]), "bad dimension 1.0"),
        (spec(shape=[""]), "bad dimension ''"),
        (spec(shape=["s" * 513]), "bad dimension"),
        (spec(shape=[MAX_TOTAL_BYTES + 1]), "bad dimension"),
        (spec(shape=[None]), "bad dimension None"),
        (spec(allow_nonfinite=1), "allow_nonfinite: want true or false"),
    ],
)
def test_what_is_no_spec(document: object, why: str) -> None:
    with pytest.raises(MalformedInputError, match=f"it.*{why}"):
        TensorSpec.from_json(document, what="it")


SPECS = (
    TensorSpec(name="x", dtype="float32", shape=("batch", 4)),
    TensorSpec(name="m", dtype="bool", shape=("batch",)),
)
GOOD = {"x": np.ones((3, 4), np.float32), "m": np.ones(3, bool)}


@pytest.mark.parametrize(
    "check", [require, lambda t, s: require_layout(layout_of(t), s)]
)
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"more": np.ones(1)}, r"tensors: got \['m', 'more', 'x'\], want \['m', 'x'\]"),
        ({"x": np.ones((3, 4))}, "'x' dtype: got float64, want float32"),
        (
            {"x": np.ones((3, 5), np.float32)},
            r"'x' shape: got \[3, 5\], want \['batch'",
        ),
        ({"x": np.ones((3, 4, 1), np.float32)}, "'x' shape"),
        ({"m": np.ones((), bool)}, "'m' shape"),
        # A symbol is one size throughout.
        ({"m": np.ones(4, bool)}, r"'m' shape: got \[4\]"),
    ],
)
def test_tensors_other_than_promised(
    check: Callable[..., None], changes: dict[str, Array], why: str
) -> None:
    check(GOOD, SPECS)
    with pytest.raises(MalformedInputError, match=why):
        check({**GOOD, **changes}, SPECS)


def test_a_tensor_that_is_missing() -> None:
    with pytest.raises(MalformedInputError, match=r"got \['x'\], want \['m', 'x'\]"):
        require_shapes({"x": ("float32", (3, 4))}, SPECS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("rows", [5, 40_000])
def test_what_is_not_finite_is_refused_unless_promised(
    dtype: str, value: float, rows: int
) -> None:
    array = np.zeros((rows, 7), dtype)
    array[3, 4] = value
    strict = TensorSpec(name="x", dtype=dtype, shape=("n", 7))
    with pytest.raises(MalformedInputError, match="'x': holds NaN or infinity"):
        require_values({"x": array}, [strict])
    loose = TensorSpec(name="x", dtype=dtype, shape=("n", 7), allow_nonfinite=True)
    require_values({"x": array}, [loose])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("count", [100, 300_000])
def test_large_values_are_finite_though_their_squares_are_not(
    dtype: str, count: int
) -> None:
    array = np.full(count, np.finfo(dtype).max, dtype)
    assert is_finite(array)
    assert is_finite(array[:0])
    assert is_finite(np.full(count, np.finfo(dtype).tiny, dtype))
    assert is_finite(np.arange(10))


def test_a_bool_is_zero_or_one() -> None:
    odd = np.array([0, 1, 2], np.uint8).view(bool)
    specs = [TensorSpec(name="m", dtype="bool", shape=(3,))]
    with pytest.raises(MalformedInputError, match="'m': a bool is not 0 or 1"):
        require_values({"m": odd}, specs)
    require_values({"m": np.zeros(3, bool)}, specs)
    require_values({"m": np.zeros(0, bool)}, specs)


# Commitments


def test_a_commitment_is_hmac_over_the_tensor_alone() -> None:
    tensors = {"x": sample("float32"), "a": sample("int8")}
    made = commit(tensors, {"x": SALT, "a": bytes(32)})
    alone = hmac.new(SALT, encode({"x": tensors["x"]}), hashlib.sha256).hexdigest()
    assert made["x"] == f"{Scheme.HMAC_SHA256.tensor}:{alone}"
    assert commit({"x": tensors["x"]}, {"x": SALT})["x"] == made["x"]


def test_name_dtype_shape_salt_and_value_are_all_committed_to() -> None:
    zeros = np.zeros(4, np.float32)
    made = {
        commit({name: array}, {name: salt})[name]
        for name, array, salt in (
            ("x", zeros, SALT),
            ("y", zeros, SALT),
            ("x", zeros.view(np.int32), SALT),
            ("x", zeros.reshape(2, 2), SALT),
            ("x", zeros, bytes(32)),
            ("x", zeros + 1, SALT),
            ("x", -zeros, SALT),
        )
    }
    assert len(made) == 7


@pytest.mark.parametrize("size", [1, 3, 8, 1000])
def test_commitments_while_bytes_pass(size: int) -> None:
    tensors: dict[str, Array] = {
        "a": np.arange(5, dtype=np.int16),
        "empty": np.zeros((0, 2), np.int8),
        "x": sample("float64"),
    }
    salts = {name: SALT for name in tensors}
    layout = layout_of(tensors)
    data = b"".join(as_bytes(tensors[name]) for name in sorted(tensors))
    commitments = TensorCommitments(layout, salts)
    for begin in range(0, len(data), size):
        commitments.update(memoryview(data[begin : begin + size]))
    assert commitments.result() == commit(tensors, salts)


def test_too_few_or_too_many_bytes_are_no_commitment() -> None:
    layout = layout_of({"x": np.zeros(4, np.int8)})
    commitments = TensorCommitments(layout, {"x": SALT})
    commitments.update(memoryview(bytes(3)))
    with pytest.raises(MalformedInputError, match="ends inside its data"):
        commitments.result()
    with pytest.raises(MalformedInputError, match="bytes after the last tensor"):
        commitments.update(memoryview(bytes(2)))
    empty = TensorCommitments(layout_of({}), {})
    assert empty.result() == {}
    with pytest.raises(MalformedInputError, match="bytes after the last tensor"):
        empty.update(memoryview(b"x"))


@pytest.mark.parametrize("salts", [{}, {"y": SALT}, {"x": SALT, "y": SALT}])
def test_salts_of_other_tensors(salts: dict[str, bytes]) -> None:
    with pytest.raises(MalformedInputError, match=r"salts: got .*, want"):
        TensorCommitments(layout_of({"x": np.zeros(1)}), salts)
