"""What a relying party demands of NVIDIA GPUs: the table ``[nvidia-gpu]``.

    min_driver = "590.0"              # compared number by number
    min_vbios = "96.00.A5.00.00"      # byte by byte; 96 is Hopper, 97 Blackwell
    firmware = { 2 = ["<hex>"], 3 = ["<hex>"] }   # or { unchecked = "why" }
    arch = ["HOPPER"]
    count = 8

``firmware`` is required: it lists accepted values of measurement blocks by index, and
each listed block of every device has to have one of them. The others may be left out,
which the result shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from bentoml_secure.attestation.checks import compare
from bentoml_secure.attestation.evidence import UncheckedField, VerifiedClaims
from bentoml_secure.attestation.reference_values import (
    IndexedReferences,
    References,
    Unchecked,
    at_index,
    compare_reference,
    indexed_to_json,
    read_indexed,
    read_list,
    read_unchecked,
    require_known,
)
from bentoml_secure.attestation.roles import Comparison
from bentoml_secure.errors import ConfigurationError

KIND = "nvidia-gpu"

_T = TypeVar("_T")
_WHAT = f"appraisal policy [{KIND}]"
_KEYS = frozenset({"min_driver", "min_vbios", "firmware", "arch", "count"})
_MAX_COUNT = 8
_INDEXES = range(1, 256)
_DRIVER = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6}){0,3}")
_VBIOS = re.compile(r"[0-9A-Fa-f]{2}(?:\.[0-9A-Fa-f]{2}){4}")
_ARCH = re.compile("HOPPER|BLACKWELL")
_ALWAYS_UNCHECKED = (
    UncheckedField(
        field="revocation", reason="no revocation list of NVIDIA was consulted"
    ),
    UncheckedField(
        field="devtools",
        reason="no field of the evidence names the mode; measurements show it",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaGpuPolicy:
    """Reference values for GPUs.

    Attributes:
        min_driver: Least version of the driver.
        min_vbios: Least version of the VBIOS, upper case.
        firmware: Accepted measurements by index of the block.
        arch: Accepted architectures.
        count: How many devices.
    """

    min_driver: str | Unchecked
    min_vbios: str | Unchecked
    firmware: IndexedReferences
    arch: References
    count: int | Unchecked

    def compare(self, claims: VerifiedClaims) -> Comparison:
        """Return every difference between devices' claims and this policy."""
        gpus = claims.claims["gpus"]
        comparison = self._compare_count(claims.claims["count"])
        for arch in sorted({gpu["arch"] for gpu in gpus}):
            comparison += compare_reference("arch", arch, self.arch)
        for driver in sorted({gpu["driver_version"] for gpu in gpus}):
            comparison += self._compare_driver(driver)
        for vbios in sorted({gpu["vbios_version"] for gpu in gpus}):
            comparison += self._compare_vbios(vbios)
        for blocks in claims.claims["measurements"]:
            comparison += self._compare_firmware(blocks)
        unchecked = dict.fromkeys(comparison.unchecked + _ALWAYS_UNCHECKED)
        return Comparison(findings=comparison.findings, unchecked=tuple(unchecked))

    def _compare_count(self, count: int) -> Comparison:
        if isinstance(self.count, Unchecked):
            return compare_reference("count", "", self.count)
        return compare("count", count == self.count, got=count, want=self.count)

    def _compare_driver(self, got: str) -> Comparison:
        if isinstance(self.min_driver, Unchecked):
            return compare_reference("min_driver", "", self.min_driver)
        return compare(
            "min_driver",
            _numbers(got, 10) >= _numbers(self.min_driver, 10),
            got=got,
            want=f"{self.min_driver} or newer",
        )

    def _compare_vbios(self, got: str) -> Comparison:
        if isinstance(self.min_vbios, Unchecked):
            return compare_reference("min_vbios", "", self.min_vbios)
        return compare(
            "min_vbios",
            _numbers(got, 16) >= _numbers(self.min_vbios, 16),
            got=got,
            want=f"{self.min_vbios} or newer",
        )

    def _compare_firmware(self, blocks: Mapping[str, str]) -> Comparison:
        if isinstance(self.firmware, Unchecked):
            return compare_reference("firmware", "", self.firmware)
        comparison = Comparison()
        for index, references in self.firmware.items():
            got = f"{index}:{blocks.get(str(index), 'absent')}"
            comparison += compare_reference(
                "firmware", got, at_index(index, references)
            )
        return comparison

    def to_json(self) -> dict[str, Any]:
        """Return the table of the policy."""
        values: dict[str, Any] = {
            "min_driver": self.min_driver,
            "min_vbios": self.min_vbios,
            "arch": self.arch,
            "count": self.count,
        }
        table: dict[str, Any] = {"firmware": indexed_to_json(self.firmware)}
        for name, value in values.items():
            if isinstance(value, Unchecked):
                if value != _absent(name):
                    table[name] = value.to_json()
            else:
                table[name] = list(value) if isinstance(value, tuple) else value
        return table


def read_policy(table: Mapping[str, Any]) -> NvidiaGpuPolicy:
    """Return the policy that a table ``[nvidia-gpu]`` spells.

    Raises:
        ConfigurationError: A key unknown or of another form; no ``firmware``.
    """
    require_known(table, _KEYS, what=_WHAT)
    return NvidiaGpuPolicy(
        min_driver=_optional(table, "min_driver", _read_driver),
        min_vbios=_optional(table, "min_vbios", _read_vbios),
        firmware=read_indexed(
            table.get("firmware"),
            what=f"{_WHAT} firmware",
            indexes=_INDEXES,
            pattern=re.compile(r"(?:[0-9a-f]{2}){1,128}"),
            form="measurement in hex",
        ),
        arch=_optional(table, "arch", _read_arch),
        count=_optional(table, "count", _read_count),
    )


def _absent(name: str) -> Unchecked:
    return Unchecked(f"the policy says nothing of {name}")


def _optional(
    table: Mapping[str, Any], name: str, read: Callable[[object, str], _T]
) -> _T | Unchecked:
    if name not in table:
        return _absent(name)
    value, what = table[name], f"{_WHAT} {name}"
    if isinstance(value, Mapping):
        return read_unchecked(value, what=what)
    return read(value, what)


def _read_driver(value: object, what: str) -> str:
    return _read_version(value, what, _DRIVER, "590.0")


def _read_vbios(value: object, what: str) -> str:
    return _read_version(value, what, _VBIOS, "96.00.A5.00.00").upper()


def _read_version(
    value: object, what: str, pattern: re.Pattern[str], example: str
) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ConfigurationError(
            f"{what}: got {value!r:.40}, want a version such as {example!r}."
        )
    return value


def _read_arch(value: object, what: str) -> tuple[str, ...]:
    return read_list(value, what=what, pattern=_ARCH, form="HOPPER or BLACKWELL")


def _read_count(value: object, what: str) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_COUNT:
        raise ConfigurationError(f"{what}: got {value!r:.40}, want 1 to {_MAX_COUNT}.")
    return value


def _numbers(version: str, base: int) -> tuple[int, ...]:
    """Return a version's numbers; 590 is 590.0.0.0."""
    numbers = [int(part, base) for part in version.split(".")]
    return tuple(numbers + [0] * (5 - len(numbers)))
