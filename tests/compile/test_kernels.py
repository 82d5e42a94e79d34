"""The real kernels through the real compiler: clean reports, the same bytes in every folder, one home for PTX."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from skimattn.codegen import emit, matrix, ptxas, sets
from skimattn.codegen.compile import compile_kernel
from skimattn.codegen.pipeline import Sources
from skimattn.codegen.tiles import tile_of
from skimattn.codegen.toolchain import find_toolchain
from skimattn.codegen.unit import Closure, Unit

ROOT = Path(__file__).resolve().parents[2]
# One of each: every head_dim, mask, kind, layout and dtype, and the two features that only the full set has. SM100's
# part of the smoke set is in test_sm100.py.
CHOSEN = [
    *sets.specs("smoke", archs=["sm90"])[2:],
    *sets.specs("default", {"mask": ["custom"], "head_dim": [128], "dtype": ["fp16"], "skip": ["skip"]}),
    *sets.specs(
        "full",
        {
            "mask": ["causal"],
            "head_dim": [64],
            "dtype": ["bf16"],
            "skip": ["stat"],
            "paged": [True],
            "softcap": [True],
            "alibi": [True],
        },
    ),
    # What needs the most registers, of every head_dim: loaders that follow pages, two edges of a mask, and counts.
    *sets.specs(
        "full",
        {
            "phase": ["prefill"],
            "mask": ["chunked"],
            "dtype": ["bf16"],
            "skip": ["stat"],
            "paged": [True],
            "softcap": [False],
            "alibi": [False],
        },
        ["sm90"],
    ),
]


@pytest.mark.parametrize("spec", dict.fromkeys(CHOSEN), ids=lambda spec: spec.name)
def test_kernels_compile_without_findings(spec: matrix.KernelSpec, held_mb: int) -> None:
    cubin, report = compile_kernel(Sources().unit(spec), find_toolchain("nvrtc"), ptxas.allowed(spec))
    assert cubin[:4] == b"\x7fELF"
    assert report.registers * tile_of(spec).threads <= 65536
    assert report.peak_mb < 1000 + held_mb
    assert spec.name.encode() in cubin
    assert not re.search(rb"/(home|root|tmp|usr|work)/", cubin), "a path of this machine is in the cubin"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_nvcc_takes_the_same_sources() -> None:
    spec = sets.SMOKE[0]
    cubin, report = compile_kernel(Sources().unit(spec), find_toolchain("nvcc"), ptxas.allowed(spec))
    assert cubin[:4] == b"\x7fELF" and report.compiler.startswith("nvcc ")


def test_the_parameter_block_is_laid_out_as_on_the_host() -> None:
    source = '#include <skimattn/params.cuh>\nextern "C" __global__ void kernel(const skimattn::Params p) {}\n'
    closure = Sources().unit(sets.SMOKE[0]).closure
    compile_kernel(Unit("kernel", "sm90", source, Closure(closure.texts)), find_toolchain("nvrtc"), ())


def test_asm_stands_in_the_ptx_headers_only() -> None:
    include = ROOT / "templates" / "include"
    holders = {
        str(path.relative_to(include)) for path in include.rglob("*.cuh") if re.search(r"\basm\b", path.read_text())
    }
    texts = {name for name in emit.HEADERS if "asm volatile" in emit.render_header(name)}
    sources = [spec.name for spec in matrix.all_specs() if "asm" in emit.render_kernel(spec)]
    comments_only = {name for name in holders if "asm volatile" not in (include / name).read_text()}
    assert holders - comments_only == {"skimattn/ptx.cuh", "skimattn/sm90/ptx.cuh", "skimattn/sm100/ptx.cuh"}
    assert texts == {"wgmma.cuh", "tcgen05.cuh"}
    assert not sources
