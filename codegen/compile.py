"""Compiles one kernel: source to cubin, ptxas report checked. Run by ninja, one process per kernel.

``python -m skimattn.codegen.compile --compiler nvrtc --version 13.0.88 --headers DIR --headers DIR sm90/NAME``
reads ``sm90/NAME.cu`` and writes ``sm90/NAME.cubin`` and then ``sm90/NAME.json``, which makes the result valid.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import ptxas
from .errors import BuildError
from .files import write_atomic
from .toolchain import COMPILERS, Toolchain, compile_unit
from .unit import Headers, Unit, content_key, from_folders


@dataclass(frozen=True)
class Report:
    """What is known about one compiled kernel. ``seconds`` and ``peak_mb`` describe the run, not the result."""

    content_key: str
    source_sha256: str
    cubin_sha256: str
    compiler: str
    registers: int
    spill_bytes: int
    seconds: float
    peak_mb: int


def key_of(unit: Unit, toolchain: Toolchain, allowed: Sequence[str]) -> str:
    """The content key of what compiling ``unit`` with ``toolchain`` yields."""
    return content_key(unit.source_sha256, toolchain.id, toolchain.options(unit.arch), allowed)


def _fail(unit: Unit, findings: Sequence[str], log: str) -> None:
    lines = "".join(f"  {line}\n" for line in findings)
    raise BuildError(f"{unit.name}: ptxas findings that fail a build:\n{lines}{log}")


def compile_kernel(
    unit: Unit,
    toolchain: Toolchain,
    allowed: Sequence[str],
    on_findings: Callable[[Unit, Sequence[str], str], None] = _fail,
) -> tuple[bytes, Report]:
    """Compile ``unit`` and check what ptxas says about it.

    Args:
        unit: source and headers.
        toolchain: compiler and version.
        allowed: findings (see :class:`skimattn.codegen.ptxas.Allowance`) that do not fail this kernel.
        on_findings: is given the unit, the findings that are not allowed, and the log; by default it raises.
    Raises:
        BuildError: a compiler error, or a finding that is not allowed; names the kernel, carries the log.
    """
    start = time.perf_counter()
    cubin, log = compile_unit(unit, toolchain)
    seconds = time.perf_counter() - start
    usage = ptxas.parse(log)
    if findings := ptxas.refused(log, usage, allowed):
        on_findings(unit, findings, log)
    report = Report(
        content_key=key_of(unit, toolchain, allowed),
        source_sha256=unit.source_sha256,
        cubin_sha256=hashlib.sha256(cubin).hexdigest(),
        compiler=toolchain.id,
        registers=usage.registers,
        spill_bytes=usage.spill_bytes,
        seconds=round(seconds, 3),
        peak_mb=_peak_mb(),
    )
    return cubin, report


def _peak_mb() -> int:
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kilobytes // 1024


def read_report(path: Path) -> Report | None:
    """The report at ``path``; None if there is none or it is damaged, which means: compile again."""
    try:
        return parse_report(path.read_bytes())
    except FileNotFoundError:
        return None


def parse_report(text: bytes) -> Report | None:
    """The report that ``text`` holds; None if it is damaged."""
    try:
        return Report(**json.loads(text))
    except (ValueError, TypeError):
        return None


def stale_reason(stem: Path, unit: Unit, toolchain: Toolchain, allowed: Sequence[str]) -> str:
    """Why the files at ``stem`` are not what compiling ``unit`` would give; empty if they are."""
    report = read_report(stem.with_suffix(".json"))
    if report is None:
        return "not built"
    if report.content_key != key_of(unit, toolchain, allowed):
        return "compiler or options changed" if report.source_sha256 == unit.source_sha256 else "source changed"
    try:
        intact = hashlib.sha256(stem.with_suffix(".cubin").read_bytes()).hexdigest() == report.cubin_sha256
    except FileNotFoundError:
        intact = False
    return "" if intact else "cubin missing or damaged"


def write_result(stem: Path, cubin: bytes, report: Report) -> None:
    """Write the cubin, then the report that vouches for it. ``stem`` is the path without suffix."""
    write_atomic(stem.with_suffix(".cubin"), cubin)
    write_atomic(stem.with_suffix(".json"), (json.dumps(asdict(report), indent=1) + "\n").encode())


def main(arguments: Sequence[str]) -> int:
    """Entry of the ninja rule; paths are relative to the working directory. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="skimattn.codegen.compile")
    parser.add_argument("--compiler", choices=COMPILERS, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--lineinfo", action="store_true")
    parser.add_argument("--headers", type=Path, action="append", required=True)
    parser.add_argument("--allow", action="append", default=[])
    parser.add_argument("stem", type=Path)
    given = parser.parse_args(arguments)
    stem: Path = given.stem
    try:
        source = stem.with_suffix(".cu").read_text(encoding="utf-8")
        unit = Headers(from_folders(given.headers)).unit(stem.name, stem.parent.name, source)
        toolchain = Toolchain(given.compiler, given.version, given.lineinfo)
        cubin, report = compile_kernel(unit, toolchain, given.allow)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    write_result(stem, cubin, report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
