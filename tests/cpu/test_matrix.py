"""Which kernels exist, and how the matrix explains itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from skimattn.codegen import cli, matrix, ptxas
from skimattn.codegen.arch import ARCHS
from skimattn.codegen.features import BY_NAME, FEATURES
from skimattn.codegen.matrix import Accepted, Rejected, all_specs, explain, specs
from skimattn.codegen.spec import KernelSpec
from skimattn.codegen.tiles import smem_bytes, tile_of, tmem_columns
from skimattn.codegen.tiles.common import MAX_SMEM_BYTES, row_bytes
from skimattn.codegen.tiles.sm90_prefill import Sm90PrefillTile
from skimattn.codegen.tiles.sm100_prefill import Sm100PrefillTile

GOLDEN = Path(__file__).parent / "golden" / "variants.txt"


def golden_text() -> str:
    """One line per kernel: its name and the smallest set that holds it."""
    smallest = {spec.name: name for name in reversed(matrix.SETS) for spec in specs(name)}
    return "".join(f"{spec.name} {smallest[spec.name]}\n" for spec in all_specs())


def test_the_kernels_are_those_on_the_golden_list() -> None:
    assert golden_text() == GOLDEN.read_text(), "rewrite it with: python -m tests.cpu.test_matrix"


def test_names_are_unique() -> None:
    names = [spec.name for spec in all_specs()]
    assert len(set(names)) == len(names)


def test_sets_are_nested() -> None:
    smoke, default, full = (set(specs(name)) for name in matrix.SETS)
    assert smoke < default < full == set(all_specs())


def test_smoke_meets_every_value_of_the_main_features() -> None:
    for name in ("arch", "dtype", "head_dim", "skip", "paged"):
        assert {getattr(spec, name) for spec in specs("smoke")} == set(BY_NAME[name].values), name
    for arch in ARCHS:
        assert {spec.head_dim for spec in specs("smoke", archs=[arch])} == set(BY_NAME["head_dim"].values), arch


def test_every_architecture_of_the_table_is_described() -> None:
    assert tuple(ARCHS) == BY_NAME["arch"].values
    assert [arch.target for arch in ARCHS.values()] == ["90a", "100a"]
    assert len({arch.capability for arch in ARCHS.values()}) == len(ARCHS)


def test_sm100_has_what_sm90_has_and_8_bit_input_besides() -> None:
    def without_arch(spec: KernelSpec) -> KernelSpec:
        return replace(spec, arch="sm90")

    for name in ("default", "full"):
        hopper, blackwell = (specs(name, archs=[arch]) for arch in ARCHS)
        assert {without_arch(spec) for spec in blackwell if spec.dtype != "e4m3"} == set(hopper)
    fp8 = specs("full", {"dtype": ["e4m3"]})
    assert {spec.arch for spec in fp8} == {"sm100"}
    assert {spec.out_dtype for spec in fp8} == {"bf16", "fp16"}
    assert {spec.out_dtype for spec in specs("default", {"dtype": ["e4m3"]})} == {"bf16"}
    shapes = {replace(spec, dtype="bf16", out_dtype="bf16") for spec in fp8}
    assert shapes == set(specs("full", {"dtype": ["bf16"]}, ["sm100"]))


def test_every_kernel_has_a_tile_that_fits() -> None:
    for spec in all_specs():
        tile = tile_of(spec)
        assert smem_bytes(spec) <= MAX_SMEM_BYTES
        registers = sum(tile.registers)
        assert registers <= 65536 // tile.threads // 8 * 8 * tile.threads // 128 and tile.threads <= 1024, spec.name
        assert all(value % 8 == 0 and 24 <= value <= 256 for value in tile.registers), spec.name  # setmaxnreg's rule
        at_launch = 65536 // tile.threads // 8 * 8
        first, *others = sorted(set(tile.registers), reverse=True)  # who computes asks for more, the others give
        assert first >= at_launch >= max(others), spec.name
        assert tile.tile_m == tile.consumers * tile.group_rows, spec.name


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
    ],
)
def test_memory_of_sm100_kernels_worked_out_by_hand(
    fields: dict[str, object], smem: int, tmem: int, threads: int
) -> None:
    verdict = explain({"arch": "sm100", **fields})
    assert isinstance(verdict, Accepted)
    spec = verdict.spec
    assert (smem_bytes(spec), tmem_columns(spec), tile_of(spec).threads) == (smem * 1024, tmem, threads)


def test_two_groups_with_256_columns_do_not_fit_tensor_memory() -> None:
    verdict = explain({"arch": "sm100", "head_dim": 256})
    assert isinstance(verdict, Accepted)
    wide = Sm100PrefillTile(256, 128, stages=1, stages_v=1, separate_o=False)
    with pytest.raises(AssertionError, match="768"):
        wide.tmem_columns(verdict.spec)


def test_sm90_has_no_tensor_memory() -> None:
    assert {tmem_columns(spec) for spec in specs("full", archs=["sm90"])} == {0}


def test_o_that_does_not_fit_where_q_was_is_no_tile() -> None:
    spec = explain({"dtype": "e4m3", "head_dim": 256})
    assert isinstance(spec, Accepted)
    with pytest.raises(AssertionError, match="shares with Q"):
        replace(tile_of(spec.spec), separate_o=False).smem_bytes(spec.spec)


def test_only_filters_by_every_field() -> None:
    chosen = specs("default", {"dtype": ("bf16", "fp16"), "head_dim": (128,), "skip": ("stat",)})
    assert chosen
    assert {(spec.head_dim, spec.skip) for spec in chosen} == {(128, "stat")}
    of_both = [spec for spec in specs("default") if (spec.head_dim, spec.skip) == (128, "stat")]
    assert chosen == tuple(spec for spec in of_both if spec.dtype != "e4m3") != tuple(of_both)


def test_only_and_architectures_both_hold() -> None:
    both = specs("smoke", archs=["sm90", "sm100"])
    assert both == specs("smoke") and {spec.arch for spec in both} == {"sm90", "sm100"}
    assert specs("smoke", {"arch": ["sm100"]}, ["sm90", "sm100"]) == specs("smoke", archs=["sm100"])
    assert specs("smoke", {"arch": ["sm100"]}, ["sm90"]) == ()


def test_unknown_sets_and_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="set: expected one of smoke, default, full"):
        specs("everything")
    with pytest.raises(ValueError, match="unknown field 'colour'"):
        specs("default", {"colour": ("red",)})
    with pytest.raises(ValueError, match="unknown field 'colour'"):
        explain({"colour": "red"})


def test_explain_accepts_exactly_the_matrix() -> None:
    for spec in all_specs():
        assert explain(spec.values) == Accepted(spec)


@pytest.mark.parametrize(
    ("values", "rule", "words"),
    [
        ({"out_dtype": "fp16"}, "out-dtype", "convert the output"),
        ({"head_dim": 64, "head_dim_v": 128}, "head-dims", "(192, 128)"),
        ({"head_dim": 96}, "head_dim-values", "next larger kernel"),
        ({"head_dim_v": 80}, "head_dim_v-values", "next larger kernel"),
        ({"phase": "decode"}, "phase-values", "phase: expected one of prefill (got 'decode')"),
        ({"arch": "sm120"}, "arch-values", "sm120 has no kernel specs yet (specs exist for sm90, sm100)"),
        ({"dtype": "fp8"}, "dtype-values", "expected one of bf16, fp16, e4m3 (got 'fp8')"),
        ({"dtype": "e4m3", "arch": "sm90"}, "fp8-arch", "V is transposed first"),
        ({"dtype": "e4m3", "out_dtype": "e4m3"}, "out_dtype-values", "expected one of bf16, fp16"),
        ({"arch": "sm100", "out_dtype": "fp16"}, "out-dtype", "16-bit kernels write the type they read"),
        ({"mask": "banded"}, "mask-values", "expected one of full, causal"),
        ({"paged": "maybe"}, "paged-values", "expected one of false, true"),
        ({"paged": 1}, "paged-values", "expected one of false, true"),
        ({"head_dim": True}, "head_dim-values", "head_dim"),
    ],
)
def test_rejections_name_rule_and_reason(values: dict[str, object], rule: str, words: str) -> None:
    verdict = explain(values)
    assert isinstance(verdict, Rejected)
    assert verdict.rule == rule
    assert words in verdict.reason


def test_explain_fills_in_what_is_left_open() -> None:
    verdict = explain({"head_dim": "192", "mask": "causal", "paged": "true"})
    assert isinstance(verdict, Accepted)
    assert verdict.spec.name == "skim_sm90_prefill_bf16_d192v128_causal_dense_paged"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"dtype": "e4m3"}, "skim_sm100_prefill_e4m3_out_bf16_d128_full_dense"),
        ({"dtype": "e4m3", "out_dtype": "fp16"}, "skim_sm100_prefill_e4m3_out_fp16_d128_full_dense"),
        ({"arch": "sm100"}, "skim_sm100_prefill_bf16_d128_full_dense"),
    ],
)
def test_8_bit_input_means_the_architecture_that_has_it(fields: dict[str, object], name: str) -> None:
    verdict = explain(fields)
    assert isinstance(verdict, Accepted) and verdict.spec.name == name


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_every_value_can_be_spelled(feature: object) -> None:
    assert isinstance(feature, type(FEATURES[0]))
    for value in feature.values:
        parsed = matrix.parse_value(feature, str(value).lower())
        assert parsed == value and type(parsed) is type(value)
    with pytest.raises(ValueError, match=f"{feature.name}: expected one of"):
        matrix.parse_value(feature, "nonsense")


def test_the_build_command_builds_that_kernel() -> None:
    for spec in all_specs()[::61]:
        arguments = matrix.build_command(spec).removeprefix("python build.py ").split(" ")
        result = CliRunner().invoke(cli.command, [*cli.expand(arguments), "--list", "--json", "--out", "nowhere"])
        assert result.exit_code == 0
        assert result.output.count('"name"') == 1 and f'"{spec.name}"' in result.output


def test_allowances_are_used_and_give_reasons() -> None:
    for item in ptxas.ALLOWANCES:
        assert any(item.applies(spec) for spec in all_specs()), item.finding
        assert item.finding in ptxas.WARNINGS or int(item.finding.removeprefix("spills<=")) > 0
        assert len(item.reason) > 20


if __name__ == "__main__":
    GOLDEN.write_text(golden_text())
