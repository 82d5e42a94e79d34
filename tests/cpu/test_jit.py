"""Compilation on first use, on stand-in kernels."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from skimattn.codegen import emit, jit, matrix
from skimattn.codegen.errors import BuildError
from skimattn.codegen.spec import KernelSpec

from tests.helpers import standin

SPEC = matrix.SMOKE[0]
CODE = """
from skimattn.codegen import jit, matrix
kernel, cubin = jit.compile_spec(matrix.SMOKE[0])
print(kernel.cubin_sha256, len(cubin))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(emit.TEMPLATES_VARIABLE, str(standin.write_templates(tmp_path / "templates")))
    monkeypatch.setenv(jit.CACHE_VARIABLE, str(tmp_path / "cache"))
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


@pytest.mark.parametrize("spec", [SPEC, matrix.SMOKE[-1]], ids=lambda spec: spec.arch)
def test_it_gives_what_the_build_gives(cache: Path, tmp_path: Path, spec: KernelSpec) -> None:
    only = [f"{name}={str(value).lower()}" for name, value in spec.values.items()]
    done = standin.run("--only", *only, "--out", tmp_path / "out", templates=tmp_path / "templates")
    assert done.returncode == 0, done.stderr
    kernel, cubin = jit.compile_spec(spec)
    assert (tmp_path / "out" / spec.arch / f"{spec.name}.cubin").read_bytes() == cubin
    assert kernel.spec == spec and len({matrix.SMOKE[0].arch, matrix.SMOKE[-1].arch}) == 2


def test_processes_share_the_cache(cache: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    answers = {process.communicate(timeout=60) for process in processes}
    assert len(answers) == 1 and all(process.returncode == 0 for process in processes), answers
    assert len(list(cache.glob("*.cubin"))) == 1
    assert not list(cache.glob("*.tmp"))


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


def test_a_cache_that_cannot_be_used_is_named(cache: Path, tmp_path: Path) -> None:
    cache.write_text("a file, not a folder")
    with pytest.raises(BuildError, match=rf"{SPEC.name}: the cache folder .*{jit.CACHE_VARIABLE} names another"):
        jit.compile_spec(SPEC)


def test_the_default_folder_follows_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(jit.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jit.cache_folder() == tmp_path / "skimattn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jit.cache_folder() == tmp_path / ".cache" / "skimattn"
