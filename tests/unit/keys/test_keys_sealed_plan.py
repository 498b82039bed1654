"""Sealing a plan's folder, reading it, and the file of keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bentoml_secure.digest import canonical_json, digest_json
from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    SecureError,
    VerificationError,
)
from bentoml_secure.keys import key_file
from bentoml_secure.keys.key_file import (
    keys_to_bytes,
    new_secret,
    parse_keys,
    read_keys,
)
from bentoml_secure.keys.seal_model import seal_plan
from bentoml_secure.keys.sealed_plan import (
    is_sealed,
    load_manifest,
    open_sealed_segment,
    parse_manifest,
    require_sealed_segment,
    sealed_path,
)
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.split import load_plan, open_segment, run_chain, split_onnx
from bentoml_secure.split.plan import Plan
from bentoml_secure.testing.deployment import make_plan
from tests.unit.keys.conftest import Sealed, write_plan


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(CheckFailedError) as caught:
        call()
    (finding,) = caught.value.findings
    return finding.field


def test_plan_and_identities_stay_and_no_plaintext_is_left(
    plain: Path, sealed: Sealed
) -> None:
    assert (sealed.folder / "plan.json").read_bytes() == (
        plain / "plan.json"
    ).read_bytes()
    assert load_plan(sealed.folder).digest == sealed.plan.digest
    assert is_sealed(sealed.folder)
    assert not is_sealed(plain)
    files = {
        str(path.relative_to(sealed.folder))
        for path in sealed.folder.rglob("*")
        if path.is_file()
    }
    assert files == {
        "plan.json",
        "sealed.json",
        "sealed/0/segment-0.onnx.sealed",
        "sealed/1/segment-1.onnx.sealed",
    }


def test_each_segment_opens_with_its_own_key(sealed: Sealed) -> None:
    for index, (segment, key) in enumerate(sealed.keys.keys):
        assert segment == sealed.plan.segments[index].identity
        contents = open_sealed_segment(sealed.folder, sealed.plan, index, key)
        name = f"segment-{index}.onnx"
        assert contents == {name: name.encode()}
    assert len({key.key_id for _, key in sealed.keys.keys}) == 2


def test_the_key_of_another_segment(sealed: Sealed) -> None:
    _, other = sealed.keys.keys[1]
    assert refused(
        lambda: open_sealed_segment(sealed.folder, sealed.plan, 0, other)
    ) == ("key_id")


def test_the_file_of_another_segment(sealed: Sealed) -> None:
    first, second = (
        sealed.folder / sealed_path(index, f"segment-{index}.onnx")
        for index in range(2)
    )
    first.write_bytes(second.read_bytes())
    _, key = sealed.keys.keys[0]
    assert (
        refused(lambda: open_sealed_segment(sealed.folder, sealed.plan, 0, key))
        == "segment"
    )


def test_what_can_be_seen_without_the_key(sealed: Sealed) -> None:
    for index, (_, key) in enumerate(sealed.keys.keys):
        got = require_sealed_segment(sealed.folder, sealed.plan, index)
        assert got == key.key_id
    with pytest.raises(ConfigurationError, match="the plan has 0 to 1"):
        require_sealed_segment(sealed.folder, sealed.plan, 2)


def test_what_is_seen_to_be_wrong_without_the_key(
    sealed: Sealed, plain: Path, tmp_path: Path
) -> None:
    first, second = (
        sealed.folder / sealed_path(index, f"segment-{index}.onnx")
        for index in range(2)
    )

    def look() -> str:
        return refused(lambda: require_sealed_segment(sealed.folder, sealed.plan, 0))

    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert look() == "segment"
    for cut in (data[:-1], data + b"\0"):
        first.write_bytes(cut)
        assert look() == "length"
    _, keys = seal_plan(plain, tmp_path / "again")
    assert keys.plan == sealed.plan.digest
    first.write_bytes((tmp_path / "again" / "sealed/0" / first.name).read_bytes())
    assert look() == "key_id"
    first.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        look()


def test_a_segment_that_the_plan_does_not_have(sealed: Sealed) -> None:
    for index in (-1, 2):
        with pytest.raises(ConfigurationError, match="the plan has 0 to 1"):
            open_sealed_segment(
                sealed.folder, sealed.plan, index, SegmentKey.generate()
            )


def test_a_sealed_file_that_is_missing_or_leads_outside(
    sealed: Sealed, tmp_path: Path
) -> None:
    _, key = sealed.keys.keys[0]
    path = sealed.folder / sealed_path(0, "segment-0.onnx")
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_sealed_segment(sealed.folder, sealed.plan, 0, key)
    (tmp_path / "outside").write_bytes(data)
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(VerificationError, match="leads out of the folder"):
        open_sealed_segment(sealed.folder, sealed.plan, 0, key)


def test_a_folder_where_a_file_should_be(sealed: Sealed) -> None:
    _, key = sealed.keys.keys[0]
    path = sealed.folder / sealed_path(0, "segment-0.onnx")
    path.unlink()
    path.mkdir()
    with pytest.raises(VerificationError, match="not a regular file"):
        open_sealed_segment(sealed.folder, sealed.plan, 0, key)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two layers, their weights in a file of their own."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            rng.standard_normal((16, 16)).astype(np.float32), f"w{index}"
        )
        for index in range(2)
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["m0"]),
            helper.make_node("Relu", ["m0"], ["r0"]),
            helper.make_node("MatMul", ["r0", "w1"], ["y"]),
        ],
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        weights,
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    path = tmp_path / "layers.onnx"
    onnx.save(
        made,
        path,
        save_as_external_data=True,
        location="layers.data",
        size_threshold=0,
    )
    return path


def test_a_sealed_model_runs_as_the_plain_one(model: Path, tmp_path: Path) -> None:
    plain, sealed = tmp_path / "plan", tmp_path / "sealed-plan"
    split_onnx(model, plain, segments=2)
    plan, keys = seal_plan(plain, sealed, chunk_bytes=4096)
    tensors = {"x": np.ones((3, 16), np.float32)}
    want = run_chain(plain, tensors)
    for index, (_, key) in enumerate(keys.keys):
        contents = open_sealed_segment(sealed, plan, index, key)
        loaded = open_segment(plan, index, contents)
        tensors |= loaded.run({s.name: tensors[s.name] for s in loaded.segment.inputs})
    assert np.array_equal(tensors["y"], want["y"])


def test_what_opens_must_still_be_the_plans(
    plain: Path, plan: Plan, tmp_path: Path
) -> None:
    """Who holds the key can seal other weights: their digest gives them away."""
    (plain / "segment-0.onnx").write_bytes(b"other weights")
    with pytest.raises(VerificationError, match="not the one that the plan"):
        seal_plan(plain, tmp_path / "out")
    with pytest.raises(VerificationError, match=r"segment-0.onnx: got sha256"):
        open_segment(plan, 0, {"segment-0.onnx": b"other weights"})


def test_a_folder_that_is_not_done_is_no_plan(plain: Path, tmp_path: Path) -> None:
    (plain / "segment-1.onnx").write_bytes(b"other weights")
    out = tmp_path / "out"
    with pytest.raises(VerificationError, match=r"segment-1.onnx"):
        seal_plan(plain, out)
    assert not (out / "plan.json").exists()


def test_nothing_is_overwritten(plain: Path, tmp_path: Path) -> None:
    for out in (plain, tmp_path):
        with pytest.raises(ConfigurationError, match="is not empty"):
            seal_plan(plain, out)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        seal_plan(plain, tmp_path / "file" / "out")


def test_progress_names_each_file(plain: Path, tmp_path: Path) -> None:
    told: list[str] = []
    seal_plan(plain, tmp_path / "out", progress=told.append)
    assert told == ["segment 0: segment-0.onnx", "segment 1: segment-1.onnx"]


def test_the_manifest_names_each_segments_key(sealed: Sealed) -> None:
    manifest = load_manifest(sealed.folder)
    for index, (_, key) in enumerate(sealed.keys.keys):
        assert manifest.key_id(sealed.plan, index) == key.key_id
    with pytest.raises(ConfigurationError, match="the plan has 0 to 1"):
        manifest.key_id(sealed.plan, 2)


def test_the_manifest_of_another_plan(sealed: Sealed, tmp_path: Path) -> None:
    manifest = load_manifest(sealed.folder)
    other = make_plan(3)
    assert refused(lambda: manifest.key_id(other, 0)) == "plan"


@pytest.mark.parametrize("edit", [lambda s: s[::-1], lambda s: s[:1]])
def test_a_manifest_of_other_segments(sealed: Sealed, edit: Any) -> None:
    document = json.loads((sealed.folder / "sealed.json").read_bytes())
    document["segments"] = edit(document["segments"])
    manifest = parse_manifest(canonical_json(document))
    assert refused(lambda: manifest.key_id(sealed.plan, 0)) == "segments"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d | {"version": 2}, "version: got 2"),
        (lambda d: d | {"version": True}, "version: got True"),
        (lambda d: d | {"more": 1}, "unknown field 'more'"),
        (lambda d: d | {"segments": []}, "a list of 1 to"),
        (lambda d: d | {"segments": {}}, "a list of 1 to"),
        (lambda d: d | {"segments": d["segments"] * 200}, "a list of 1 to 256"),
        (lambda d: d | {"segments": [{}]}, "is missing"),
        (lambda d: d | {"plan": "sha256:00"}, "plan"),
        (lambda d: d["segments"][0].update(key_id="0") or d, "key_id"),
        (lambda d: d["segments"][0].update(segment=1) or d, "segment"),
    ],
)
def test_what_is_no_manifest(sealed: Sealed, edit: Any, said: str) -> None:
    document = edit(json.loads((sealed.folder / "sealed.json").read_bytes()))
    with pytest.raises(MalformedInputError, match=said):
        parse_manifest(canonical_json(document))


def test_a_manifest_that_is_not_canonical(sealed: Sealed) -> None:
    data = (sealed.folder / "sealed.json").read_bytes()
    with pytest.raises(MalformedInputError, match="not canonical"):
        parse_manifest(data + b"\n")


def test_a_folder_without_a_manifest(plain: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"sealed.json"):
        load_manifest(plain)


# The file of keys.


def test_keys_are_read_back_and_kept_from_others(
    sealed: Sealed, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    with new_secret(path, what="key file") as pieces:
        pieces.append(keys_to_bytes(sealed.keys))
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_keys(path) == sealed.keys


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_file_that_others_may_read(
    sealed: Sealed, tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(keys_to_bytes(sealed.keys))
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"got mode {mode:04o}, want 0600"):
        read_keys(path)


def test_a_key_file_that_is_missing_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_keys(path)
    path.write_bytes(b" " * (key_file.MAX_KEY_FILE_BYTES + 1))
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="has more than"):
        read_keys(path)


def test_a_secret_is_not_written_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"mine")
    with (
        pytest.raises(ConfigurationError, match="cannot be made"),
        new_secret(path, what="key file"),
    ):
        raise AssertionError
    assert path.read_bytes() == b"mine"


def test_a_secret_is_gone_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "keys"

    def fail(error: Exception) -> None:
        with new_secret(path, what="key file") as pieces:
            pieces.append(b"secret")
            raise error

    with pytest.raises(MalformedInputError, match="no plan"):
        fail(MalformedInputError("no plan"))
    assert not path.exists()
    with pytest.raises(ConfigurationError, match="cannot be written: disk full"):
        fail(OSError(28, "disk full"))
    assert not path.exists()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d | {"version": 0}, "version: got 0"),
        (lambda d: d | {"keys": []}, "a list of 1 to"),
        (lambda d: d | {"keys": d["keys"] * 2}, "stands there twice"),
        (lambda d: d | {"plan": 1}, "plan"),
        (lambda d: d["keys"][0].update(key_id="0" * 64) or d, "the key's is"),
        (lambda d: d["keys"][0].update(key="0" * 64) or d, "the key's is"),
        (lambda d: d["keys"][0].update(segment="x") or d, "segment"),
        (lambda d: d["keys"][0].pop("key") and d, "'key' is missing"),
    ],
)
def test_what_is_no_key_file(sealed: Sealed, edit: Any, said: str) -> None:
    document = edit(json.loads(keys_to_bytes(sealed.keys)))
    with pytest.raises(MalformedInputError, match=said):
        parse_keys(json.dumps(document).encode())


@pytest.mark.parametrize("spoiled", ["", "ff", "G"])
def test_an_error_shows_nothing_of_a_key(sealed: Sealed, spoiled: str) -> None:
    document = json.loads(keys_to_bytes(sealed.keys))
    secret = document["keys"][0]["key"]
    document["keys"][0]["key"] = secret[:-2] + spoiled
    with pytest.raises(MalformedInputError) as caught:
        parse_keys(json.dumps(document).encode())
    error: BaseException | None = caught.value
    while error is not None:
        assert secret[:16] not in str(error)
        error = error.__cause__
    assert isinstance(caught.value, SecureError)


def test_identities_of_other_plans_differ(tmp_path: Path) -> None:
    folder = write_plan(tmp_path / "three", make_plan(3))
    plan, keys = seal_plan(folder, tmp_path / "out")
    assert len({segment for segment, _ in keys.keys}) == len(plan.segments) == 3
    assert keys.plan == digest_json(plan.to_json())
