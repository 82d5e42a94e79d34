"""What ptxas reports about a kernel, and what in that report fails the kernel's build."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .spec import KernelSpec

# Findings that fail a build, by name: a pattern of the log line.
FINDINGS = {
    "wgmma-serialized": re.compile(r".*wgmma.*serialized.*", re.IGNORECASE),
    "setmaxnreg-ignored": re.compile(r".*setmaxnreg.*ignored.*", re.IGNORECASE),
}

# Kernel name -> {finding: why it is accepted}. Findings: "spills" and the names above.
EXCEPTIONS: dict[str, dict[str, str]] = {}

_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Usage:
    """Resources of one kernel: registers per thread at entry, bytes of spill stores and loads together."""

    registers: int
    spill_bytes: int


def parse(log: str) -> Usage:
    """Read the usage out of the ``-v`` log; ``ValueError`` if it has no such lines."""
    registers, spills = _REGISTERS.findall(log), _SPILLS.findall(log)
    if not registers or not spills:
        raise ValueError("the compiler log has no ptxas usage lines")
    return Usage(max(map(int, registers)), sum(int(stores) + int(loads) for stores, loads in spills))


def findings(log: str, usage: Usage) -> dict[str, str]:
    """Name -> log line of everything that fails a build."""
    found = {"spills": f"{usage.spill_bytes} bytes of spill stores and loads"} if usage.spill_bytes else {}
    for name, pattern in FINDINGS.items():
        if match := pattern.search(log):
            found[name] = match.group().strip()
    return found


def allowed(spec: KernelSpec) -> tuple[str, ...]:
    """The findings that this kernel is documented to have."""
    return tuple(sorted(EXCEPTIONS.get(spec.name, {})))
