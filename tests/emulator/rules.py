"""The small kernels of kernels/rules.cu: how to run one, and what is said of those that break a rule."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from skimattn.codegen.parameter_block import aligned_block

from tests.emulator import EmulatedKernel, Range, compile_source, encode_map

SOURCE = Path(__file__).parent / "kernels" / "rules.cu"
THREADS, SMEM_BYTES = 256, 17408


@dataclass(frozen=True)
class Map:
    """A tensor map."""

    address: int
    dims: tuple[int, int, int, int]
    strides: tuple[int, int, int]
    box: tuple[int, int, int, int] = (64, 64, 1, 1)
    dtype: str = "bf16"


@cache
def names() -> list[str]:
    return re.findall(r"^KERNEL\((\w+)\)", SOURCE.read_text(), re.MULTILINE)


@cache
def rules() -> EmulatedKernel:
    cases = "\n".join(f"case {i}: return rules::{name}(params, shared);" for i, name in enumerate(names()))
    entry = f"""
extern "C" __global__ void rules_kernel(const __grid_constant__ skimattn::Params params) {{
  auto& shared = *reinterpret_cast<rules::Shared*>(skimattn::ptx::dynamic_smem());
  switch (params.batch) {{
{cases}
  }}
}}
"""
    return compile_source("rules_kernel", SOURCE.read_text() + entry)


def map_of(tensor: torch.Tensor, box: tuple[int, int, int, int] = (64, 64, 1, 1)) -> Map:
    """A map over [outer, heads, rows, columns]."""
    outer, heads, rows, columns = tensor.shape
    steps = tensor.stride()
    return Map(tensor.data_ptr(), (columns, rows, heads, outer), (2 * steps[2], 2 * steps[1], 2 * steps[0]), box)


class Bench:
    """Memory and maps for one run of a rule kernel."""

    def __init__(self, *, seed: int = 0) -> None:
        make = torch.Generator().manual_seed(seed)
        self.a = torch.randn(2, 3, 70, 72, generator=make).bfloat16()
        self.b = torch.randn(1, 1, 64, 64, generator=make).bfloat16()
        self.out = torch.full((1, 1, 80, 96), 7.0).bfloat16()
        self.words = torch.zeros(64 * 64, dtype=torch.float32)
        self.maps = {"tma_q": map_of(self.a), "tma_k": map_of(self.b), "tma_o": map_of(self.out)}

    def run(
        self,
        name: str,
        schedule: str = "late",
        seed: int = 0,
        *,
        timeout: float = 20.0,
        ranges: list[Range] | None = None,
        threads: int = THREADS,
        **scalars: int,
    ) -> None:
        block, owner = aligned_block()
        for field, spec in self.maps.items():
            getattr(block, field)[:] = encode_map(spec, field)
        block.batch, block.out = names().index(name), self.words.data_ptr()
        for field, value in scalars.items():
            setattr(block, field, value)
        rules().launch(block, 1, threads, SMEM_BYTES, schedule=schedule, seed=seed, timeout=timeout, ranges=ranges)
        del owner


BROKEN = {  # kernel -> (kind, what the message must say)
    "nobody_arrives": ("deadlock", r"CTA 0 thread 7 waits for mbarrier smem\+16384 parity 0 .*pending arrivals 1 of 2"),
    "expect_too_much": ("deadlock", r"thread 0 waits .* pending tx 16 bytes"),
    "expect_too_little": ("barrier", r"completed 8192 bytes, 16 more than it expects"),
    "expect_overflow": ("barrier", r"more than 2\^20-1"),
    "arrive_too_often": ("barrier", r"more arrivals than the 1"),
    "arrive_unseen": ("barrier", r"an arrival in phase 1, but nobody has waited for the phase before it"),
    "wrong_parity": ("deadlock", r"threads 0-255 wait for mbarrier smem\+16384 parity 1 \(phase 1"),
    "init_twice": ("barrier", r"thread 0 .*mbarrier_init on the live mbarrier smem\+16384"),
    "init_misaligned": ("alignment", r"8-byte aligned"),
    "uninitialised": ("barrier", r"no initialised mbarrier"),
    "init_without_fence": ("fence", r"thread 1 .*no fence_mbarrier_init"),
    "write_over_barrier": ("barrier", r"st_shared at smem\+16384 touches a live mbarrier"),
    "half_a_barrier": ("deadlock", r"threads 0-127 wait for named barrier 3 \(128 of 256"),
    "barrier_id": ("barrier", r"id in 0\.\.15 \(got 16\)"),
    "barrier_count": ("barrier", r"multiple of 32 threads.*got 48"),
    "barrier_mismatch": ("barrier", r"named barrier 1 used with (128|256) threads, but others of this phase said"),
    "barrier_twice": ("barrier", r"arrived twice in one phase of named barrier 1"),
    "one_lane_syncs": ("barrier", r"different warp-wide instructions"),
    "lanes_diverge": ("barrier", r"different warp-wide instructions"),
    "register_multiple": ("register", r"multiple of 8 in 24\.\.256 \(got 100\)"),
    "register_direction": ("register", r"setmaxnreg\.inc to 24, but the warp has 256"),
    "load_misaligned": ("alignment", r"aligned to 128 bytes.*smem\+1088"),
    "load_out_of_bounds": ("out-of-bounds", r"tma_load at smem\+16384, 8192 bytes, outside the 17408 bytes"),
    "read_early": ("early-read", r"ld_shared at smem\+0, where a tma_load has not landed"),
    "load_twice": ("early-overwrite", r"tma_load of tma_q at smem\+0, where another has not landed"),
    "load_and_leave": ("exit", r"the CTA ends before its tma_load of tma_q"),
    "store_without_fence": ("fence", r"tma_store reads smem\+\d+, written by thread \d+ without a fence_proxy_async"),
    "overwrite_store": ("early-overwrite", r"st_shared at smem\+0, which a tma_store still reads"),
    "store_uncommitted": ("exit", r"never committed"),
    "store_and_leave": ("exit", r"no tma_store_wait"),
    "mma_early": ("early-read", r"wgmma reads smem\+\d+, where a tma_load has not landed"),
    "mma_without_fence": ("fence", r"wgmma without a wgmma_fence"),
    "mma_without_second_fence": ("fence", r"wgmma without a wgmma_fence"),
    "mma_without_wait": ("exit", r"no wgmma_wait has retired"),
    "mma_without_commit": ("exit", r"no wgmma_wait has retired"),
    "mma_write_early": ("register", r"accumulator register 3 was written between"),
    "mma_change_a": ("register", r"A registers of a wgmma were written"),
    "mma_overwrite": ("early-overwrite", r"thread 130 .*st_shared at smem\+8192, which a wgmma still reads"),
    "mma_overwrite_by_load": ("early-overwrite", r"tma_load of tma_q at smem\+0, which a wgmma still reads"),
    "mma_unfenced_write": ("fence", r"wgmma reads smem\+\d+, written by thread \d+ without a fence_proxy_async"),
    "load_over_unfenced_write": (
        "fence",
        r"tma_load of tma_q at smem\+0, written by thread \d+ without a fence_proxy_",
    ),
    "descriptor_base_offset": ("descriptor", r"operand B: expected base offset 0.*\(got 2\)"),
    "descriptor_reserved": ("descriptor", r"reserved bits"),
    "descriptor_bounds": ("out-of-bounds", r"operand B reads smem\+\d+, outside the 17408 bytes"),
    "descriptor_start": ("descriptor", r"256 bytes into a swizzle atom"),
    "descriptor_differs": ("wgmma", r"disagree on a wgmma"),
    "three_warps": ("deadlock", r"threads 0-95 wait for wgmma_wait<0> \(96 of 128"),
    "wait_counts_differ": ("wgmma", r"wait with different counts"),
    "shared_misaligned": ("alignment", r"st_shared of 16 bytes at smem\+8"),
    "shared_out_of_bounds": ("out-of-bounds", r"ld_shared at smem\+17408, 4 bytes, outside"),
    "null_pointer": ("out-of-bounds", r"thread 3 .*memory fault at 0x8"),
    "read_without_barrier": ("race", r"thread 1 .*ld_shared at smem\+16408, written by thread 0: no barrier"),
    "overwrite_without_barrier": ("race", r"thread 0 .*st_shared at smem\+16408, read by thread 1: no barrier"),
    "write_twice": ("race", r"st_shared at smem\+16408, written by thread \d+: no barrier"),
    "arrive_without_warp_sync": ("race", r"ld_shared at smem\+\d+, written by thread \d+: no barrier"),
    "init_without_sync": ("race", r"thread 1 .*no barrier since thread 0 initialised it"),
    "mma_by_one_informed_warp": ("race", r"wgmma uses smem\+\d+, filled by a tma_load whose mbarrier smem\+16384"),
    "mma_fence_after_barrier": ("race", r"no barrier after its fence_proxy_async"),
    "load_after_one_warps_wait": ("race", r"tma_load of tma_q at smem\+0, read by a wgmma: no barrier since thread 1 "),
    "load_after_read": ("race", r"thread 0 .*tma_load of tma_q at smem\+0, read by thread 1: no barrier in between"),
    "load_after_fence": (
        "race",
        r"tma_load of tma_q at smem\+0, written by thread 1: no barrier after its fence",
    ),
    "overwrite_after_store_wait": ("race", r"st_shared at smem\+0, read by a tma_store: no barrier since thread 0"),
    "deep_recursion": ("out-of-bounds", r"thread 0 .*memory fault"),
}
