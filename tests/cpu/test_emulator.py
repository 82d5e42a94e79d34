"""The emulator itself: small kernels that keep or break one rule each (tests/emulator/kernels/rules.cu)."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimattn.codegen.params import aligned_block

from tests.emulator import SCHEDULES, EmulatedKernel, EmulatorBuildError, EmulatorError, compile_source, encode_map
from tests.emulator.run import Range

SOURCE = Path(__file__).parents[1] / "emulator" / "kernels" / "rules.cu"
THREADS, SMEM_BYTES = 256, 17408
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Map:
    address: int
    dims: tuple[int, int, int, int]
    strides: tuple[int, int, int]
    box: tuple[int, int] = (64, 64)


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


def map_of(tensor: torch.Tensor, box: tuple[int, int] = (64, 64)) -> Map:
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


every_schedule = pytest.mark.parametrize(("schedule", "seed"), [(s, i) for s in SCHEDULES for i in (0, 1, 2)])


@every_schedule
@pytest.mark.parametrize("at", [(0, 0, 0, 0), (8, 20, 2, 1), (-8, -5, 1, 0), (64, 64, 0, 0), (0, 0, 3, 0)])
def test_copy(at: tuple[int, int, int, int], schedule: str, seed: int) -> None:
    bench = Bench()
    column, row, head, outer = at
    bench.run(
        "copy", schedule, seed, window_left=column, len_q=row, heads_q=head, heads_kv=outer, len_k=20, window_right=48
    )
    padded = torch.zeros(2, 4, 300, 300).bfloat16()
    padded[:, :3, 100:170, 100:172] = bench.a
    box = padded[outer, head, 100 + row : 164 + row, 100 + column : 164 + column]
    expected = torch.full((80, 96), 7.0).bfloat16()
    expected[20:80, 48:96] = box[:60, :48]
    assert torch.equal(bench.out[0, 0], expected)


@every_schedule
def test_product(schedule: str, seed: int) -> None:
    bench = Bench()
    bench.run("product", schedule, seed)
    expected = bench.a[0, 0, :64, :64].float() @ bench.b[0, 0].float().T
    assert torch.allclose(bench.words.view(64, 64), expected, rtol=1e-5, atol=1e-4)


@every_schedule
def test_product_registers(schedule: str, seed: int) -> None:
    bench = Bench()
    bench.run("product_registers", schedule, seed)
    a = torch.arange(64)[:, None] - torch.arange(64)[None, :]
    expected = 1.0 + a.bfloat16().float() @ bench.b[0, 0].float()
    assert torch.allclose(bench.words.view(64, 64), expected, rtol=1e-4, atol=1e-2)


@every_schedule
def test_warp_exchange(schedule: str, seed: int) -> None:
    bench = Bench()
    bench.run("warp_exchange", schedule, seed)
    got = bench.words.view(torch.int32)[: 256 * 8].view(256, 8).numpy()
    thread = np.arange(256)
    lane, warp = thread % 32, thread // 32
    every_third = sum(1 << i for i in range(0, 32, 3))
    assert (got[:, 0] == warp * 32 + 5).all()
    assert (got[:, 1] == np.where(lane >= 3, thread - 3, thread)).all()
    assert (got[:, 2] == (thread ^ 9)).all()
    assert (got[:, 3] == every_third).all()
    assert (got[:, 4] == (warp == 1)).all()
    assert (got[:, 5] == 1).all()
    assert (got[:, 6] == (thread < 128)).all()
    assert (got[:, 7] == lane ^ 1).all()


@every_schedule
def test_hand_over(schedule: str, seed: int) -> None:
    bench = Bench()
    bench.run("hand_over", schedule, seed)
    assert bench.words.view(torch.int32)[:128].tolist() == [i % 64 * 3 for i in range(128)]


@every_schedule
def test_store_written(schedule: str, seed: int) -> None:
    bench = Bench()
    bench.run("store_written", schedule, seed)
    assert (bench.out[0, 0, :64, :64] == 1).all() and (bench.out[0, 0, 64:] == 7).all()


def test_registers() -> None:
    Bench().run("registers")
    with pytest.raises(EmulatorError, match=r"register: .* want 69632 registers, expected at most 65536"):
        Bench().run("register_sum", threads=512)


@every_schedule
def test_same_value_from_many_threads(schedule: str, seed: int) -> None:
    bench = Bench()
    bench.run("same_value", schedule, seed)
    assert (bench.words.view(torch.int32)[:128] == 5).all()


BROKEN = {  # kernel -> (kind, what the message must say)
    "nobody_arrives": ("deadlock", r"CTA 0 thread 7 waits for mbarrier smem\+16384 parity 0 .*pending arrivals 1 of 2"),
    "expect_too_much": ("deadlock", r"thread 0 waits .* pending tx 16 bytes"),
    "expect_too_little": ("barrier", r"completed 8192 bytes, 16 more than it expects"),
    "expect_overflow": ("barrier", r"more than 2\^20-1"),
    "arrive_too_often": ("barrier", r"more arrivals than the 1"),
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
    "load_misaligned": ("alignment", r"aligned to 1024 bytes.*smem\+128"),
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
    "descriptor_layout": ("descriptor", r"operand B: expected layout type 1, .*\(got 0\)"),
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
    "overwrite_after_store_wait": ("race", r"st_shared at smem\+0, read by a tma_store: no barrier since thread 0"),
    "deep_recursion": ("out-of-bounds", r"thread 0 .*memory fault"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rule_is_reported(name: str) -> None:
    kind, message = BROKEN[name]
    with pytest.raises(EmulatorError) as caught:
        Bench().run(name, "early" if kind == "race" else "late")
    assert caught.value.kind == kind, caught.value
    assert re.search(message, caught.value.message, re.S), caught.value


def test_every_rule_kernel_is_used() -> None:
    right = {"copy", "product", "product_registers", "warp_exchange", "hand_over", "registers", "store_written"}
    right |= {"same_value"}
    own_test = {"mma_read_early", "global_out_of_bounds", "endless_loop", "register_sum"}
    assert set(names()) == right | own_test | set(BROKEN)


@pytest.mark.parametrize("schedule", ["late", "random"])
def test_result_read_too_early_is_nan(schedule: str) -> None:
    bench = Bench()
    bench.run("mma_read_early", schedule)
    assert bench.words.isnan().all()


def test_global_ranges() -> None:
    bench = Bench()
    words = (bench.words.data_ptr(), bench.words.nbytes)
    bench.run("global_out_of_bounds", ranges=[words], len_q=4095)
    with pytest.raises(EmulatorError, match=r"out-of-bounds.*global store of 4 bytes") as caught:
        bench.run("global_out_of_bounds", ranges=[words], len_q=4096)
    assert caught.value.kind == "out-of-bounds"
    with pytest.raises(EmulatorError, match="tma_load of 16 bytes"):
        bench.run("copy", ranges=[words])


def test_time_limit() -> None:
    start = time.monotonic()
    with pytest.raises(EmulatorError, match=r"timeout: CTA 0 thread 0 .*loops"):
        Bench().run("endless_loop", timeout=0.2)
    assert time.monotonic() - start < 5
    Bench().run("registers", timeout=5)


BAD_MAPS = {
    "box wider than the swizzle": ({"box": (72, 64)}, r"144 bytes wide"),
    "box too tall": ({"box": (64, 257)}, r"expected 1\.\.256 \(got 257\)"),
    "stride": ({"strides": (136, 10080, 30240)}, r"stride 1 .*multiple of 16"),
    "empty": ({"dims": (72, 0, 3, 2)}, r"dimension 1 .* empty"),
}


@pytest.mark.parametrize("name", BAD_MAPS)
def test_bad_map(name: str) -> None:
    changes, message = BAD_MAPS[name]
    bench = Bench()
    bench.maps["tma_q"] = replace(bench.maps["tma_q"], **changes)  # type: ignore[arg-type]
    with pytest.raises(EmulatorError, match=message) as caught:
        bench.run("load_and_leave")
    assert caught.value.kind == "tensor-map"


def test_misaligned_map_address() -> None:
    bench = Bench()
    bench.maps["tma_q"] = replace(bench.maps["tma_q"], address=bench.maps["tma_q"].address + 2)
    with pytest.raises(EmulatorError, match="address of tma_q is not a multiple of 16"):
        bench.run("load_and_leave")


def test_map_that_was_never_encoded() -> None:
    bench = Bench()
    del bench.maps["tma_q"]
    with pytest.raises(EmulatorError, match="was not encoded"):
        bench.run("load_and_leave")


def test_too_much_shared_memory() -> None:
    block, owner = aligned_block()
    with pytest.raises(EmulatorError, match="at most 232448 bytes"):
        rules().launch(block, 1, THREADS, 232449)
    del owner


def test_compiler_error_is_shown() -> None:
    with pytest.raises(EmulatorBuildError, match="no_such_thing"):
        compile_source("bad_kernel", "int x = no_such_thing;\n")


def test_16_bit_formats() -> None:
    source = """
#include <skimattn/sm90/ptx.cuh>
extern "C" void formats(skimattn::Params p) {
  if (skimattn::ptx::thread_index() != 0) return;
  const auto* in = static_cast<const float*>(p.sinks);
  auto* out = static_cast<uint32_t*>(p.out);
  for (int i = 0; i < p.len_q; ++i) {
    out[2 * i] = skimattn::ptx::pack(skimattn::ElementBf16{}, in[i], 0.0f);
    out[2 * i + 1] = skimattn::ptx::pack(skimattn::ElementFp16{}, in[i], 0.0f);
  }
}
"""
    kernel = compile_source("formats", source)
    bits = np.random.default_rng(0).integers(0, 1 << 32, 20000, dtype=np.uint64).astype(np.uint32)
    halfway = np.arange(0, 1 << 16, dtype=np.uint32) * 8192 + 4096 + (112 << 23)  # between two fp16 numbers
    specials = np.array([0.0, -0.0, 65504, 65519.99, 65520, 1e-8, 2.0**-24, 2.0**-25, 6e-5, np.inf, -np.inf, np.nan])
    values = np.concatenate([bits.view(np.float32), halfway.view(np.float32), specials.astype(np.float32)])
    tensor, out = torch.from_numpy(values), torch.zeros(len(values) * 2, dtype=torch.int32)
    block, owner = aligned_block()
    block.sinks, block.out, block.len_q = tensor.data_ptr(), out.data_ptr(), len(values)
    kernel.launch(block, 1, 128, 1024)
    del owner
    got = out.view(torch.int16).view(-1, 4)[:, ::2]
    for column, dtype in ((0, torch.bfloat16), (1, torch.float16)):
        result, expected = got[:, column].contiguous().view(dtype), tensor.to(dtype)
        same = (result.view(torch.int16) == expected.view(torch.int16)) | (result.isnan() & expected.isnan())
        assert same.all(), tensor[~same][:5]
