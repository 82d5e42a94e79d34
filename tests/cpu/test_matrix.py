"""Which kernels exist, and how the matrix explains itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from skimattn.codegen import cli, matrix, ptxas
from skimattn.codegen.features import BY_NAME, FEATURES
from skimattn.codegen.matrix import Accepted, Rejected, all_specs, explain, specs
from skimattn.codegen.tiles import MAX_SMEM_BYTES, Tile, smem_bytes, tile_of

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
    for name in ("dtype", "head_dim", "skip", "paged"):
        assert {getattr(spec, name) for spec in specs("smoke")} == set(BY_NAME[name].values), name


def test_every_kernel_has_a_tile_that_fits() -> None:
    for spec in all_specs():
        tile = tile_of(spec)
        assert smem_bytes(spec) <= MAX_SMEM_BYTES
        registers = tile.producer_regs + tile.consumers * tile.consumer_regs
        assert registers <= 65536 // tile.threads // 8 * 8 * tile.threads // 128 and tile.threads <= 1024, spec.name


def test_a_tile_asks_for_no_more_registers_than_it_was_launched_with() -> None:
    tile = Tile(128, 128, stages=2, stages_v=2, separate_o=True, producer_regs=24, consumer_regs=240)  # 504 = 3 x 168
    with pytest.raises(AssertionError, match="504"):
        replace(tile, producer_regs=32)


def test_only_filters_by_every_field() -> None:
    chosen = specs("default", {"dtype": ("bf16", "fp16"), "head_dim": (128,), "skip": ("stat",)})
    assert chosen
    assert {(spec.head_dim, spec.skip) for spec in chosen} == {(128, "stat")}
    assert chosen == tuple(s for s in specs("default") if (s.head_dim, s.skip) == (128, "stat"))


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
        ({"arch": "sm100"}, "arch-values", "sm100 has no kernel specs yet (specs exist for sm90)"),
        ({"dtype": "fp8"}, "dtype-values", "expected one of bf16, fp16 (got 'fp8')"),
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


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_every_value_can_be_spelled(feature: object) -> None:
    assert isinstance(feature, type(FEATURES[0]))
    for value in feature.values:
        parsed = matrix.parse_value(feature, str(value).lower())
        assert parsed == value and type(parsed) is type(value)
    with pytest.raises(ValueError, match=f"{feature.name}: expected one of"):
        matrix.parse_value(feature, "nonsense")


def test_the_build_command_builds_that_kernel() -> None:
    for spec in all_specs()[::17]:
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
