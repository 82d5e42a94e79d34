"""The architectures of the GPUs in a machine, of a driver that is made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from cuda.bindings import driver
from skimattn.codegen import cli, local_gpu
from skimattn.codegen.errors import ArgumentError


def test_the_driver_is_asked_for_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    success, names = driver.CUresult.CUDA_SUCCESS, driver.CUdevice_attribute
    minor = names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    capabilities = [(9, 0), (8, 9), (10, 0)]
    monkeypatch.setattr(driver, "cuInit", lambda flags: (success,))
    monkeypatch.setattr(driver, "cuDeviceGetCount", lambda: (success, len(capabilities)))
    monkeypatch.setattr(
        driver, "cuDeviceGetAttribute", lambda name, at: (success, capabilities[at][int(name == minor)])
    )
    assert local_gpu.local_archs() == ("sm90", "sm100")
    monkeypatch.setattr(driver, "cuDeviceGetCount", lambda: (success, 0))
    with pytest.raises(ArgumentError, match=r"^--sm: expected one of sm90, sm100, as no .* \(got GPUs: none\)$"):
        local_gpu.local_archs()
    monkeypatch.setattr(driver, "cuInit", lambda flags: (driver.CUresult.CUDA_ERROR_NO_DEVICE,))
    with pytest.raises(ArgumentError, match=r"^--sm: expected .* \(got cuInit: CUDA_ERROR_NO_DEVICE\)$"):
        local_gpu.local_archs()


def test_a_model_is_built_for_the_gpus_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"head_dim": 128, "torch_dtype": "bfloat16"}')
    arguments = ["--model", str(tmp_path), "--list", "--json", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(local_gpu, "_capabilities", lambda: [(10, 0), (8, 0), (10, 0)])
    listed = json.loads(CliRunner().invoke(cli.command, arguments).stdout)
    assert len(listed) == 13 and {row["arch"] for row in listed} == {"sm100"}
    monkeypatch.setattr(local_gpu, "_capabilities", lambda: [(8, 0), (12, 0)])
    done = CliRunner().invoke(cli.command, arguments)
    words = "--sm: expected one of sm90, sm100, as no GPU here says which (got GPUs: compute capability 8.0, "
    assert done.exit_code == 1 and done.stderr.splitlines()[-1] == f"Error: {words}compute capability 12.0)"
