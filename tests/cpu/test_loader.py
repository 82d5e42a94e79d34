"""Loading kernels: who waits for whom, how often a kernel is compiled, and what is said of a driver that is too old."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cuda.bindings import driver as real
from skimattn import BuildError, CudaError, Params, explain, launch
from skimattn._launch import loader
from skimattn._select import kernels
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.spec import KernelSpec

from tests.helpers.fake_driver import FakeDriver, install
from tests.helpers.fake_driver import small_call as call

SECONDS = 20.0  # a test that waits longer fails


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    monkeypatch.setattr(loader, "_locks", {})
    return install(monkeypatch)


class SlowCompiler:
    """Stands for ``kernels.obtain``: compiles one kernel for as long as the test wants, the others at once."""

    def __init__(self, slow: Params) -> None:
        self.slow = explain(slow).spec
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.compiled: list[KernelSpec] = []

    def __call__(self, spec: KernelSpec) -> tuple[Kernel, bytes]:
        self.compiled.append(spec)
        if spec == self.slow:
            self.begun.set()
            assert self.may_end.wait(SECONDS)
        return kernels.unbuilt_row(spec), spec.name.encode()


def test_only_those_wait_that_need_the_kernel(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = SlowCompiler(call(mask="causal"))
    monkeypatch.setattr(kernels, "obtain", compiler)
    with ThreadPoolExecutor(8) as threads:
        try:
            waiting = [threads.submit(launch, call(mask="causal")) for _ in range(4)]
            assert compiler.begun.wait(SECONDS)
            for ordinal in (0, 1):
                threads.submit(launch, call(ordinal, mask="full")).result(SECONDS)
            assert not any(future.done() for future in waiting)
        finally:
            compiler.may_end.set()
        for future in waiting:
            future.result(SECONDS)
    assert len(compiler.compiled) == 2 and len(fake.libraries) == 2  # each kernel once
    assert len(fake.launches) == 6


def test_what_could_not_be_compiled_is_tried_again(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    obtain = kernels.obtain

    def fails(spec: KernelSpec) -> tuple[Kernel, bytes]:
        raise BuildError("no compiler today")

    monkeypatch.setattr(kernels, "obtain", fails)
    for _ in range(2):
        with pytest.raises(BuildError, match="no compiler today"):
            launch(call())
    monkeypatch.setattr(kernels, "obtain", obtain)
    launch(call())
    assert len(fake.launches) == 1


@pytest.mark.parametrize("function", ["cuLibraryLoadData", "cuFuncLoad"])
@pytest.mark.parametrize("name", ["INVALID_IMAGE", "NO_BINARY_FOR_GPU", "UNSUPPORTED_PTX_VERSION"])
def test_a_driver_that_is_too_old_is_told_with_both_versions(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, function: str, name: str
) -> None:
    monkeypatch.setattr(
        kernels, "obtain", lambda spec: (replace(kernels.unbuilt_row(spec), compiler="nvrtc 13.0.88"), b"")
    )
    fake.version = 12040
    fake.failing = {function: getattr(real.CUresult, f"CUDA_ERROR_{name}")}
    text = (
        rf"^{function}: CUDA_ERROR_{name} \(.*\); skim_sm90_\w+ was compiled by nvrtc 13\.0\.88, "
        r"and the driver is of CUDA 12\.4: too old for it\. Update the driver, or replace the compiler"
    )
    with pytest.raises(CudaError, match=text):
        launch(call())


@pytest.mark.parametrize(
    ("version", "name", "compiler"),
    [
        (13000, "CUDA_ERROR_INVALID_IMAGE", "nvrtc 13.0.88"),
        (12040, "CUDA_ERROR_OUT_OF_MEMORY", "nvrtc 13.0.88"),
        (12090, "CUDA_ERROR_INVALID_IMAGE", "nvrtc 12.9.86 lineinfo"),
    ],
)
def test_other_errors_are_left_as_they_are(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, version: int, name: str, compiler: str
) -> None:
    monkeypatch.setattr(kernels, "obtain", lambda spec: (replace(kernels.unbuilt_row(spec), compiler=compiler), b""))
    fake.version = version
    fake.failing = {"cuLibraryLoadData": getattr(real.CUresult, name)}
    with pytest.raises(CudaError, match=rf"^cuLibraryLoadData: {name} \(as the test wished, code \d+\)$"):
        launch(call())
