"""Compiles and launches a piece of CUDA outside the runtime: for probes of what the hardware does."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from skimattn._cuda import driver
from skimattn.codegen import emit
from skimattn.codegen.toolchain import compile_unit, find_toolchain
from skimattn.codegen.unit import Headers, from_folders


def compile_cubin(name: str, source: str, arch: str) -> bytes:
    """``source`` through NVRTC for ``arch`` (``sm90``, ``sm100``), with the headers of the kernels."""
    rendered = {f"skimattn/{header}": emit.render_header(header) for header in emit.HEADERS}
    static = from_folders([emit.templates_root() / "include"])
    headers = Headers(lambda header: rendered.get(header) or static(header))
    return compile_unit(headers.unit(name, arch, source), find_toolchain("nvrtc"))[0]


class Program:
    """A loaded cubin on torch's current CUDA device."""

    def __init__(self, cubin: bytes) -> None:
        torch.zeros(1, device="cuda")  # torch makes the context
        self._module = driver.call("cuModuleLoadData", cubin)

    def launch(self, entry: str, grid: int, threads: int, smem_bytes: int, *arguments: torch.Tensor | bytes) -> None:
        """Launch on the default stream and wait. Tensors are passed by address, bytes as a struct by value."""
        function = driver.call("cuModuleGetFunction", self._module, entry.encode())
        attribute = driver.bindings().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driver.call("cuFuncSetAttribute", function, attribute, smem_bytes)
        held: list[Any] = [
            ctypes.create_string_buffer(item, len(item))
            if isinstance(item, bytes)
            else ctypes.c_void_p(item.data_ptr())
            for item in arguments
        ]
        argv = (ctypes.c_void_p * len(held))(*(ctypes.addressof(item) for item in held))
        driver.call("cuLaunchKernel", function, grid, 1, 1, threads, 1, 1, smem_bytes, 0, ctypes.addressof(argv), 0)
        torch.cuda.synchronize()
