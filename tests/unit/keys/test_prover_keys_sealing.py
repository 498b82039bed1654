"""Sealed proof set-ups: what is in the folder, and everything that does not open."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bentoml_secure.attestation.key_document import Role
from bentoml_secure.digest import digest_json
from bentoml_secure.errors import (
    CheckFailedError,
    ConfigurationError,
    MalformedInputError,
    SecureError,
    VerificationError,
)
from bentoml_secure.keys import sealed_proofs
from bentoml_secure.keys.key_file import PlanKeys
from bentoml_secure.keys.seal_proofs import seal_setup
from bentoml_secure.keys.sealed_plan import SealedManifest, load_manifest
from bentoml_secure.keys.sealed_proofs import (
    OpenedSetup,
    open_sealed_setup,
    require_sealed_setup,
)
from bentoml_secure.keys.sealed_weights import read_header, seal
from bentoml_secure.keys.segment_key import SegmentKey
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.split.plan import Plan
from bentoml_secure.testing.deployment import make_plan
from tests.unit.keys.proof_setups import contents, write_setup


@dataclass(frozen=True)
class SealedSetup:
    """A set-up's two forms."""

    plain: Path
    folder: Path
    manifest: Manifest
    keys: PlanKeys

    def key(self, index: int = 0) -> SegmentKey:
        return self.keys.keys[index][1]

    def open(self, index: int = 0, key: SegmentKey | None = None) -> OpenedSetup:
        return open_sealed_setup(
            self.folder, self.manifest, index, key or self.key(index)
        )


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(2)


@pytest.fixture
def setup(tmp_path: Path, plan: Plan) -> SealedSetup:
    plain, folder = tmp_path / "proofs", tmp_path / "sealed-proofs"
    manifest = write_setup(plain, plan)
    sealed, keys = seal_setup(plain, folder, chunk_bytes=4096)
    assert sealed == manifest
    return SealedSetup(plain, folder, manifest, keys)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_circuits_and_proving_keys_are_sealed_and_nothing_else(
    setup: SealedSetup,
) -> None:
    files = {
        path.relative_to(setup.folder).as_posix()
        for path in setup.folder.rglob("*")
        if path.is_file()
    }
    assert files == {
        "manifest.json",
        "sealed.json",
        "srs/kzg11.srs",
        *(f"{index}/{name}" for index in (0, 1) for name in ("settings.json", "vk")),
        *(f"{index}/{name}.sealed" for index in (0, 1) for name in ("circuit", "pk")),
    }
    for copied in ("manifest.json", "srs/kzg11.srs", "0/vk", "1/settings.json"):
        same = (setup.folder / copied).read_bytes()
        assert same == (setup.plain / copied).read_bytes()
    everything = b"".join(
        path.read_bytes() for path in setup.folder.rglob("*.sealed") if path.is_file()
    )
    assert b"0/pk 0/pk" not in everything
    assert b"1/circuit 1/circuit" not in everything


def test_the_keys_are_new_and_for_provers_alone(setup: SealedSetup) -> None:
    assert setup.keys.role is Role.PROVER
    assert setup.keys.plan == setup.manifest.plan
    assert [segment for segment, _ in setup.keys.keys] == [
        part.segment for part in setup.manifest.segments
    ]
    assert setup.key(0) != setup.key(1)


@pytest.mark.parametrize("index", [0, 1])
def test_they_open_into_files_in_memory_that_nobody_changes(
    setup: SealedSetup, index: int
) -> None:
    assert require_sealed_setup(setup.folder, setup.manifest, index) == (
        setup.key(index).key_id
    )
    opened = setup.open(index)
    for descriptor, name in ((opened.circuit, "circuit"), (opened.proving_key, "pk")):
        # As a backend's process reads it.
        path = Path(f"/proc/self/fd/{descriptor}")
        assert path.read_bytes() == contents(index, name)
        assert os.readlink(path).startswith("/memfd:")
        assert os.get_inheritable(descriptor) is False
        assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
        with pytest.raises(PermissionError, match="not permitted"):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError, match="not permitted"):
            os.ftruncate(descriptor, 1)
    opened.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened.proving_key)


def swap(left: str, right: str) -> Callable[[SealedSetup], None]:
    def edit(setup: SealedSetup) -> None:
        a, b = setup.folder / left, setup.folder / right
        spare = setup.folder / "spare"
        a.rename(spare)
        b.rename(a)
        spare.rename(b)

    return edit


def cut(path: str, length: int) -> Callable[[SealedSetup], None]:
    def edit(setup: SealedSetup) -> None:
        data = (setup.folder / path).read_bytes()
        (setup.folder / path).write_bytes(data[:length])

    return edit


def cut_by_a_chunk(setup: SealedSetup) -> None:
    path = setup.folder / "0/pk.sealed"
    data = path.read_bytes()
    path.write_bytes(data[: -(len(contents(0, "pk")) % 4096 + 16)])


def flip(path: str, at: int) -> Callable[[SealedSetup], None]:
    def edit(setup: SealedSetup) -> None:
        data = bytearray((setup.folder / path).read_bytes())
        data[at] ^= 1
        (setup.folder / path).write_bytes(data)

    return edit


def of_another_time(setup: SealedSetup) -> None:
    """Put in a file that was sealed under the keys of another time."""
    again = setup.folder.with_name("again")
    seal_setup(setup.plain, again, chunk_bytes=4096)
    shutil.copyfile(again / "0/pk.sealed", setup.folder / "0/pk.sealed")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (swap("0/pk.sealed", "1/pk.sealed"), "segment: got"),
        (swap("0/pk.sealed", "0/circuit.sealed"), "path: got"),
        (of_another_time, "key_id: got"),
        (cut("0/pk.sealed", 1000), "length: got 1000"),
        (cut_by_a_chunk, "length: got"),
        (cut("0/circuit.sealed", 5), "begins with"),
        (cut("0/pk.sealed", 0), "begins with"),
    ],
    ids=["segments", "files", "keys", "cut", "chunk", "head", "empty"],
)
def test_what_was_moved_or_cut_is_seen_without_the_key_and_does_not_open(
    setup: SealedSetup, edit: Callable[[SealedSetup], None], said: str
) -> None:
    edit(setup)
    before = open_descriptors()
    with pytest.raises(SecureError, match=said):
        setup.open()
    assert open_descriptors() == before
    with pytest.raises(SecureError, match=said):
        require_sealed_setup(setup.folder, setup.manifest, 0)


@pytest.mark.parametrize("at", [600, 5000, -1])
@pytest.mark.parametrize("name", ["circuit", "pk"])
def test_no_bit_of_a_sealed_file_can_be_flipped(
    setup: SealedSetup, name: str, at: int
) -> None:
    flip(f"0/{name}.sealed", at)(setup)
    before = open_descriptors()
    with pytest.raises(CheckFailedError, match="chunk: got"):
        setup.open()
    assert open_descriptors() == before


def test_another_segments_key_opens_nothing(setup: SealedSetup) -> None:
    with pytest.raises(CheckFailedError, match="key_id: got"):
        setup.open(0, setup.key(1))


def test_who_holds_the_key_can_put_nothing_else_in_its_place(
    setup: SealedSetup, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"a circuit without the segment's weights")
    with other.open("rb") as source, (setup.folder / "0/pk.sealed").open("wb") as out:
        seal(
            source,
            out,
            setup.key(),
            segment=setup.manifest.segments[0].segment,
            path="0/pk",
            plain_bytes=other.stat().st_size,
        )
    before = open_descriptors()
    with pytest.raises(VerificationError, match="manifest was signed for"):
        setup.open()
    assert open_descriptors() == before


def test_without_the_manifest_it_would_open(
    setup: SealedSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_proofs, "equal", lambda got, want: True)
    test = test_who_holds_the_key_can_put_nothing_else_in_its_place
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test(setup, tmp_path)


def test_a_sealed_json_that_lies_opens_nothing(setup: SealedSetup) -> None:
    said = load_manifest(setup.folder)
    path = setup.folder / "sealed.json"
    for lie, reason in (
        (replace(said, plan=digest_json("another plan")), "plan: got"),
        (replace(said, keys=said.keys[::-1]), "segments: got"),
        (replace(said, keys=said.keys[:1]), "segments: got"),
    ):
        path.write_bytes(lie.to_bytes())
        with pytest.raises(CheckFailedError, match=reason):
            require_sealed_setup(setup.folder, setup.manifest, 0)
    wrong = tuple((segment, setup.key(1).key_id) for segment, _ in said.keys)
    path.write_bytes(SealedManifest(plan=said.plan, keys=wrong).to_bytes())
    with pytest.raises(CheckFailedError, match="key_id: got"):
        require_sealed_setup(setup.folder, setup.manifest, 0)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_segment_that_is_not_there(setup: SealedSetup, index: int) -> None:
    for call in (
        lambda: require_sealed_setup(setup.folder, setup.manifest, index),
        lambda: open_sealed_setup(setup.folder, setup.manifest, index, setup.key()),
    ):
        with pytest.raises(ConfigurationError, match="the set-up has 0 to 1"):
            call()


def test_a_file_that_is_not_there_or_leads_elsewhere(
    setup: SealedSetup, tmp_path: Path
) -> None:
    path = setup.folder / "0/pk.sealed"
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        setup.open()
    (tmp_path / "outside").write_bytes(data)
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(VerificationError, match="leads out of the folder"):
        setup.open()


@pytest.mark.parametrize(
    "path", ["0/circuit", "1/pk", "0/settings.json", "1/vk", "srs/kzg11.srs"]
)
def test_a_setup_is_sealed_as_it_was_signed_or_not_at_all(
    setup: SealedSetup, tmp_path: Path, path: str
) -> None:
    out = tmp_path / "out"
    (setup.plain / path).write_bytes(b"other")
    with pytest.raises(VerificationError, match="manifest was signed for"):
        seal_setup(setup.plain, out)
    assert not (out / "manifest.json").exists()
    (setup.plain / path).unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        seal_setup(setup.plain, tmp_path / "again")


def test_a_manifest_that_is_none(setup: SealedSetup, tmp_path: Path) -> None:
    manifest = setup.plain / "manifest.json"
    data = manifest.read_bytes()
    manifest.write_bytes(data.replace(b'"sig":"', b'"sig":"AAAA'))
    with pytest.raises(SecureError, match=r"signature|manifest"):
        seal_setup(setup.plain, tmp_path / "out")
    manifest.write_bytes(b"{}")
    with pytest.raises(MalformedInputError, match="want exactly payload"):
        seal_setup(setup.plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(setup: SealedSetup) -> None:
    with pytest.raises(ConfigurationError, match="is not empty"):
        seal_setup(setup.plain, setup.folder)
    file = setup.plain / "manifest.json"
    with pytest.raises(ConfigurationError, match="cannot be written"):
        seal_setup(setup.plain, file)


def test_each_file_says_what_it_is(setup: SealedSetup) -> None:
    with (setup.folder / "1/pk.sealed").open("rb") as source:
        header = read_header(source)
    assert (header.path, header.segment, header.key_id) == (
        "1/pk",
        setup.manifest.segments[1].segment,
        setup.key(1).key_id,
    )
