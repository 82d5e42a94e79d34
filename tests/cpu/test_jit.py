"""Compilation on first use, on stand-in kernels."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from skimattn.codegen import cache as cache_module
from skimattn.codegen import compile as compile_module
from skimattn.codegen import emit, jit, pipeline, ptxas, sets
from skimattn.codegen.compile import compile_kernel
from skimattn.codegen.errors import BuildError
from skimattn.codegen.files import TEMPORARY
from skimattn.codegen.spec import KernelSpec
from skimattn.codegen.toolchain import find_toolchain

from tests.helpers import standin

SPEC = sets.SMOKE[0]
CODE = """
from skimattn.codegen import jit, sets
kernel, cubin = jit.compile_spec(sets.SMOKE[0])
print(kernel.cubin_sha256, len(cubin))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(emit.TEMPLATES_VARIABLE, str(standin.write_templates(tmp_path / "templates")))
    monkeypatch.setenv(cache_module.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_kernel_is_compiled_once_and_announced(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="skimattn"):
        first = jit.compile_spec(SPEC)
    assert [record.message.split()[0] for record in caplog.records] == ["compiling", "compiled"]
    assert all(SPEC.name in record.message for record in caplog.records)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="skimattn"):
        assert jit.compile_spec(SPEC) == first
    assert not caplog.records
    kernel, cubin = first
    assert kernel.spec == SPEC and cubin[:4] == b"\x7fELF"
    assert (cache / kernel.cubin).read_bytes() == cubin


@pytest.mark.parametrize("spec", [SPEC, sets.SMOKE[-1]], ids=lambda spec: spec.arch)
def test_it_gives_what_the_build_gives(cache: Path, tmp_path: Path, spec: KernelSpec) -> None:
    only = [f"{name}={str(value).lower()}" for name, value in spec.values.items()]
    done = standin.run("--only", *only, "--out", tmp_path / "out", templates=tmp_path / "templates")
    assert done.returncode == 0, done.stderr
    kernel, cubin = jit.compile_spec(spec)
    assert (tmp_path / "out" / spec.arch / f"{spec.name}.cubin").read_bytes() == cubin
    assert kernel.spec == spec and len({sets.SMOKE[0].arch, sets.SMOKE[-1].arch}) == 2


def test_processes_share_the_cache(cache: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    answers = {process.communicate(timeout=60) for process in processes}
    assert len(answers) == 1 and all(process.returncode == 0 for process in processes), answers
    assert len(list(cache.glob("*.cubin"))) == 1
    assert not list(cache.glob(f"*{TEMPORARY}"))


def test_changed_sources_are_another_entry(cache: Path, tmp_path: Path) -> None:
    first = jit.compile_spec(SPEC)[0]
    header = tmp_path / "templates" / "include" / "skimattn" / "core" / "base.cuh"
    header.write_text(header.read_text().replace("1.0f", "2.0f"))
    second = jit.compile_spec(SPEC)[0]
    assert first.cubin != second.cubin
    assert len(list(cache.glob("*.cubin"))) == 2


@pytest.mark.parametrize("suffix", [".cubin", ".json"])
def test_damaged_entries_are_compiled_again(cache: Path, suffix: str) -> None:
    first = jit.compile_spec(SPEC)
    entry = (cache / first[0].cubin).with_suffix(suffix)
    entry.write_bytes(entry.read_bytes()[:-3])
    assert jit.compile_spec(SPEC)[1] == first[1]


def test_a_compiler_error_carries_the_log(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "templates" / "kernel.cu.j2").write_text("__device__ int x = y;\n")
    with pytest.raises(BuildError, match=rf'{SPEC.name}: NVRTC_ERROR_COMPILATION\n.*identifier "y" is undefined'):
        jit.compile_spec(SPEC)
    assert not list(cache.glob("*.cubin"))


def test_what_ptxas_reports_is_a_warning_on_first_use_and_an_error_in_a_build(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = tmp_path / "templates" / "kernel.cu.j2"
    template.write_text(f"""extern "C" __global__ void __launch_bounds__(512, 1) ${{spec.name}}(float* out) {{
{standin.SPILLING}}}
""")
    spec = next(spec for spec in sets.SMOKE if not ptxas.allowed(spec))
    with caplog.at_level(logging.WARNING, logger="skimattn"):
        kernel, cubin = jit.compile_spec(spec)
    (record,) = caplog.records
    assert re.match(rf"{spec.name}: it runs, .* ptxas reports spills: \d+ bytes", record.getMessage())
    assert kernel.spill_bytes > 0 and cubin[:4] == b"\x7fELF"
    unit = pipeline.Sources().unit(spec)
    with pytest.raises(BuildError, match=r"ptxas findings that fail a build:\n  spills: \d+ bytes"):
        compile_kernel(unit, find_toolchain("nvrtc"), ())


def test_a_log_that_ptxas_words_in_another_way_is_a_warning_too(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compile_module, "compile_unit", lambda unit, toolchain: (b"a cubin", "in other words"))
    with caplog.at_level(logging.WARNING, logger="skimattn"):
        assert jit.compile_spec(SPEC)[1] == b"a cubin"
    assert "unknown: the compiler's log has no ptxas usage lines" in caplog.records[0].getMessage()
    with pytest.raises(BuildError, match="unknown: the compiler's log has no ptxas usage lines"):
        compile_kernel(pipeline.Sources().unit(SPEC), find_toolchain("nvrtc"), ())
