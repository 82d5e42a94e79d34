"""SM100 kernels through the real compilers: no spills, no local memory, the instructions that they are made for."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from skimattn.codegen import metadata, ptxas, sets
from skimattn.codegen.compile import compile_kernel
from skimattn.codegen.pipeline import Sources
from skimattn.codegen.report import Report
from skimattn.codegen.spec import KernelSpec
from skimattn.codegen.tiles import tile_of
from skimattn.codegen.tiles.common import ELEMENT_BYTES
from skimattn.codegen.toolchain import find_toolchain

from tests.helpers.sass import instructions, nvdisasm

SPECS = sets.specs("default", archs=["sm100"])
SMOKE = sets.specs("smoke", archs=["sm100"])
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME')}/bin")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="NVCC DID NOT COMPILE ANYTHING: there is no nvcc here")
needs_nvdisasm = pytest.mark.skipif(nvdisasm() is None, reason="NO MACHINE CODE WAS READ: pip install '.[test]'")


def compiled(spec: KernelSpec, compiler: str = "nvrtc") -> tuple[bytes, Report]:
    return compile_kernel(Sources().unit(spec), find_toolchain(compiler), ptxas.allowed(spec))


def check_resources(spec: KernelSpec, cubin: bytes, report: Report, held_mb: int) -> None:
    """No spills, and a metadata row that says what the kernel takes."""
    assert report.spill_bytes == 0, f"{report.spill_bytes} bytes spilled"
    row = metadata.kernel_of(spec, report, "x.cubin")
    assert row.registers * row.threads * row.ctas_per_sm <= 65536
    assert row.smem_bytes <= 232448
    if spec.phase != "combine":
        assert row.registers >= 128 and row.tmem_columns in (32, 64, 128, 256, 512)
    if spec.phase == "prefill":
        assert (row.group_rows, row.tile_n) == (128, 128) and row.tile_m == (128 if row.head_dim == 256 else 256)
    else:
        assert row.group_rows == 64
    assert spec.name.encode() in cubin and cubin[:4] == b"\x7fELF"
    assert not re.search(rb"/(home|root|tmp|usr|work)/", cubin), "a path of this machine is in the cubin"
    assert report.peak_mb < 1000 + held_mb


def check_machine_code(spec: KernelSpec, cubin: bytes) -> None:
    """Every product of a tile once, by the tensor core of its type; copies by TMA; tensor memory read and written."""
    found, tile = instructions(cubin), tile_of(spec)
    for name in ("LDL", "STL", "HMMA", "HGMMA"):
        assert found[name] == 0, f"{found[name]} {name}"
    if spec.phase == "combine":  # merges, and multiplies nothing
        assert not any(name.startswith("UTC") for name in found)
        return
    step = 32 // ELEMENT_BYTES[spec.dtype]
    products = tile.consumers * (spec.head_dim // step + tile.tile_n // step)
    kind, other = ("UTCQMMA", "UTCHMMA") if spec.dtype == "e4m3" else ("UTCHMMA", "UTCQMMA")
    assert found[kind] > 0 and found[kind] % products == 0 and found[other] == 0, (found[kind], products)
    for name in ("UTCBAR", "LDTM", "STTM", "UTMALDG", "UTCATOMSWS", "USETMAXREG", "MUFU"):
        assert found[name] > 0, f"no {name}"
    if spec.phase == "prefill":
        assert found[kind] == products and found["FFMA2"] > 0
        assert found["UTMASTG"] == -(-spec.head_dim_v * 2 // 128)


@pytest.mark.parametrize("spec", SMOKE, ids=lambda spec: spec.name)
def test_kernels_compile(spec: KernelSpec, held_mb: int) -> None:
    cubin, report = compiled(spec)
    check_resources(spec, cubin, report, held_mb)
    if nvdisasm():
        check_machine_code(spec, cubin)


@needs_nvdisasm
def test_machine_code_is_read_as_it_is() -> None:
    """An SM90 kernel: other products, and no tensor memory."""
    found = instructions(compiled(sets.SMOKE[0])[0])
    assert found["HGMMA"] > 0 and found["UTMALDG"] > 0
    assert not any(name.startswith(("UTC", "LDTM", "STTM")) for name in found)


@needs_nvcc
@pytest.mark.parametrize("spec", SMOKE[::2], ids=lambda spec: spec.name)
def test_nvcc_compiles_them_too(spec: KernelSpec, held_mb: int) -> None:
    cubin, report = compiled(spec, "nvcc")
    assert report.compiler.startswith("nvcc ")
    check_resources(spec, cubin, report, held_mb)
    if nvdisasm():
        check_machine_code(spec, cubin)


@pytest.mark.exhaustive
@needs_nvdisasm
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_default_set(spec: KernelSpec, held_mb: int) -> None:
    cubin, report = compiled(spec)
    check_resources(spec, cubin, report, held_mb)
    check_machine_code(spec, cubin)


@pytest.mark.exhaustive
@needs_nvcc
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_default_set_with_nvcc(spec: KernelSpec, held_mb: int) -> None:
    check_resources(spec, *compiled(spec, "nvcc"), held_mb)
