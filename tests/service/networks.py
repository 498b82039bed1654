"""Networks for tests: one namespace per service, and only these edges.

    here --- entry --- runner, for each runner

Each edge is a pair of virtual interfaces with a subnet of its own. Nobody forwards and
nobody has a default route, so a runner reaches its entry's end of their own edge and
nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ENTRY_ADDRESS = "10.213.0.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A namespace.

    Attributes:
        name: Of the namespace.
        address: Where its service listens.
    """

    name: str
    address: str

    @property
    def enter(self) -> tuple[str, ...]:
        """Prefix of a command that is to run inside."""
        return ("ip", "netns", "exec", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The entry's namespace and the runners', in the order that was asked for."""

    entry: Host
    runners: Sequence[Host]


def ip(*words: str) -> None:
    """Run ``ip``.

    Raises:
        PermissionError: It failed.
    """
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def why_not() -> str | None:
    """Return why this machine cannot have namespaces, or None."""
    if shutil.which("ip") is None:
        return "there is no ip command"
    name = f"bsec{os.getpid()}t"
    try:
        ip("netns", "add", name)
    except PermissionError as error:
        return str(error)
    try:
        ip("netns", "exec", name, "true")
        ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "two")
    except PermissionError as error:
        return str(error)
    finally:
        ip("netns", "del", name)
    return None


@contextlib.contextmanager
def star(runners: int) -> Iterator[Network]:
    """Make a network of an entry and its runners; it is gone at the end."""
    stem = f"bsec{os.getpid()}"
    entry = Host(name=f"{stem}e", address=ENTRY_ADDRESS)
    hosts = [
        Host(name=f"{stem}r{index}", address=f"10.213.{index + 1}.2")
        for index in range(runners)
    ]
    with contextlib.ExitStack() as stack:
        for host in (entry, *hosts):
            ip("netns", "add", host.name)
            stack.callback(ip, "netns", "del", host.name)
            ip("-n", host.name, "link", "set", "lo", "up")
        _join(None, f"{stem}h", "10.213.0.1", entry, "uplink")
        stack.callback(ip, "link", "del", f"{stem}h")
        for index, host in enumerate(hosts):
            _join(entry, f"r{index}", f"10.213.{index + 1}.1", host, "uplink")
        no_forwarding = "net.ipv4.ip_forward=0"
        ip("netns", "exec", entry.name, "sysctl", "-q", "-w", no_forwarding)
        yield Network(entry=entry, runners=hosts)


def _join(near: Host | None, end: str, address: str, far: Host, far_end: str) -> None:
    inside = ["-n", near.name] if near is not None else []
    pair = ["type", "veth", "peer", "name", far_end, "netns", far.name]
    ip(*inside, "link", "add", end, *pair)
    ip(*inside, "address", "add", f"{address}/30", "dev", end)
    ip(*inside, "link", "set", end, "up")
    ip("-n", far.name, "address", "add", f"{far.address}/30", "dev", far_end)
    ip("-n", far.name, "link", "set", far_end, "up")
