"""The descriptors that the SM100 kernels hand to tcgen05, one by one, against the independent encoder.

For every geometry of the default set: the rendered kernel runs on the emulator with its products noted. What it said
of A, B, the accumulator and the instruction must be what the encoder says of the layout that its tables give.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import pytest
from skimattn.codegen import sets
from skimattn.codegen.spec import KernelSpec
from skimattn.codegen.tiles import tile_of
from skimattn.codegen.tiles.common import ELEMENT_BYTES, Tile, row_bytes
from skimattn.codegen.tiles.sm100_prefill import Sm100PrefillTile

from tests.emulator import compile_kernel
from tests.helpers.cases import Case, contents
from tests.helpers.check import check
from tests.helpers.descriptors import Product, instruction_descriptor, shared_descriptor
from tests.helpers.placement import Operand
from tests.helpers.run import run_case

MOST, TILES, ROW_BYTES = 4096, 3, 128
HEADERS = ("skimattn/sm100/prefill/mma_warp.cuh", "skimattn/sm100/decode/mma_warp.cuh")
NOTE = f"""
namespace skimattn::sm100::noted {{
extern "C" {{
__attribute__((visibility("default"))) uint64_t skim_noted[{MOST}][5];
__attribute__((visibility("default"))) int skim_noted_count = 0;
}}
inline void note(bool ts, uint32_t d, uint64_t a, uint64_t b, uint32_t instruction) {{
  const uint64_t start = ptx::smem_address(ptx::dynamic_smem()) >> 4;
  const uint64_t words[5] = {{ts, d, ts ? a : a - start, b - start, instruction}};
  if (skim_noted_count < {MOST}) memcpy(skim_noted[skim_noted_count++], words, sizeof words);
}}
template <class Element>
void ss(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction, bool accumulate) {{
  note(false, d, a, b, instruction);
  ptx::tcgen05_mma_ss<Element>(d, a, b, instruction, accumulate);
}}
template <class Element>
void ts(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction, bool accumulate) {{
  note(true, d, a, b, instruction);
  ptx::tcgen05_mma_ts<Element>(d, a, b, instruction, accumulate);
}}
}}  // namespace skimattn::sm100::noted

"""
SPECS = [
    spec
    for spec in sets.specs("default", {"mask": ["full"], "skip": ["dense"]}, archs=["sm100"])
    if spec.phase != "combine" and not spec.paged
]


@dataclass(frozen=True, order=True)
class Issued:
    """One product as the kernel said it; addresses count from the start of shared and of tensor memory."""

    from_tensor_memory: bool
    d: int
    a: int
    b: int
    instruction: int


def with_notes(header: str, text: str) -> str:
    """Let the kernel note its products."""
    if header not in HEADERS:
        return text
    for kind in ("ss", "ts"):
        assert text.count(f"ptx::tcgen05_mma_{kind}<Element>(") == 1
        text = text.replace(f"ptx::tcgen05_mma_{kind}<Element>(", f"noted::{kind}<Element>(")
    return text.replace("namespace skimattn::sm100 {", NOTE + "namespace skimattn::sm100 {", 1)


def issued(spec: KernelSpec) -> set[Issued]:
    """What a kernel issues for a whole CTA's rows and a few tiles of keys; the result is checked too."""
    kernel = compile_kernel(spec, source_override=with_notes)
    case = Case("operands", arch="sm100", dtype=spec.dtype, out_dtype=spec.out_dtype, mask="full", skip="dense")
    tile, phase = tile_of(spec), "decode" if spec.phase == "decode" else ""
    lens = ((tile.tile_m, tile.tile_n * TILES),)
    case = replace(case, phase=phase, head_dim=spec.head_dim, head_dim_v=spec.head_dim_v, heads_q=1, lens=lens)
    held = contents(case)
    check(run_case(case, "emulator", held, kernel=kernel)[0], held)
    library = kernel._library
    count = ctypes.c_int.in_dll(library, "skim_noted_count").value
    words = (ctypes.c_uint64 * 5 * MOST).in_dll(library, "skim_noted")
    assert 0 < count < MOST
    return {Issued(bool(words[i][0]), *(int(words[i][j]) for j in range(1, 5))) for i in range(count)}


def expected(spec: KernelSpec, tile: Sm100PrefillTile) -> set[Issued]:
    """What the tables and the encoder say: Q, O, K and V in this order, as panels of 128-byte rows."""
    size, groups = ELEMENT_BYTES[spec.dtype], tile.consumers
    depth, row = 32 // size, row_bytes(spec.head_dim, spec.dtype)
    row_v, row_o = row_bytes(spec.head_dim_v, spec.dtype), row_bytes(spec.head_dim_v, spec.out_dtype)
    k_at = tile.stages_q * tile.tile_m * row + (tile.o_rows * row_o if tile.separate_o else 0)
    v_at = k_at + tile.stages * tile.tile_n * row
    keys = Operand(k_major=True, swizzle=128, element_bytes=size, leading=16, stride=1024)
    values = replace(keys, k_major=False, leading=tile.tile_n * ROW_BYTES)
    scores = Product(spec.dtype, spec.dtype, 128, tile.tile_n)
    weighted = replace(scores, n=spec.head_dim_v, b_mn_major=True)
    found = set()
    for group in range(groups):
        for k in range(0, spec.head_dim, depth):
            panel, inside = divmod(k * size, ROW_BYTES)
            q = group * 128 * row + panel * 128 * ROW_BYTES + inside
            for slot in range(min(TILES, tile.stages)):
                at = k_at + slot * tile.tile_n * row + panel * tile.tile_n * ROW_BYTES + inside
                a, b = shared_descriptor(keys, q), shared_descriptor(keys, at)
                found.add(Issued(False, group * 128, a, b, instruction_descriptor(scores)))
        d = groups * 128 + group * spec.head_dim_v
        for k in range(0, tile.tile_n, depth):
            for slot in range(min(TILES, tile.stages_v)):
                b = shared_descriptor(values, v_at + slot * tile.tile_n * row_v + k * ROW_BYTES)
                p = group * 128 + 64 + k * size // 4
                found.add(Issued(True, d, p, b, instruction_descriptor(weighted)))
    return found


def expected_of_decode(spec: KernelSpec, tile: Tile) -> set[Issued]:
    """Of 64 packed rows: Q, K and V in this order; of tensor memory two tiles of S, over which P lies, and O."""
    size = ELEMENT_BYTES[spec.dtype]
    depth, row, row_v = 32 // size, row_bytes(spec.head_dim, spec.dtype), row_bytes(spec.head_dim_v, spec.dtype)
    k_at = 64 * row
    v_at = k_at + tile.stages * tile.tile_n * row
    keys = Operand(k_major=True, swizzle=128, element_bytes=size, leading=16, stride=1024)
    values = replace(keys, k_major=False, leading=tile.tile_n * ROW_BYTES)
    scores = Product(spec.dtype, spec.dtype, 64, tile.tile_n)
    weighted = replace(scores, n=spec.head_dim_v, b_mn_major=True)
    found = set()
    for index in range(TILES):
        s = index % 2 * tile.tile_n
        for k in range(0, spec.head_dim, depth):
            panel, inside = divmod(k * size, ROW_BYTES)
            at = k_at + index * tile.tile_n * row + panel * tile.tile_n * ROW_BYTES + inside
            a, b = shared_descriptor(keys, panel * 64 * ROW_BYTES + inside), shared_descriptor(keys, at)
            found.add(Issued(False, s, a, b, instruction_descriptor(scores)))
        for k in range(0, tile.tile_n, depth):
            b = shared_descriptor(values, v_at + index * tile.tile_n * row_v + k * ROW_BYTES)
            found.add(Issued(True, 2 * tile.tile_n, s + k * size // 4, b, instruction_descriptor(weighted)))
    return found


def test_every_geometry_is_here() -> None:
    def geometry(spec: KernelSpec) -> tuple[object, ...]:
        return spec.phase, spec.dtype, spec.head_dim, spec.head_dim_v

    every = {geometry(spec) for spec in sets.specs("default", archs=["sm100"]) if spec.phase != "combine"}
    assert {geometry(spec) for spec in SPECS} == every and len(every) == len(SPECS) == 21


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_products_are_described_as_the_encoder_does(spec: KernelSpec) -> None:
    tile = tile_of(spec)
    if isinstance(tile, Sm100PrefillTile):
        got, wanted = issued(spec), expected(spec, tile)
    else:
        got, wanted = issued(spec), expected_of_decode(spec, tile)
    assert got == wanted, (sorted(got - wanted)[:3], sorted(wanted - got)[:3], len(got), len(wanted))
