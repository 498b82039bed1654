from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from dataclasses import replace

import pytest

from bentoml_secure.errors import MissingDependencyError, ProofError
from bentoml_secure.proofs.backends.ezkl import Ezkl
from bentoml_secure.proofs.linking import (
    find_in_links,
    find_in_settings,
    verify_chain,
    verify_chains,
    verify_segment,
)
from bentoml_secure.proofs.links import HASHED, Ends
from bentoml_secure.proofs.manifest import Manifest
from bentoml_secure.proofs.proof import (
    Facts,
    Limits,
    Rows,
    SegmentProof,
    VerificationKey,
)
from bentoml_secure.testing.proof_set_up import LIMITS, ProofSetUp
from tests import proven_case


class Recording(Ezkl):
    """ezkl, with its calls counted; its scales are what a test says they are."""

    def __init__(self, version: str | None = None, scales: tuple[int, int] = (7, 7)):
        super().__init__()
        self.version = version or self.version
        self.verified: list[int] = []
        self._scales = scales

    def require_settings(self, settings: bytes, ends: Ends = HASHED) -> Rows:
        rows = super().require_settings(settings, ends)
        return replace(rows, input_scale=self._scales[0], output_scale=self._scales[1])

    def verify(
        self,
        proofs: Sequence[tuple[SegmentProof, VerificationKey]],
        srs: bytes,
        limits: Limits,
    ) -> None:
        self.verified.append(len(proofs))
        super().verify(proofs, srs, limits)


@pytest.fixture
def made() -> ProofSetUp:
    return proven_case.set_up()


@pytest.fixture
def manifest(made: ProofSetUp) -> Manifest:
    return made.manifest


@pytest.fixture
def keys(made: ProofSetUp) -> list[VerificationKey]:
    return [key.verification for key in made.keys]


@pytest.fixture
def proofs() -> list[SegmentProof]:
    records = proven_case.proven()[1]
    return [records[0, segment].proof for segment in range(2)]


def test_a_run_is_verified_in_one_process(
    manifest: Manifest, keys: list[VerificationKey], proofs: list[SegmentProof]
) -> None:
    backend = Recording()
    verify_chain(manifest, keys, proofs, backend=backend, limits=LIMITS)
    assert backend.verified == [2]
    chains = [dict(enumerate(proofs)), {1: proofs[1]}]
    verify_chains(manifest, keys, chains, backend=backend, limits=LIMITS)
    assert backend.verified == [2, 3]


def test_many_proofs_of_few_keys_need_few_files(
    manifest: Manifest, keys: list[VerificationKey], proofs: list[SegmentProof]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        chains = [dict(enumerate(proofs))] * 50
        verify_chains(manifest, keys, chains, backend=Recording(), limits=LIMITS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_proofs_as_segments(
    manifest: Manifest,
    keys: list[VerificationKey],
    proofs: list[SegmentProof],
    count: int,
) -> None:
    some = [proofs[index % 2] for index in range(count)]
    backend = Recording()
    with pytest.raises(ProofError, match=f"proofs: got {count}, want 2"):
        verify_chain(manifest, keys, some, backend=backend)
    assert backend.verified == []


def test_as_many_keys_as_segments(
    manifest: Manifest, keys: list[VerificationKey], proofs: list[SegmentProof]
) -> None:
    with pytest.raises(ProofError, match="verification keys: got 1, want 2"):
        verify_chain(manifest, keys[:1], proofs, backend=Recording())


def test_another_version_has_not_been_judged(
    manifest: Manifest, keys: list[VerificationKey], proofs: list[SegmentProof]
) -> None:
    backend = Recording(version="99.0")
    with pytest.raises(MissingDependencyError, match=r"99\.0 is installed") as error:
        verify_chain(manifest, keys, proofs, backend=backend)
    assert "ezkl==" in error.value.remedy
    assert backend.verified == []


def test_another_backend(
    manifest: Manifest, keys: list[VerificationKey], proofs: list[SegmentProof]
) -> None:
    odd = replace(manifest, backend="other")
    with pytest.raises(ProofError, match="got ezkl, the manifest is of other"):
        verify_chain(odd, keys, proofs, backend=Recording())


@pytest.mark.parametrize(("scales", "side"), [((8, 7), "in"), ((7, 8), "out")])
def test_scales_are_equal_all_along(
    manifest: Manifest,
    keys: list[VerificationKey],
    proofs: list[SegmentProof],
    scales: tuple[int, int],
    side: str,
) -> None:
    backend = Recording(scales=scales)
    found = find_in_settings(manifest, keys, backend)
    assert [finding.field for finding in found] == [
        f"segment {segment} scale {side}" for segment in range(2)
    ]
    with pytest.raises(ProofError, match="want 7, the manifest's"):
        verify_chain(manifest, keys, proofs, backend=backend)
    assert backend.verified == []


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (b"", "not valid JSON"),
        (b"{}", "not those of a circuit"),
        (b'{"run_args": 1}', "not those of a circuit"),
        (b"[" * 100, "not valid JSON|nested deeper"),
    ],
)
def test_settings_that_are_none(
    manifest: Manifest,
    keys: list[VerificationKey],
    proofs: list[SegmentProof],
    settings: bytes,
    match: str,
) -> None:
    keys[1] = replace(keys[1], settings=settings)
    with pytest.raises(ProofError, match=match) as error:
        verify_chain(manifest, keys, proofs, backend=Recording())
    assert [finding.field for finding in error.value.findings] == ["segment 1 settings"]


@pytest.mark.parametrize("name", ["input", "param", "output"])
@pytest.mark.parametrize("visibility", ["Private", "Public", {"Hashed": None}])
def test_settings_that_bind_nothing(
    manifest: Manifest, keys: list[VerificationKey], name: str, visibility: object
) -> None:
    document = json.loads(keys[0].settings)
    document["run_args"][f"{name}_visibility"] = visibility
    keys[0] = replace(keys[0], settings=json.dumps(document).encode())
    (finding,) = find_in_settings(manifest, keys, Recording())
    assert f"{name}_visibility" in finding.got


def test_every_broken_link_is_found(
    manifest: Manifest, proofs: list[SegmentProof]
) -> None:
    first, second = proofs
    facts = second.facts
    apart = replace(second, facts=Facts(facts.output, facts.salt, facts.output))
    chain = {0: first, 1: replace(apart, backend="other"), 5: second}
    found = find_in_links(manifest, chain, where="run")
    assert [finding.field for finding in found] == [
        "run segment 1 backend",
        "run link 0 to 1",
        "run segment",
    ]


def test_a_broken_link_ends_it_before_anything_is_verified(
    manifest: Manifest, keys: list[VerificationKey], proofs: list[SegmentProof]
) -> None:
    other = proven_case.proven("another request")[1]
    backend = Recording()
    with pytest.raises(ProofError, match="link 0 to 1"):
        verify_chain(manifest, keys, [proofs[0], other[0, 1].proof], backend=backend)
    assert backend.verified == []


def test_one_by_itself(
    manifest: Manifest, keys: list[VerificationKey], proofs: list[SegmentProof]
) -> None:
    verify_segment(manifest, 1, keys[1], proofs[1], backend=Recording())
    with pytest.raises(ProofError, match="does not verify"):
        verify_segment(manifest, 0, keys[0], proofs[1], backend=Recording())
