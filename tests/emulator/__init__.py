"""Runs the CUDA kernels on the CPU: the same rendered source, compiled against an emulator of the ``ptx::`` seam.

    kernel = compile_kernel(spec)
    run_plan(kernel, plan, schedule="late", seed=0, ranges=[(address, size), ...])

``include/`` shadows ``ptx.cuh``, ``smXX/ptx.cuh`` and the rendered operand lists; ``src/`` is the machine. Every CUDA
thread is a fibre of one OS thread, and all CTAs of the grid run together. A broken rule ends the launch with an
``EmulatorError`` that names the thread:

- deadlock, timeout: nobody can go on (with barrier, parity, what is missing); a kernel that never ends
- early-read, early-overwrite: of shared memory that a copy or a product still writes or reads
- race: an order that no barrier makes (vector clocks), even where this run took the right one
- fence: a wgmma_fence, fence_proxy_async or fence_mbarrier_init is missing
- register: accumulators or A registers touched between wgmma and wait; register counts of setmaxnreg
- barrier, wgmma: miscounted or uninitialised barriers, warps or warpgroups whose threads disagree
- descriptor, tensor-map, alignment, out-of-bounds, exit, resource: what the names say

Not modelled: caches, clusters, races on global memory, and the rounding inside a tensor core (sums are float32).
"""

from .build import EmulatorBuildError, HeaderPatch, compile_kernel, compile_source
from .run import SCHEDULES, EmulatedKernel, EmulatorError, Range, encode_map, run_plan

__all__ = [
    "SCHEDULES",
    "EmulatedKernel",
    "EmulatorBuildError",
    "EmulatorError",
    "HeaderPatch",
    "Range",
    "compile_kernel",
    "compile_source",
    "encode_map",
    "run_plan",
]
