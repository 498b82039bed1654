"""What a proof takes, and what there is of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.proofs.admission import (
    BASE_BYTES,
    available_memory,
    estimate,
    require_fits,
)

MIB = 1 << 20
GIB = 1 << 30


def kernel(folder: Path, *, available: int, group: str = "0::/a/b") -> Path:
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(
        f"MemTotal:       1000 kB\nMemAvailable:   {available >> 10} kB\nHugePages: 0\n"
    )
    (folder / "self/cgroup").write_text(f"1:cpu:/\n{group}\n")
    return folder


def limited(group: Path, limit: str, used: int, cache: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(
        f"anon 1\nactive_file {cache // 2}\ninactive_file {cache - cache // 2}\n"
    )


# Proving keys and peaks of real circuits, in 10**6 bytes.
@pytest.mark.parametrize(
    ("proving_key", "peak", "cpu_seconds"),
    [
        (195, 553, 13.2),
        (352, 930, 22.2),
        (78, 239, 4.5),
        (2_969, 8_586, 240),
        (2_575, 8_367, 286),
        (1_093, 2_095, 58.0),
    ],
)
def test_estimates_hold_for_what_was_measured(
    proving_key: int, peak: int, cpu_seconds: float
) -> None:
    took = estimate(proving_key * 1_000_000)
    assert peak * 1_000_000 <= took.memory_bytes
    low, high = took.least_cpu_seconds, took.most_cpu_seconds
    # In two digits, as the factors are.
    assert 0.95 * low <= cpu_seconds <= 1.05 * high


def test_what_does_not_fit_is_refused_with_its_estimate() -> None:
    needed = estimate(GIB).memory_bytes
    assert require_fits(GIB, what="segment 1", available_bytes=needed) == estimate(GIB)
    with pytest.raises(ConfigurationError, match=r"^segment 1: takes about 3\.67 GiB"):
        require_fits(GIB, what="segment 1", available_bytes=needed - 1)


def test_the_machine_is_asked_where_nothing_is_said() -> None:
    assert require_fits(0, what="nothing").memory_bytes == BASE_BYTES
    with pytest.raises(ConfigurationError, match=r"there are .* of memory"):
        require_fits(1 << 60, what="everything")


def test_the_kernels_word_counts_without_groups(tmp_path: Path) -> None:
    proc = kernel(tmp_path / "proc", available=3 * GIB)
    assert available_memory(proc=proc, cgroup=tmp_path / "none") == 3 * GIB


def test_the_tightest_group_counts(tmp_path: Path) -> None:
    proc = kernel(tmp_path / "proc", available=3 * GIB)
    groups = tmp_path / "groups"
    limited(groups / "a/b", str(2 * GIB), 512 * MIB)
    limited(groups / "a", str(GIB), 700 * MIB, cache=100 * MIB)
    limited(groups, "max", 5 * GIB)
    assert available_memory(proc=proc, cgroup=groups) == 424 * MIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    proc = kernel(tmp_path / "proc", available=3 * GIB)
    limited(tmp_path / "groups/a/b", str(GIB), 2 * GIB)
    assert available_memory(proc=proc, cgroup=tmp_path / "groups") == 0


def test_groups_of_the_first_version_are_passed_over(tmp_path: Path) -> None:
    proc = kernel(tmp_path / "proc", available=GIB, group="4:memory:/a")
    limited(tmp_path / "groups/a", str(MIB), 0)
    assert available_memory(proc=proc, cgroup=tmp_path / "groups") == GIB


def test_a_kernel_that_says_nothing_is_refused(tmp_path: Path) -> None:
    proc = kernel(tmp_path / "proc", available=GIB)
    (proc / "meminfo").write_text("MemTotal: 1 kB\n")
    with pytest.raises(ConfigurationError, match="says nothing of MemAvailable"):
        available_memory(proc=proc, cgroup=tmp_path)
