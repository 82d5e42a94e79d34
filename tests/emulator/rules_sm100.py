"""The small kernels of kernels/sm100: how to run one, and what is said of those that break a rule."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from skimattn.codegen.parameter_block import aligned_block

from tests.emulator import EmulatedKernel, compile_source, encode_map
from tests.emulator.rules import map_of

FOLDER = Path(__file__).parent / "kernels" / "sm100"
FILES = ("bench.cu", "attention.cu", "warps.cu", "products.cu")
THREADS, SMEM_BYTES = 256, 97 * 1024 + 1024
COLUMNS = 256  # of D, and of A in tensor memory behind it


@cache
def source() -> str:
    return "\n".join((FOLDER / name).read_text() for name in FILES)


@cache
def names() -> list[str]:
    return re.findall(r"^KERNEL\((\w+)\)", source(), re.MULTILINE)


@cache
def rules() -> EmulatedKernel:
    cases = "\n".join(f"case {i}: return rules::{name}(params, shared);" for i, name in enumerate(names()))
    entry = f"""
extern "C" __global__ void rules_sm100(const __grid_constant__ skimattn::Params params) {{
  auto& shared = *reinterpret_cast<rules::Shared*>(skimattn::ptx::dynamic_smem());
  switch (params.batch) {{
{cases}
  }}
}}
"""
    return compile_source("rules_sm100", source() + entry)


@dataclass
class Bench:
    """What a kernel is given: shared memory, tensor memory and the steps of its product."""

    image: np.ndarray = field(default_factory=lambda: np.zeros(96 * 1024, np.uint8))
    d: np.ndarray = field(default_factory=lambda: np.zeros((128, COLUMNS), np.float32))  # in and out
    a: np.ndarray | None = None  # [128, COLUMNS] uint32, for tensor memory
    instruction: int = 0
    second_instruction: int = 0
    steps: list[tuple[int, int]] = field(default_factory=list)
    accumulate: bool = False
    tile: torch.Tensor = field(default_factory=lambda: torch.ones(1, 1, 64, 64).bfloat16())  # what tma_q loads

    def run(
        self,
        name: str,
        schedule: str = "late",
        seed: int = 0,
        *,
        strict_products: bool = False,
        commit_each: bool = False,
        timeout: float = 30.0,
    ) -> None:
        control = np.zeros(6 + 4 * 16, np.uint32)
        control[:6] = (
            self.image.size // 4,
            len(self.steps),
            self.instruction,
            self.a is not None,
            self.accumulate,
            self.second_instruction,
        )
        control[6 : 6 + 4 * len(self.steps)] = np.array(self.steps, np.uint64).reshape(-1).view(np.uint32)
        block, owner = aligned_block()
        block.batch, block.out, block.heads_in_l2 = names().index(name), self.d.ctypes.data, commit_each
        block.tma_q[:] = encode_map(map_of(self.tile), "tma_q")
        block.page_table, block.custom_mask = control.ctypes.data, self.image.ctypes.data
        if self.a is not None:
            block.cu_seqlens_q = self.a.ctypes.data
        rules().launch(
            block,
            1,
            THREADS,
            SMEM_BYTES,
            schedule=schedule,
            seed=seed,
            timeout=timeout,
            strict_products=strict_products,
        )
        del owner


BROKEN = {  # kernel -> (kind, what the message must say)
    "load_not_waited_for": (
        "early-overwrite",
        r"tcgen05_st uses column \d+, which a tcgen05_ld of warp 0 still reads: no",
    ),
    "load_handed_over": (
        "race",
        r"tcgen05_mma uses column \d+, read by a tcgen05_ld of warp \d: no barrier since thread",
    ),
    "store_handed_over": ("race", r"tcgen05_mma uses column \d+, written by a tcgen05_st of warp \d: no barrier"),
    "no_fence_before": ("fence", r"no tcgen05_fence_before_thread_sync of thread \d+ between its wait and the barrier"),
    "fence_before_too_late": ("fence", r"no tcgen05_fence_before_thread_sync of thread \d+ between its wait"),
    "no_fence_after_by_issuer": ("fence", r"no tcgen05_fence_after_thread_sync of thread 128 since the barrier"),
    "no_fence_after_by_mover": ("fence", r"no tcgen05_fence_after_thread_sync of thread \d+ since it knows of the"),
    "scores_without_barrier": ("early-read", r"tcgen05_ld uses column \d+, which a tcgen05_mma of thread 128 still wr"),
    "scores_without_commit": ("early-read", r"which a tcgen05_mma writes: no tcgen05_commit of thread 128 covers it"),
    "commit_by_another": ("early-read", r"which a tcgen05_mma writes: no tcgen05_commit of thread 128 covers it"),
    "a_without_barrier": ("early-read", r"tcgen05_mma uses column \d+, which a tcgen05_mma of thread 128 still writes"),
    "alloc_columns": ("tensor-memory", r"power of two of columns in 32\.\.512 \(got 48\)"),
    "alloc_after_relinquish": ("tensor-memory", r"tcgen05_alloc after tcgen05_relinquish"),
    "alloc_grows": ("tensor-memory", r"64 columns after one of 32"),
    "alloc_too_much": ("tensor-memory", r"32 columns waits for ever"),
    "alloc_by_one_lane": ("barrier", r"of which lanes have exited"),
    "alloc_and_leave": ("exit", r"without a tcgen05_dealloc of the 32 columns at 480"),
    "alloc_address_raced": ("race", r"st_shared at smem\+\d+, read by thread 32: no barrier"),
    "use_before_barrier": ("race", r"tcgen05_st uses column 0: no barrier since warp 4 allocated it"),
    "use_without_fence": ("fence", r"no tcgen05_fence_after_thread_sync of thread 160 since warp 4 allocated it"),
    "dealloc_by_another": ("tensor-memory", r"by warp 1 of what warp 0 allocated"),
    "dealloc_part": ("tensor-memory", r"32 columns at [0-9a-f]+, which is no allocation"),
    "dealloc_in_flight": (
        "early-overwrite",
        r"tcgen05_dealloc uses column \d+, which a tcgen05_mma of thread 128 still",
    ),
    "dealloc_raced": ("race", r"tcgen05_dealloc uses column \d+, written by a tcgen05_st of warp \d: no barrier"),
    "lanes_of_another": ("tensor-memory", r"lane 0: warp 1 may only use lanes 32 to 63"),
    "columns_outside": ("tensor-memory", r"columns 511 to 512, which are not inside an allocation"),
    "no_allocation": ("tensor-memory", r"columns 0 to 0, which are not inside an allocation"),
    "address_differs": ("barrier", r"lanes of one warp disagree"),
    "load_unwritten": ("tensor-memory", r"reads column \d+, lanes 0 to 15, which nobody has written"),
    "store_and_leave": ("exit", r"tcgen05_st that no tcgen05_wait_st has ended"),
    "load_after_store": ("early-read", r"tcgen05_ld uses column \d+, which a tcgen05_st of warp 0 still writes"),
    "store_after_store": ("early-overwrite", r"which a tcgen05_st of warp 0 still writes: no tcgen05_wait_st"),
    "wait_names_others": ("exit", r"tcgen05_ld that no tcgen05_wait_ld has named"),
    "registers_twice": ("register", r"into registers of another"),
    "registers_written": ("register", r"thread 5 .*register 0 of a tcgen05_ld was written"),
    "d_outside": ("tensor-memory", r"D of a tcgen05_mma uses columns \d+ to \d+, which are not"),
    "d_at_a_lane": ("tensor-memory", r"expected lane 0 .*got D 0020"),
    "a_outside": ("tensor-memory", r"A of a tcgen05_mma uses columns"),
    "a_unwritten": ("tensor-memory", r"tcgen05_mma reads column \d+, lanes 0 to 15, which nobody"),
    "a_inside_d": ("tensor-memory", r"A at column \d+ lies in D"),
    "a_from_product": ("early-read", r"tcgen05_mma uses column \d+, which a tcgen05_mma of thread 128 still writes"),
    "accumulate_unwritten": ("tensor-memory", r"accumulates onto column \d+, lanes 0 to 15, which nobody"),
    "product_uncommitted": ("exit", r"tcgen05_mma that no tcgen05_commit covers"),
    "commit_and_leave": ("exit", r"CTA ends before the tcgen05 products and commits of thread 128 are done"),
    "commit_too_often": ("barrier", r"more arrivals than the 1 "),
    "two_issuers": ("early-overwrite", r"thread 129 .*which a tcgen05_mma of thread 128 still writes"),
    "five_issuers": ("resource", r"more than 4 threads"),
    "operand_overwritten": ("early-overwrite", r"st_shared at smem\+0, which a tcgen05_mma still reads"),
    "operand_overwritten_by_load": (
        "early-overwrite",
        r"tma_load of tma_q at smem\+\d+, which a tcgen05_mma still reads",
    ),
    "reading_not_passed_on": ("race", r"st_shared at smem\+\d+, read by thread 128: no barrier"),
    "operand_unfenced": ("fence", r"tcgen05_mma reads smem\+0, written by thread 0 without a fence_proxy_async"),
    "operand_fenced_after_barrier": ("race", r"tcgen05_mma reads smem\+0, .*no barrier after its fence_proxy_async"),
    "operand_without_fence_after": ("fence", r"tcgen05_mma reads smem\+0: no tcgen05_fence_after_thread_sync since"),
    "operand_in_flight": ("early-read", r"tcgen05_mma reads smem\+\d+, where a tma_load has not landed"),
    "operand_loaded_without_fence_after": ("fence", r"no tcgen05_fence_after_thread_sync since the barrier"),
    "d_overwritten_by_store": (
        "early-overwrite",
        r"tcgen05_st uses column \d+, which a tcgen05_mma of thread 128 still",
    ),
    "a_overwritten_by_store": ("early-overwrite", r"which a tcgen05_mma of thread 128 still reads"),
}
RACES = (  # those of them that are races once the product is done without anybody having waited for it
    "scores_without_barrier",
    "a_without_barrier",
    "a_from_product",
    "dealloc_in_flight",
    "two_issuers",
    "operand_overwritten",
    "operand_overwritten_by_load",
    "d_overwritten_by_store",
    "a_overwritten_by_store",
)
