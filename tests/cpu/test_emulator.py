"""The emulator itself: small kernels that keep or break one rule each (tests/emulator/kernels/rules.cu)."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimattn.codegen.parameter_block import aligned_block

from tests.emulator import SCHEDULES, EmulatorBuildError, EmulatorError, compile_source
from tests.emulator.rules import BROKEN, THREADS, Bench, names, rules

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
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 32])
def test_boxes_that_start_anywhere_in_the_swizzle(rows: int, schedule: str, seed: int) -> None:
    bench = Bench()
    bench.maps["tma_q"] = replace(bench.maps["tma_q"], box=(64, rows, 1, 1))
    bench.run("copy_in_pieces", schedule, seed, len_k=rows)
    assert torch.equal(bench.out[0, 0, :64, :64], bench.a[0, 0, :64, :64])


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
def test_product_registers_k_major(schedule: str, seed: int) -> None:
    bench = Bench()
    bench.run("product_registers_k_major", schedule, seed)
    a = np.arange(64)[:, None] - np.arange(64)[None, :]  # exact in bf16
    expected = a @ bench.b[0, 0].double().numpy().T
    np.testing.assert_allclose(bench.words.view(64, 64).numpy(), expected, rtol=1e-4, atol=1e-2)


@every_schedule
def test_warp_exchange(schedule: str, seed: int) -> None:
    bench = Bench()
    bench.run("warp_exchange", schedule, seed)
    got = bench.words.view(torch.int32)[: 256 * 5].view(256, 5).numpy()
    thread = np.arange(256)
    lane, warp = thread % 32, thread // 32
    every_third = sum(1 << i for i in range(0, 32, 3))
    assert (got[:, 0] == warp * 32 + 5).all()
    assert (got[:, 1] == 31 - 100 * warp).all()
    assert (got[:, 2] == every_third).all()
    assert (got[:, 3] == (warp == 1)).all()
    assert (got[:, 4] == lane ^ 1).all()


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
    # 168 registers x 384 threads, not the 65536 of an SM: 32 + 240 + 240 waited for ever on an H200.
    with pytest.raises(EmulatorError, match=r"register: .* want 65536 registers, expected at most the 64512 "):
        Bench().run("register_sum", threads=384, len_q=32)
    Bench().run("register_sum", threads=384, len_q=24)


@every_schedule
def test_same_value_from_many_threads(schedule: str, seed: int) -> None:
    bench = Bench()
    bench.run("same_value", schedule, seed)
    assert (bench.words.view(torch.int32)[:128] == 5).all()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rule_is_reported(name: str) -> None:
    kind, message = BROKEN[name]
    with pytest.raises(EmulatorError) as caught:
        Bench().run(name, "early" if kind == "race" else "late")
    assert caught.value.kind == kind, caught.value
    assert re.search(message, caught.value.message, re.S), caught.value


def test_every_rule_kernel_is_used() -> None:
    right = {"copy", "product", "product_registers", "product_registers_k_major", "warp_exchange", "hand_over"}
    right |= {"product_of_layout", "product_of_bytes"}  # test_emulator_operands.py
    right |= {"registers", "store_written", "same_value", "copy_in_pieces"}
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
    "box wider than the swizzle": ({"box": (72, 64, 1, 1)}, r"144 bytes wide"),
    "box too tall": ({"box": (64, 257, 1, 1)}, r"expected 1\.\.256 \(got 257\)"),
    "box without requests": ({"box": (64, 64, 1, 0)}, r"expected 1\.\.256 \(got 0\)"),
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
