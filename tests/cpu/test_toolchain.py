"""The compilers, on small sources: options, logs, warnings, and what is said when one is missing."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import pytest
from cuda.bindings import nvrtc
from skimattn.codegen.arch import ARCHS, Arch
from skimattn.codegen.compile import compile_kernel
from skimattn.codegen.errors import BuildError
from skimattn.codegen.toolchain import Toolchain, compile_unit, find_toolchain
from skimattn.codegen.unit import Closure, Unit

CLEAN = 'extern "C" __global__ void kernel(float* out) { out[threadIdx.x] = 1.0f; }\n'
# setmaxnreg in a kernel whose register count at entry is unknown: no launch bounds.
IGNORED = """
extern "C" __global__ void kernel(float* out) {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
  out[threadIdx.x] = 1.0f;
}
"""
# An accumulator that is read between the instructions of one wgmma group.
SERIALIZED = """
__device__ void mma(float (&d)[4], unsigned long long a) {
  asm volatile("{wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %4, 1, 1, 1, 0, 0;}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a));
}
extern "C" __global__ void __launch_bounds__(128, 1) kernel(float* out, unsigned long long a) {
  float d[4] = {};
  asm volatile("wgmma.fence.sync.aligned;");
  mma(d, a);
  d[0] = d[0] * 2.0f;
  mma(d, a);
  asm volatile("wgmma.commit_group.sync.aligned;");
  asm volatile("wgmma.wait_group.sync.aligned 0;");
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i];
}
"""


def unit(source: str) -> Unit:
    return Unit("kernel", "sm90", source, Closure({}))


@pytest.fixture(params=["nvrtc", "nvcc"])
def toolchain(request: pytest.FixtureRequest) -> Toolchain:
    if request.param == "nvcc" and shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    return find_toolchain(request.param)


def test_a_clean_kernel_passes_twice_with_the_same_bytes(toolchain: Toolchain) -> None:
    cubin, report = compile_kernel(unit(CLEAN), toolchain, ())
    assert cubin[:4] == b"\x7fELF"
    assert (report.spill_bytes, report.compiler) == (0, toolchain.id)
    assert compile_kernel(unit(CLEAN), toolchain, ())[0] == cubin


@pytest.mark.parametrize("arch", list(ARCHS.values()), ids=lambda arch: arch.name)
def test_each_architecture_is_compiled_for_its_own_target(toolchain: Toolchain, arch: Arch) -> None:
    cubin, log = compile_unit(Unit("kernel", arch.name, CLEAN, Closure({})), toolchain)
    assert f"for 'sm_{arch.target}'" in log
    major, minor = arch.capability
    assert 10 * major + minor in cubin[48:50]  # of the ELF header's flags the first byte, from CUDA 13 on the second


def test_setmaxnreg_is_looked_after_on_sm100_too(toolchain: Toolchain) -> None:
    with pytest.raises(BuildError, match="setmaxnreg-ignored: "):
        compile_kernel(Unit("kernel", "sm100", IGNORED, Closure({})), toolchain, ())


@pytest.mark.parametrize(
    ("source", "finding"), [(IGNORED, "setmaxnreg-ignored"), (SERIALIZED, "wgmma-serialized")], ids=["regs", "wgmma"]
)
def test_findings_fail_the_kernel_unless_allowed(toolchain: Toolchain, source: str, finding: str) -> None:
    with pytest.raises(BuildError, match=f"kernel: ptxas findings that fail a build:\n  {finding}: "):
        compile_kernel(unit(source), toolchain, ())
    assert compile_kernel(unit(source), toolchain, (finding,))[0]


def test_errors_name_kernel_and_line(toolchain: Toolchain) -> None:
    with pytest.raises(BuildError, match=r'kernel: .*\n?kernel\.cu\(1\): error: identifier "y" is undefined'):
        compile_unit(unit("__device__ int x = y;\n"), toolchain)


def test_headers_come_from_the_unit(toolchain: Toolchain) -> None:
    source = "#include <skimattn/a.cuh>\n" + CLEAN.replace("1.0f", "kA")
    texts = {"skimattn/a.cuh": "#pragma once\nconstexpr float kA = 2.0f;\n"}
    assert compile_unit(Unit("kernel", "sm90", source, Closure(texts)), toolchain)[0]


def test_a_missing_header_is_an_error(toolchain: Toolchain) -> None:
    with pytest.raises(BuildError, match=r"skimattn/none\.cuh"):
        compile_unit(unit("#include <skimattn/none.cuh>\n"), toolchain)


def test_a_missing_nvcc_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildError, match="nvcc: found neither on PATH nor in CUDA_HOME/bin"):
        find_toolchain("nvcc")


def test_nvcc_is_found_in_cuda_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.1, V13.1.42'\n")
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_toolchain("nvcc") == Toolchain("nvcc", "13.1.42")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The packages that are there, by name."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_a_missing_nvrtc_is_named(installed: dict[str, str]) -> None:
    text = r"^NVRTC is not installed: pip install nvidia-cuda-nvrtc \(of CUDA 12: nvidia-cuda-nvrtc-cu12\)$"
    with pytest.raises(BuildError, match=text):
        find_toolchain("nvrtc")


def test_the_nvrtc_of_cuda_12_has_another_name(installed: dict[str, str]) -> None:
    installed["nvidia-cuda-nvrtc-cu12"] = "12.8.93"
    assert find_toolchain("nvrtc") == Toolchain("nvrtc", "12.8.93")


@pytest.mark.parametrize(("loaded", "wanted"), [((12, 8), "12.8.93"), ((13, 0), "13.0.88")])
def test_of_two_packages_that_counts_whose_library_is_loaded(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, loaded: tuple[int, int], wanted: str
) -> None:
    installed |= {"nvidia-cuda-nvrtc": "13.0.88", "nvidia-cuda-nvrtc-cu12": "12.8.93"}
    monkeypatch.setattr(nvrtc, "nvrtcVersion", lambda: (nvrtc.nvrtcResult.NVRTC_SUCCESS, *loaded))
    assert find_toolchain("nvrtc").version == wanted


def test_a_library_that_is_not_found_is_named(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("Failure finding libnvrtc.so\nin many places")

    installed["cuda-bindings"] = "13.0.1"
    monkeypatch.setattr(nvrtc, "nvrtcVersion", missing)
    text = r"^NVRTC: cuda-bindings 13\.0\.1 finds no library \(Failure finding libnvrtc\.so\)$"
    with pytest.raises(BuildError, match=text):
        compile_unit(unit(CLEAN), Toolchain("nvrtc", "13.0.88"))


def test_another_nvrtc_than_the_package_says_is_refused() -> None:
    with pytest.raises(BuildError, match=r"NVRTC: expected the library of package version 12\.99\.1 \(got \("):
        compile_unit(unit(CLEAN), Toolchain("nvrtc", "12.99.1"))


@pytest.mark.parametrize(("arch", "version", "oldest"), [("sm100", "12.8.93", "12.9"), ("sm90", "12.6.85", "12.8")])
def test_a_compiler_that_is_too_old_for_the_architecture_is_named(arch: str, version: str, oldest: str) -> None:
    text = rf"^kernel: kernels of {arch} need nvrtc {oldest} or newer \(got {version}\)$"
    with pytest.raises(BuildError, match=text):
        compile_unit(Unit("kernel", arch, CLEAN, Closure({})), Toolchain("nvrtc", version))


def test_options_are_those_that_the_version_knows() -> None:
    assert "--no-cache" not in Toolchain("nvrtc", "12.8.93").options("sm90")
    assert "--no-cache" in Toolchain("nvrtc", "12.9.86").options("sm90")


def test_unknown_compilers_are_refused() -> None:
    with pytest.raises(ValueError, match="compiler: expected one of nvrtc, nvcc"):
        find_toolchain("clang")
