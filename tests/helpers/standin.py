"""Tiny kernels in place of the real ones, for tests of the build itself: they compile in a quarter of a second."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from skimattn.codegen import ninja_file, pipeline, ptxas
from skimattn.codegen.compile import key_of
from skimattn.codegen.emit import TEMPLATES_VARIABLE
from skimattn.codegen.report import Report, write_result
from skimattn.codegen.spec import KernelSpec
from skimattn.codegen.toolchain import Toolchain

ROOT = Path(__file__).resolve().parents[2]
TOOLCHAIN = Toolchain("nvrtc", "13.0.88")

KERNEL = """// ${spec.name}
#include <skimattn/features.cuh>
<% if spec.mask == "causal" %>
#include <skimattn/core/causal.cuh>
<% else %>
#include <skimattn/core/other.cuh>
<% endif %>

extern "C" __global__ void __launch_bounds__(${tile.threads}, 1) ${spec.name}(float* out) {
  out[threadIdx.x] = kValue + ${spec.head_dim};
}
"""
FILES = {
    "kernel.cu.j2": KERNEL,
    "params.cuh.j2": "#pragma once\n// ${size} bytes\n",
    "features.cuh.j2": "#pragma once\n",
    "wgmma.cuh.j2": "#pragma once\n",
    "tcgen05.cuh.j2": "#pragma once\n",
    "include/skimattn/core/base.cuh": "#pragma once\n#include <skimattn/params.cuh>\nconstexpr float kBase = 1.0f;\n",
    "include/skimattn/core/causal.cuh": "#pragma once\n#include <skimattn/core/base.cuh>\n"
    "constexpr float kValue = kBase + 1.0f;\n",
    "include/skimattn/core/other.cuh": "#pragma once\nconstexpr float kValue = 3.0f;\n",
}
# A kernel body that keeps more values alive than its registers can hold.
SPILLING = """
  float held[200];
#pragma unroll
  for (int i = 0; i < 200; ++i) held[i] = out[i * 512 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 200; ++i) out[i * 512 + threadIdx.x] = held[i] - held[(i * 7 + 3) % 200];
"""


def write_templates(folder: Path) -> Path:
    """Write the stand-in templates; returns ``folder``."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def command(*arguments: str | Path) -> list[str]:
    """``python build.py ...``."""
    return [sys.executable, str(ROOT / "build.py"), *map(str, arguments)]


def environment(templates: Path | None) -> dict[str, str]:
    """This process's environment, with the templates of ``templates`` (None: the real ones)."""
    named = {} if templates is None else {TEMPLATES_VARIABLE: str(templates)}
    return {name: value for name, value in os.environ.items() if name != TEMPLATES_VARIABLE} | named


def run(
    *arguments: str | Path, templates: Path | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python build.py`` and return what it printed."""
    return subprocess.run(
        command(*arguments), env=environment(templates), cwd=cwd, capture_output=True, text=True, timeout=120
    )


def pretend_compiler(monkeypatch: pytest.MonkeyPatch, build: pipeline.Build, specs: Iterable[KernelSpec]) -> list[str]:
    """Let ``build`` produce made-up cubins at once; returns the list that the compiled stems are appended to."""
    by_stem = {pipeline.stem_of(spec): spec for spec in specs}
    compiled: list[str] = []

    def compile_all(folder: Path, stems: Iterable[str], jobs: int, keep: int) -> int:
        for stem in stems:
            spec = by_stem[stem]
            unit, cubin = build.sources.unit(spec), stem.encode() * 100
            key, digest = key_of(unit, build.toolchain, ptxas.allowed(spec)), hashlib.sha256(cubin).hexdigest()
            report = Report(key, unit.source_sha256, digest, build.toolchain.id, 168, 0, 1.5, 200)
            write_result(folder / stem, cubin, report)
            compiled.append(stem)
        return 0

    monkeypatch.setattr(ninja_file, "run", compile_all)
    return compiled
