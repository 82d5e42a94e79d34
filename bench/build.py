"""``python -m bench build``: seconds and memory of compiling SM90's default set, one process per kernel. No GPU."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from skimattn.codegen import output, pipeline, places, sets
from skimattn.codegen.spec import KernelSpec
from skimattn.codegen.toolchain import find_toolchain

from . import machine, results

ARCH = "sm90"
_SLOWEST = 5


def summarise(kernels: dict[str, dict[str, float]], wanted: Sequence[KernelSpec]) -> dict[str, Any]:
    """The figures of a build log, over the ``wanted`` kernels in it.

    Raises:
        ValueError: the log holds none of them.
    """
    chosen = {spec.name: kernels[spec.name] for spec in wanted if spec.name in kernels}
    if not chosen:
        raise ValueError("build log: expected kernels of the default set (got none; run build.py, or use --compile)")
    seconds = [kernel["seconds"] for kernel in chosen.values()]
    slowest = sorted(chosen, key=lambda name: -chosen[name]["seconds"])[:_SLOWEST]
    return {
        "kernels": len(chosen),
        "set_size": len(sets.specs("default", archs=(ARCH,))),
        "median_seconds": round(statistics.median(seconds), 3),
        "max_seconds": max(seconds),
        "sum_seconds": round(sum(seconds), 1),
        "median_peak_mb": statistics.median(kernel["peak_mb"] for kernel in chosen.values()),
        "max_peak_mb": max(kernel["peak_mb"] for kernel in chosen.values()),
        "slowest": {name: chosen[name]["seconds"] for name in slowest},
    }


def compile_now(specs: Sequence[KernelSpec], cores: int) -> tuple[dict[str, dict[str, float]], float]:
    """Compile ``specs`` into a temporary folder on ``cores`` cores; (kernels of the build log, wall seconds)."""
    available = sorted(os.sched_getaffinity(0))
    if cores > len(available):
        raise ValueError(f"--cores: expected at most {len(available)}, which this process may use (got {cores})")
    os.sched_setaffinity(0, available[:cores])  # the compilers inherit it
    try:
        with tempfile.TemporaryDirectory(prefix="skimattn-bench-") as folder, redirect_stdout(sys.stderr):
            start = time.perf_counter()
            outcome = pipeline.Build(Path(folder), find_toolchain("nvrtc")).run(specs, cores)
            wall = time.perf_counter() - start
            log = json.loads((Path(folder) / output.LOG).read_text())
    finally:
        os.sched_setaffinity(0, available)
    if outcome.failed:
        raise ValueError(f"build: expected every kernel to compile (failed: {', '.join(outcome.failed)})")
    return log["kernels"], round(wall, 1)


def sample(specs: Sequence[KernelSpec], count: int | None) -> Sequence[KernelSpec]:
    """``count`` kernels spread evenly over the set; all without a count."""
    if count is None or count >= len(specs):
        return specs
    return [specs[index * len(specs) // count] for index in range(count)]


def main(arguments: Sequence[str]) -> int:
    """Measure or read, print, and write JSON. Exit status 1 if nothing was built or a kernel failed."""
    parser = argparse.ArgumentParser(prog="python -m bench build", description=__doc__)
    parser.add_argument("--log", type=Path, default=places.default_output() / output.LOG, help="of an earlier build")
    parser.add_argument("--compile", action="store_true", help="compile now, into a temporary folder")
    parser.add_argument("--cores", type=int, default=1, help="with --compile: cores, each with one compiler")
    parser.add_argument("--sample", type=int, help="with --compile: so many kernels of the set; default: all")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    document = results.new_document("build", arguments)
    chosen = sets.specs("default", archs=(ARCH,))
    wall, cores = None, None
    try:
        if options.compile:
            cores = options.cores
            kernels, wall = compile_now(sample(chosen, options.sample), cores)
        else:
            kernels = json.loads(options.log.read_text())["kernels"]
        document |= summarise(kernels, chosen)
    except (OSError, ValueError) as error:
        print(f"bench build: {error}", file=sys.stderr)
        return 1
    document |= {"cores": cores, "wall_seconds": wall, "commit": machine.commit(), "machine": processor()}
    document["compiler"] = find_toolchain("nvrtc").id
    results.finish(document)
    path = results.place(options.out, document, ARCH)
    results.save(document, path)
    fields = ("kernels", "set_size", "cores", "wall_seconds", "median_seconds", "max_seconds", "max_peak_mb", "slowest")
    print("\n".join(f"{name:16} {document[name]}" for name in fields) + f"\n\n{path}")
    return 0


def processor() -> str:
    """Model of the processor, as the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
