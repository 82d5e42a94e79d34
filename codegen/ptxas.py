"""What ptxas reports about a kernel, and what in that report fails the kernel's build."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from .matrix import FP8
from .spec import KernelSpec

# Findings that fail a build besides "spills", by name: a pattern of the log line.
WARNINGS = {
    "wgmma-serialized": re.compile(r".*wgmma.*serialized.*", re.IGNORECASE),
    "setmaxnreg-ignored": re.compile(r".*setmaxnreg.*ignored.*", re.IGNORECASE),
}


@dataclass(frozen=True)
class Allowance:
    """A documented exception: ``finding`` (``spills<=BYTES`` or a warning's name) does not fail these kernels."""

    finding: str
    applies: Callable[[KernelSpec], bool]
    reason: str


ALLOWANCES: list[Allowance] = [
    Allowance(
        "spills<=1024",
        lambda spec: spec.phase == "decode" and spec.keys_dtype in FP8 and spec.mask == "custom",
        "what is needed once per item or leaf waits in memory, beside what a conversion and its product hold at once",
    ),
    Allowance(
        "spills<=2048",
        lambda spec: spec.phase == "decode" and spec.keys_dtype in FP8 and spec.head_dim == 256,
        "keys and values of a tile are 128 registers where groups of few rows hold both: what is needed once per leaf "
        "waits in memory, and an address or two of the loop",
    ),
    Allowance(
        "spills<=128",
        lambda spec: spec.phase == "decode" and spec.keys_dtype in FP8,
        "likewise, in a few places outside the loop over tiles",
    ),
    Allowance(
        "spills<=256",
        lambda spec: spec.arch == "sm90" and spec.phase == "prefill" and spec.dtype in FP8 and spec.head_dim_v == 128,
        "a consumer holds P.V of a tile beside the output, which leaves loaders few registers: what is needed once per "
        "item, page or tile waits in memory",
    ),
    Allowance(
        "spills<=256",
        lambda spec: spec.arch == "sm90" and spec.head_dim == 256,
        "half of a consumer's registers hold the output: its loaders spill what they need once per page or tile",
    ),
    Allowance(
        "spills<=64",
        lambda spec: spec.arch == "sm90" and spec.phase == "prefill" and spec.head_dim == 64 and spec.skip != "dense",
        "three groups leave the loaders 32 registers: what V's needs once per vote waits in memory",
    ),
    Allowance(
        "spills<=1024",
        lambda spec: spec.softcap or spec.alibi,
        "rare, outside the default set and built on first use: slower is better than refused",
    ),
]

_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Usage:
    """Resources of one kernel: registers per thread at entry, bytes of spill stores and loads together.

    All 0 where the log does not tell them, which is a finding: no kernel uses no registers.
    """

    registers: int
    spill_bytes: int


def parse(log: str) -> Usage:
    """Read the usage out of the ``-v`` log."""
    registers, spills = _REGISTERS.findall(log), _SPILLS.findall(log)
    if not registers or not spills:
        return Usage(0, 0)
    return Usage(max(map(int, registers)), sum(int(stores) + int(loads) for stores, loads in spills))


def refused(log: str, usage: Usage, allowed: Collection[str]) -> list[str]:
    """One line for everything that fails a build, starting with the finding's name."""
    limit = max((int(item.removeprefix("spills<=")) for item in allowed if item.startswith("spills<=")), default=0)
    lines = []
    if not usage.registers:
        lines.append("unknown: the compiler's log has no ptxas usage lines")
    if usage.spill_bytes > limit:
        lines.append(f"spills: {usage.spill_bytes} bytes of spill stores and loads (allowed: {limit})")
    for name, pattern in WARNINGS.items():
        match = pattern.search(log)
        if match and name not in allowed:
            lines.append(f"{name}: {match.group().strip()}")
    return lines


def allowed(spec: KernelSpec) -> tuple[str, ...]:
    """The findings that this kernel is documented to have."""
    return tuple(sorted(item.finding for item in ALLOWANCES if item.applies(spec)))
