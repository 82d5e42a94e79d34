"""Compiles one kernel: source to cubin, ptxas report checked. Run by ninja, one process per kernel.

``python -m skimattn.codegen.compile --compiler nvrtc --version 13.0.88 --headers DIR --headers DIR sm90/NAME``
reads ``sm90/NAME.cu`` and writes ``sm90/NAME.cubin`` and then ``sm90/NAME.json``, which makes the result valid.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import ptxas
from .errors import BuildError
from .report import Report, write_result
from .toolchain import COMPILERS, Toolchain, compile_unit
from .unit import Headers, Unit, content_key, from_folders


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
        write_result(stem, cubin, report)
    except (BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
