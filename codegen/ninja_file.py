"""Writes ``build.ninja`` and runs ninja, which only has to keep the cores busy.

What is out of date is decided by content before ninja runs (see :mod:`skimattn.codegen.pipeline`), because
timestamps go wrong when folders are copied and branches switched.
"""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ninja
from ninja import ninja_syntax

from .toolchain import Toolchain

NAME = "build.ninja"
_STATUS = "[%f/%t, %p, %W left] "


def render(stems: Iterable[str], toolchain: Toolchain, include: Path, allowed: Mapping[str, Sequence[str]]) -> str:
    """The ninja file of ``stems`` (``sm90/NAME``), whose paths are relative to the output folder.

    Args:
        stems: what to build.
        toolchain: passed on to every compiler process.
        include: folder of the headers that are not rendered.
        allowed: stem to the findings that do not fail that kernel.
    """
    worker = [sys.executable, "-P", "-m", "skimattn.codegen.compile"]
    compiler = ["--compiler", toolchain.compiler, "--version", toolchain.version]
    line = ["--lineinfo"] if toolchain.lineinfo else []
    command = shlex.join([*worker, *compiler, *line, "--headers", "include", "--headers", str(include)])
    text = io.StringIO()
    writer = ninja_syntax.Writer(text, width=sys.maxsize)  # type: ignore[arg-type] # its stub says str; breaks no lines
    writer.variable("ninja_required_version", "1.12")  # the first that knows %W
    writer.rule("kernel", f"{ninja_syntax.escape(command)} $allow $stem", description="$stem")
    for stem in stems:
        allow = shlex.join(f"--allow={name}" for name in allowed.get(stem, ()))
        variables = {"stem": stem} | ({"allow": ninja_syntax.escape(allow)} if allow else {})
        writer.build([f"{stem}.cubin", f"{stem}.json"], "kernel", [f"{stem}.cu"], variables=variables)
    return text.getvalue()


def run(folder: Path, stems: Iterable[str], jobs: int, keep: int) -> int:
    """Build ``stems`` in ``folder`` with ``jobs`` processes; every kernel is tried, whatever fails before it.

    Args:
        folder: the output folder.
        stems: what to build, as written in the ninja file.
        jobs: processes at once.
        keep: a descriptor that ninja and the compilers inherit, so that its lock outlives a killed parent.
    Returns:
        ninja's exit status.
    """
    binary = Path(ninja.BIN_DIR) / "ninja"
    command = [str(binary), "-f", NAME, "-j", str(jobs), "-k", "0", *(f"{stem}.json" for stem in stems)]
    environment = {**os.environ, "NINJA_STATUS": os.environ.get("NINJA_STATUS", _STATUS)}
    sys.stdout.flush()
    return subprocess.run(command, cwd=folder, env=environment, pass_fds=(keep,)).returncode
