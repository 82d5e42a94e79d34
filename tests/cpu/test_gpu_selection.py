"""Which GPUs the GPU tests take: those that have kernels. Any other is named and refused, not failed on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda.bindings import driver

from tests import conftest
from tests.helpers.gpu import gpu_arch
from tests.helpers.standin import ROOT

SUCCESS = driver.CUresult.CUDA_SUCCESS
WITHOUT_KERNELS = [(8, 0), (10, 3), (12, 0)]


@pytest.fixture
def run_all(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "tests" / "gpu")
    import run_all

    return run_all


@pytest.mark.parametrize(
    ("capability", "missing"), [((9, 0), False), ((10, 0), False), *((c, True) for c in WITHOUT_KERNELS)]
)
def test_gpu_tests_are_skipped_on_a_gpu_without_kernels(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], missing: bool
) -> None:
    attributes = driver.CUdevice_attribute
    numbers = {
        attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: capability[0],
        attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: capability[1],
    }
    monkeypatch.setattr(driver, "cuInit", lambda flags: (SUCCESS,))
    monkeypatch.setattr(driver, "cuDeviceGetCount", lambda: (SUCCESS, 1))
    monkeypatch.setattr(driver, "cuDeviceGetAttribute", lambda attribute, device: (SUCCESS, numbers[attribute]))
    wanted = f"no kernels for compute capability {capability[0]}.{capability[1]}" if missing else ""
    assert conftest.missing_gpu.__wrapped__() == wanted


@pytest.mark.parametrize(
    ("capability", "arch"), [((9, 0), "sm90"), ((10, 0), "sm100"), *((c, "sm90") for c in WITHOUT_KERNELS)]
)
def test_tests_of_a_gpu_are_collected_on_any(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], arch: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert gpu_arch.__wrapped__() == arch


@pytest.mark.parametrize(("capability", "arch"), [((9, 0), "sm90"), ((10, 0), "sm100")])
def test_all_tests_run_the_kernels_of_the_gpu(
    run_all: Any, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], arch: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert run_all.this_arch() == arch


@pytest.mark.parametrize("capability", WITHOUT_KERNELS)
def test_all_tests_refuse_a_gpu_without_kernels(
    run_all: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    capability: tuple[int, int],
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--summary", str(tmp_path / "summary.json")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(run_all, "run", None)
    assert run_all.main() == 2
    assert f"(got {capability[0]}.{capability[1]})" in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists()


def test_all_files_of_gpu_tests_run(run_all: Any) -> None:
    files = [file for _, file, _ in (*run_all.PHASES, run_all.ANCHOR)]
    assert sorted(files) == sorted(path.name for path in (ROOT / "tests" / "gpu").glob("test_*.py"))
