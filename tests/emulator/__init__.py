"""Runs the CUDA kernels on the CPU: the same rendered source, compiled against an emulator of the ``ptx::`` seam.

    kernel = compile_kernel(spec)
    run_plan(kernel, plan, schedule="late", seed=0, ranges=[(address, size), ...])

``include/`` shadows ``ptx.cuh``, ``smXX/ptx.cuh`` and the rendered operand lists; ``src/`` is the machine. Every CUDA
thread is a fibre of one OS thread, and all CTAs of the grid run together. TMA, wgmma and tcgen05 take effect when the
schedule says: early (at issue), late (as late as the waits let them), random. A broken rule ends the launch with an
``EmulatorError`` that names the thread:

- deadlock, timeout: nobody can go on (with barrier, parity, what is missing); a kernel that never ends
- early-read, early-overwrite: of shared or tensor memory that a copy, a product, a tcgen05_ld or _st still uses
- race: an order that no barrier makes (vector clocks), even where this run took the right one
- fence: a wgmma_fence, fence_proxy_async, fence_mbarrier_init or tcgen05_fence is missing, or on the wrong side
- register: accumulators or A registers touched between wgmma and wait, registers of a tcgen05_ld before its wait;
  register counts of setmaxnreg
- barrier, wgmma: miscounted or uninitialised barriers, an arrival while nobody has waited for the phase before,
  warps or warpgroups whose threads disagree
- tensor-memory: allocations (sizes, order, who frees), columns outside them, lanes of another warp, columns that
  nobody has written, A inside D
- descriptor: bits of matrix and instruction descriptors that are reserved, illegal, or lead into a swizzle atom
- tensor-map, alignment, out-of-bounds, exit, resource: what the names say

wgmma and tcgen05.mma share one walk from descriptors to shared memory (``src/operand.cpp``): what a GPU with wgmma
confirms of it (``tests/gpu``) holds for both. Nothing else of tcgen05 has met hardware. These rules rest on the text
of the PTX ISA alone:

- encodings of the instruction descriptor and of the fields that SM100 adds to the matrix descriptor
- where rows of D and of A lie in tensor memory (M 128: lane = row; M 64: 16 of each warp's 32 lanes)
- asynchronous tcgen05 operations see another thread only through fence::before and fence::after, operands in shared
  memory included; a commit implies the first; each lane of a warp needs its own; dealloc is synchronous and needs none,
  but what another warp allocated may only be used after the second
- a commit covers the products of its own thread. Its arrival passes on what these were ordered after (what their
  thread had waited for at its last fence::after), and nothing that this thread did itself
- one warp allocates and frees; later allocations are not larger; nothing may be allocated after relinquishing

Assumed beyond the ISA: products of one thread execute in the order of issue, whatever they accumulate onto.
``strict_products=True`` takes this away: only products with the same accumulator, shape and kind are then ordered,
and any other overlap in tensor memory must wait for a commit.

Stricter than the ISA: the emulator refuses what it does not model, such as base offsets other than 0, negated or
sparse operands, elements other than bf16, fp16 and e4m3 of one type on both sides, and an accumulator that one thread
hands to another's products without a commit.

Not modelled: caches, clusters and pairs of CTAs, contention for tensor memory between CTAs, races on global memory,
tcgen05.cp and .shift, and the rounding inside a tensor core (sums are float32, one product after the other).
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
