"""What is known of one compiled kernel: the report beside its cubin, which vouches for it.

Nothing here compiles, so what only reads kernels need not import a compiler.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .files import write_atomic


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


def stale_reason(stem: Path, source_sha256: str, content_key: str) -> str:
    """Why the files at ``stem`` are not what compiling would give now; empty if they are.

    Args:
        stem: the path without suffix.
        source_sha256: hash of all that would be compiled.
        content_key: what the report of the result would carry.
    """
    report = read_report(stem.with_suffix(".json"))
    if report is None:
        return "not built"
    if report.content_key != content_key:
        return "compiler or options changed" if report.source_sha256 == source_sha256 else "source changed"
    try:
        intact = hashlib.sha256(stem.with_suffix(".cubin").read_bytes()).hexdigest() == report.cubin_sha256
    except FileNotFoundError:
        intact = False
    return "" if intact else "cubin missing or damaged"


def write_result(stem: Path, cubin: bytes, report: Report) -> None:
    """Write the cubin, then the report that vouches for it. ``stem`` is the path without suffix."""
    write_atomic(stem.with_suffix(".cubin"), cubin)
    write_atomic(stem.with_suffix(".json"), (json.dumps(asdict(report), indent=1) + "\n").encode())
