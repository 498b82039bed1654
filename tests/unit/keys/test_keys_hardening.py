"""A process that holds keys is not dumped: tried on real processes."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bentoml_secure.errors import ConfigurationError
from bentoml_secure.keys import hardening

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

PROGRAM = """
import resource, sys
soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
# As an operator might have it: dumps allowed, of any size the system admits.
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
if sys.argv[1] == "forbidden":
    from bentoml_secure.keys.hardening import forbid_core_dumps
    forbid_core_dumps()
secret = bytes(range(64)) * 1000
print("ready", flush=True)
sys.stdin.readline()
"""


def start(how: str, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def stop(process: subprocess.Popen[str], number: signal.Signals) -> int:
    process.send_signal(number)
    process.communicate(timeout=30)
    return process.returncode


def core_limits(pid: int) -> list[str]:
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max core file size"):
            return line.removeprefix("Max core file size").split()[:2]
    raise AssertionError("no limit of core files")


def test_the_limit_is_zero_and_the_process_is_not_dumpable(tmp_path: Path) -> None:
    process = start("forbidden", tmp_path)
    try:
        assert core_limits(process.pid) == ["0", "0"]
        # The kernel gives what belongs to an undumpable process to the superuser.
        assert Path(f"/proc/{process.pid}/environ").stat().st_uid == 0
    finally:
        assert stop(process, signal.SIGKILL) == -signal.SIGKILL


def test_a_crash_leaves_no_core(tmp_path: Path) -> None:
    process = start("forbidden", tmp_path)
    assert stop(process, signal.SIGABRT) == -signal.SIGABRT
    assert list(tmp_path.iterdir()) == []


def test_without_it_a_crash_leaves_the_secret_on_disk(tmp_path: Path) -> None:
    """What the test above shows is the work of ``forbid_core_dumps``."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "/")):
        pytest.skip(f"cores go elsewhere on this machine: {pattern}")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("this machine limits cores for everybody")
    process = start("allowed", tmp_path)
    assert stop(process, signal.SIGABRT) == -signal.SIGABRT
    (core,) = tmp_path.iterdir()
    assert bytes(range(64)) * 100 in core.read_bytes()


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigurationError, match="got darwin"):
        hardening.forbid_core_dumps()


def test_a_system_that_does_not_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(ConfigurationError, match="no limit of 0: not allowed"):
        hardening.forbid_core_dumps()
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(hardening, "_PR_SET_DUMPABLE", 99999)
    with pytest.raises(ConfigurationError, match="prctl 99999: Invalid argument"):
        hardening.forbid_core_dumps()
    # A call that reports success and changed nothing: dumpable is read back.
    monkeypatch.setattr(hardening, "_PR_SET_DUMPABLE", hardening._PR_GET_DUMPABLE)
    with pytest.raises(ConfigurationError, match="is dumpable still"):
        hardening.forbid_core_dumps()
