"""Tiles: what each kernel takes of shared memory, tensor memory and registers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from skimattn.codegen.matrix import Accepted, all_specs, combine_spec, judge_values
from skimattn.codegen.sets import specs
from skimattn.codegen.tiles import tile_of
from skimattn.codegen.tiles.common import MAX_SMEM_BYTES, row_bytes
from skimattn.codegen.tiles.sm90_prefill import Sm90PrefillTile
from skimattn.codegen.tiles.sm100_prefill import Sm100PrefillTile


def test_tiles_are_looked_up_by_phase_too() -> None:
    prefill = all_specs()[0]
    assert [tile_of(replace(prefill, phase=phase)).tile_m for phase in ("prefill", "decode", "combine")] == [192, 64, 1]
    with pytest.raises(KeyError, match="append"):
        tile_of(replace(prefill, phase="append"))


def test_every_kernel_has_a_tile_that_fits() -> None:
    for spec in all_specs():
        tile = tile_of(spec)
        assert tile.smem_bytes(spec) <= MAX_SMEM_BYTES
        assert tile.ctas_per_sm * (tile.smem_bytes(spec) + 1024) <= 228 * 1024, spec.name
        at_launch = 65536 // (tile.ctas_per_sm * tile.threads) // 8 * 8
        assert sum(tile.registers) <= at_launch * tile.threads // 128 and tile.threads <= 1024, spec.name
        assert all(value % 8 == 0 and 24 <= value <= 256 for value in tile.registers), spec.name  # setmaxnreg's rule
        first, *others = sorted(set(tile.registers), reverse=True)  # who computes asks for more, the others give
        givers = others[1:] if spec.phase == "mla" else others  # there two warpgroups compute, each its way
        assert first >= at_launch >= max(givers, default=0), spec.name
        if spec.phase == "transpose":
            assert (tile.tile_m, tile.consumers) == (0, 0)  # there are no queries
        elif spec.phase == "combine":
            assert (tile.tile_m, tile.group_rows) == (1, 64)  # a CTA merges one row, of the groups of decode
        else:
            assert others and tile.tile_m == tile.consumers * tile.group_rows, spec.name


def test_a_tile_asks_for_no_more_registers_than_it_was_launched_with() -> None:
    tile = Sm90PrefillTile(128, 128, 2, 2, separate_o=True, producer_regs=24, consumer_regs=240)  # 504 = 3 x 168
    with pytest.raises(AssertionError, match="504"):
        replace(tile, producer_regs=32)
    blackwell = Sm100PrefillTile(256, 128, 2, 2, separate_o=True)  # 512 = 4 x 128
    assert sum(blackwell.registers) == 512
    with pytest.raises(AssertionError, match="512"):
        replace(blackwell, other_regs=64)


@pytest.mark.parametrize(
    ("columns", "dtype", "wanted"),
    [(64, "bf16", 128), (192, "fp16", 384), (64, "e4m3", 128), (128, "e4m3", 128), (192, "e4m3", 256)],
)
def test_rows_lie_in_whole_panels(columns: int, dtype: str, wanted: int) -> None:
    assert row_bytes(columns, dtype) == wanted


@pytest.mark.parametrize(
    ("fields", "smem", "tmem", "threads"),
    [
        # Q 64 KB, O 32, K 2 x 32, V 2 x 32, barriers and exchange 3: all there is. S and O: 2 x (128 + 128).
        ({"head_dim": 128}, 227, 512, 512),
        # Q 32, O 16, K 4 x 16, V 4 x 16; 2 x (128 + 64) columns are rounded up.
        ({"head_dim": 64}, 179, 512, 512),
        ({"head_dim": 192}, 227, 512, 512),  # Q and O 96, K 2 x 48, V 32
        ({"head_dim": 256}, 195, 512, 384),  # one group: Q and O 64, K 64, V 64
        ({"head_dim": 128, "dtype": "e4m3"}, 195, 512, 512),  # Q 32, O 32, K 4 x 16, V 4 x 16
        ({"head_dim": 64, "dtype": "e4m3"}, 179, 512, 512),  # half of every panel is empty
        ({"head_dim": 192, "dtype": "e4m3"}, 211, 512, 512),  # Q and O 2 x 32, K 3 x 32, V 3 x 16
        ({"head_dim": 256, "dtype": "e4m3"}, 227, 512, 384),  # Q 32, O 64, K 2 x 32, V 2 x 32
        # Decode: barriers 1, exchange 1. Q 8, K and V 6 x 16 each; two S of 128 and O of 64 columns, rounded up.
        ({"phase": "decode", "head_dim": 64}, 202, 512, 384),
        ({"phase": "decode", "head_dim": 128}, 210, 512, 384),  # Q 16, 3 x 32 each; 2 x 128 + 128
        ({"phase": "decode", "head_dim": 256}, 226, 512, 384),  # Q 32, 3 x 32 each; 2 x 64 + 256
        ({"phase": "decode", "head_dim": 64, "dtype": "e4m3"}, 202, 512, 384),  # half of every panel is empty
        ({"phase": "decode", "head_dim": 128, "dtype": "e4m3"}, 202, 512, 384),  # Q 8, 6 x 16 each
        ({"phase": "decode", "head_dim": 256, "dtype": "e4m3"}, 210, 512, 384),  # Q 16, 6 x 16 each
    ],
)
def test_memory_of_sm100_kernels_worked_out_by_hand(
    fields: dict[str, object], smem: int, tmem: int, threads: int
) -> None:
    verdict = judge_values({"arch": "sm100", **fields})
    assert isinstance(verdict, Accepted)
    spec = verdict.spec
    tile = tile_of(spec)
    assert (tile.smem_bytes(spec), tile.tmem_columns(spec), tile.threads) == (smem * 1024, tmem, threads)


@pytest.mark.parametrize(
    ("fields", "smem", "ctas"),
    [
        # Q and O in float32 16 KB, K 3 x 16, V 3 x 16, barriers 1: the most of which two fit 228 KB, 1 KB each besides
        ({"head_dim": 64}, 113, 2),
        ({"head_dim": 128}, 113, 2),  # Q and O 32, K 3 x 16, V 2 x 16
        ({"head_dim": 256}, 225, 1),  # Q 32, O 64, K 2 x 32, V 2 x 32
        ({"head_dim": 64, "phase": "combine"}, 5, 2),  # 17 branches of 66 floats: 4.4 KB
        ({"head_dim": 128, "phase": "combine"}, 9, 2),  # 17 x 130 floats
        ({"head_dim": 256, "phase": "combine"}, 18, 2),  # 17 x 258 floats
    ],
)
def test_memory_of_decode_kernels_worked_out_by_hand(fields: dict[str, object], smem: int, ctas: int) -> None:
    verdict = judge_values({"phase": "decode", **fields})
    assert isinstance(verdict, Accepted)
    tile = tile_of(verdict.spec)
    assert (tile.smem_bytes(verdict.spec), tile.ctas_per_sm, tile.threads) == (smem * 1024, ctas, 256)


def test_combining_splits_as_decode_does() -> None:
    """Or what one leaves in the workspace is not what the other looks for."""
    names = ("kLeafShift", "kMaxLeaves", "kTwigLeaves", "kBranchLeaves")
    for spec in specs("full", {"phase": ["decode"]}):
        combine = combine_spec(spec)
        ours, theirs = (tile_of(one).traits(one) for one in (spec, combine))
        # 8 tiles of 128 or of 64 keys to a leaf, at least; of SM100's 128 columns 4 of 128
        wanted = [2 if (spec.arch, spec.head_dim) == ("sm100", 128) else 3, 128, 4, 8]
        assert [ours[name] for name in names] == [theirs[name] for name in names] == wanted
        assert theirs["kMaxBranches"] == 17  # 129 leaves from the middle of a branch on


def test_two_groups_with_256_columns_do_not_fit_tensor_memory() -> None:
    verdict = judge_values({"arch": "sm100", "head_dim": 256})
    assert isinstance(verdict, Accepted)
    wide = Sm100PrefillTile(256, 128, stages=1, stages_v=1, separate_o=False)
    with pytest.raises(AssertionError, match="768"):
        wide.tmem_columns(verdict.spec)


def test_sm90_has_no_tensor_memory() -> None:
    assert {tile_of(spec).tmem_columns(spec) for spec in specs("full", archs=["sm90"])} == {0}


def test_o_that_does_not_fit_where_q_was_is_no_tile() -> None:
    spec = judge_values({"dtype": "e4m3", "head_dim": 256})
    assert isinstance(spec, Accepted)
    with pytest.raises(AssertionError, match="shares with Q"):
        replace(tile_of(spec.spec), separate_o=False).smem_bytes(spec.spec)
