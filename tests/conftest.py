"""Marks what needs a GPU and skips it, saying so, where there is none."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest

# Read by torch when it is imported, here and in processes that tests start. On the small tensors of tests more threads
# gain nothing, and where they share cores with something else they are 5 to 50 times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_GPU_FOLDER = Path(__file__).parent / "gpu"


@cache
def missing_gpu() -> str:
    """Why GPU tests cannot run here; empty if they can."""
    from cuda.bindings import driver

    try:
        (status,) = driver.cuInit(0)
    except RuntimeError as error:  # no driver library on this machine
        return str(error).splitlines()[0]
    if status != driver.CUresult.CUDA_SUCCESS:
        return f"cuInit: {status.name}"
    status, count = driver.cuDeviceGetCount()
    return _without_kernels() if count else "the driver sees no GPU"


def _without_kernels() -> str:
    """Why no kernel runs on the first GPU; empty if there are kernels for it."""
    from cuda.bindings import driver
    from skimattn._select.dispatch import BY_CAPABILITY

    names = driver.CUdevice_attribute
    wanted = (names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
    major, minor = (driver.cuDeviceGetAttribute(name, 0)[1] for name in wanted)
    return "" if (major, minor) in BY_CAPABILITY else f"no kernels for compute capability {major}.{minor}"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage in what is collected: it is kept to the end, and a search goes through all of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test under ``tests/gpu`` the ``gpu`` marker, and skip those with it if there is no GPU."""
    for item in items:
        if _GPU_FOLDER in item.path.parents:
            item.add_marker(pytest.mark.gpu)
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and (reason := missing_gpu()):
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with one line that says how many tests did not run for want of a GPU."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "gpu" in report.keywords]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} GPU TESTS DID NOT RUN: {missing_gpu()}", yellow=True, bold=True)
