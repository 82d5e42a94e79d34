"""Which kernels exist, what a skip means to each, and how the matrix explains itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner
from skimattn.codegen import cli, matrix, metadata, ptxas, sets
from skimattn.codegen.arch import ARCHS
from skimattn.codegen.features import BY_NAME, FEATURES, Value
from skimattn.codegen.matrix import Accepted, Rejected, all_specs, judge_values
from skimattn.codegen.sets import specs
from skimattn.codegen.spec import KernelSpec
from skimattn.codegen.tiles import split
from skimattn.codegen.tiles.common import ELEMENT_BYTES

GOLDEN = Path(__file__).parent / "golden" / "kernels.txt"


def golden_text() -> str:
    """What a skip means, how decoded requests are split, how many kernels each set has, and the smoke set.

    A tile, a row group or an order that depended on anything else than what its line names would give two lines.
    """
    masks: dict[str, dict[str, None]] = {}
    for spec in all_specs():
        row, bits = metadata.listing(spec, None), 8 * ELEMENT_BYTES[spec.dtype]
        tile = f"{row['tile_m']}x{row['tile_n']}, groups of {row['group_rows']}, {row['order']}"
        kind = f"{spec.arch} {spec.phase} {bits}-bit d{spec.head_dim}v{spec.head_dim_v}: {tile}:"
        masks.setdefault(kind, {})[spec.mask] = None
    lines = [f"{kind} {' '.join(those)}" for kind, those in masks.items()]
    lines += [f"{name} {value}" for name, value in vars(split).items() if name.isupper()]
    for name in sets.SETS:
        lines += [f"{name} {arch}: {len(specs(name, archs=[arch]))} kernels" for arch in ARCHS]
    return "\n".join([*lines, *(f"smoke {spec.name}" for spec in specs("smoke"))]) + "\n"


def test_tiles_orders_and_counts_are_those_of_the_golden_list() -> None:
    assert golden_text() == GOLDEN.read_text(), "rewrite it with: python -m tests.cpu.test_matrix"


# Which kernels there are, written out once more: of each architecture and pair of types, the product of the rest.
PAIRS = (("bf16", "bf16"), ("fp16", "fp16"), ("e4m3", "bf16"), ("e4m3", "fp16"))
TYPES = {"sm90": PAIRS, "sm100": PAIRS}
# Beside those, decode of SM90 reads k and v of 8 bits under other queries.
BYTES = (("bf16", "bf16", "e4m3"), ("fp16", "fp16", "e4m3"))
PHASES = ("prefill", "decode")  # that attend; what decode leaves is combined besides
HEAD_DIMS = {
    "prefill": ((64, 64), (128, 128), (192, 128), (256, 256)),
    "decode": ((64, 64), (128, 128), (256, 256)),
}  # everywhere; and besides those of hopper()
LAYOUTS = {mask: (False, True) for mask in BY_NAME["mask"].values}  # paged or not


def products(
    types: Mapping[str, Collection[tuple[str, str]]],
    layouts: Mapping[Value, Collection[bool]],
    flags: Collection[bool],
    in_bytes: Collection[tuple[str, str, str]],
) -> set[KernelSpec]:
    """Every kernel of these types, masks with their layouts, and values of the flags softcap and alibi."""
    of_phases = [(arch, phase, (*pair, "same")) for arch, pairs in types.items() for phase in PHASES for pair in pairs]
    of_phases += [("sm90", "decode", kinds) for kinds in in_bytes]
    attending = {
        KernelSpec(arch, phase, dtype, out, dim, dim_v, str(mask), paged, skip, softcap, alibi, kv)
        for arch, phase, (dtype, out, kv) in of_phases
        for (dim, dim_v), mask in product(HEAD_DIMS[phase], layouts)
        for paged, skip, softcap, alibi in product(layouts[mask], ("dense", "skip", "stat"), flags, flags)
    }
    return attending | {
        KernelSpec(arch, "combine", dtype, dtype, dim, dim, "full", False, "dense", False, False)
        for arch, dtype, dim in product(types, ("bf16", "fp16"), (64, 128, 256))
    }


def latent(flags: Collection[bool]) -> set[KernelSpec]:
    """MLA's: masks full and causal, paged or not; no alibi. And those that combine what they leave."""
    kinds = product(("bf16", "fp16"), ("full", "causal"), (False, True), ("dense", "skip", "stat"), flags)
    return {
        KernelSpec("sm90", "mla", dtype, dtype, 576, 512, mask, paged, skip, softcap, False)
        for dtype, mask, paged, skip, softcap in kinds
    } | {
        KernelSpec("sm90", "combine", dtype, dtype, 512, 512, "full", False, "dense", False, False)
        for dtype in ("bf16", "fp16")
    }


def hopper(
    dim: int,
    dtypes: Collection[str],
    layouts: Mapping[Value, Collection[bool]],
    skips: Collection[str],
    flags: Collection[bool],
) -> set[KernelSpec]:
    """Those of 80, 96 or 192 columns, which only SM90's prefill of 16 bits has."""
    return {
        KernelSpec("sm90", "prefill", dtype, dtype, dim, dim, str(mask), paged, skip, softcap, alibi)
        for dtype, mask, skip, softcap, alibi in product(dtypes, layouts, skips, flags, flags)
        for paged in layouts[mask]
    }


def transposing() -> set[KernelSpec]:
    """What makes V ready for e4m3 prefill of SM90."""
    return {
        KernelSpec("sm90", "transpose", "e4m3", "bf16", dim, dim, "full", paged, "dense", False, False)
        for dim, paged in product((64, 128, 256), (False, True))
    }


def test_the_full_set_is_a_product() -> None:
    wanted = products(TYPES, LAYOUTS, (False, True), BYTES) | latent((False, True)) | transposing()
    for dim in (80, 96, 192):
        wanted |= hopper(dim, ("bf16", "fp16"), LAYOUTS, ("dense", "skip", "stat"), (False, True))
    assert set(all_specs()) == wanted
    assert len(all_specs()) == len(set(all_specs()))


def test_the_default_set_is_a_product() -> None:
    common = {"sm90": PAIRS[:2], "sm100": PAIRS[:3]}
    paged = ("causal", "window", "chunked")
    layouts = {mask: (False, True) if mask in paged else (False,) for mask in LAYOUTS}
    in_bytes = {
        KernelSpec("sm90", "prefill", "e4m3", "bf16", dim, dim_v, mask, paged, skip, False, False)
        for (dim, dim_v), skip in product(HEAD_DIMS["prefill"], ("dense", "skip"))
        for mask, paged in (("full", False), ("causal", False), ("causal", True), ("window", False))
    }
    caches = [("bf16", "bf16", "e4m3")]
    wanted = products(common, layouts, (False,), caches) | latent((False,)) | in_bytes | transposing()
    for dim in (80, 96, 192):
        wanted |= hopper(dim, ("bf16",), {"full": (False,), "causal": (False, True)}, ("dense", "skip"), (False,))
    wanted -= {spec for spec in wanted if (spec.dtype, spec.mask, spec.skip) == ("fp16", "custom", "stat")}
    assert set(specs("default")) == wanted
    assert len(specs("default")) < 1000


def test_names_are_unique() -> None:
    names = [spec.name for spec in all_specs()]
    assert len(set(names)) == len(names)


def test_sets_are_nested() -> None:
    smoke, default, full = (set(specs(name)) for name in sets.SETS)
    assert smoke < default < full == set(all_specs())


def test_smoke_meets_every_value_of_the_main_features() -> None:
    for name in ("arch", "phase", "dtype", "head_dim", "skip", "paged"):
        assert {getattr(spec, name) for spec in specs("smoke")} == set(BY_NAME[name].values), name
    for arch in ARCHS:
        found = {spec.head_dim for spec in specs("smoke", archs=[arch])}
        assert found == set(BY_NAME["head_dim"].values) - ({80, 96, 512, 576} if arch == "sm100" else set()), arch


def test_every_architecture_of_the_table_is_described() -> None:
    assert tuple(ARCHS) == BY_NAME["arch"].values
    assert [arch.target for arch in ARCHS.values()] == ["90a", "100a"]
    assert len({arch.capability for arch in ARCHS.values()}) == len(ARCHS)


def test_what_smoke_decodes_it_combines() -> None:
    assert set(sets.with_helpers(specs("smoke"))) == set(specs("smoke"))
    decoding = specs("smoke", {"phase": ["decode"]})
    assert {(spec.mask, spec.paged, spec.skip) for spec in decoding} == {
        ("causal", True, "dense"),
        ("causal", True, "skip"),
    }


def test_architectures_have_the_same_kernels() -> None:
    """But for caches of 8 bits, MLA, what each needs besides, dims of SM90; and in the default set for 8 bits."""

    def without_arch(spec: KernelSpec) -> KernelSpec:
        return replace(spec, arch="sm90")

    attending = {"phase": ["prefill", "decode", "combine"], "kv_dtype": ["same"]}
    for name, dtypes in (("default", ("bf16", "fp16")), ("full", ("bf16", "fp16", "e4m3"))):
        own = [
            spec for spec in specs(name, {**attending, "dtype": dtypes}) if spec.head_dim_v not in (80, 96, 192, 512)
        ]
        hopper, blackwell = ([spec for spec in own if spec.arch == arch] for arch in ARCHS)
        assert {without_arch(spec) for spec in blackwell} == set(hopper)
    attending = {"phase": ["prefill", "decode"]}
    fp8 = specs("full", {"dtype": ["e4m3"], **attending}, ["sm100"])
    assert {spec.out_dtype for spec in fp8} == {"bf16", "fp16"}
    assert {spec.out_dtype for spec in specs("default", {"dtype": ["e4m3"], **attending})} == {"bf16"}
    shapes = {replace(spec, dtype="bf16", out_dtype="bf16") for spec in fp8}
    assert shapes == set(specs("full", {"dtype": ["bf16"], **attending}, ["sm100"]))


def test_only_filters_by_every_field() -> None:
    only = {"dtype": ("bf16", "fp16"), "head_dim": (128,), "skip": ("stat",), "phase": ("prefill", "decode", "combine")}
    chosen = specs("default", only)
    assert chosen
    assert {(spec.head_dim, spec.skip) for spec in chosen} == {(128, "stat")}
    of_both = [spec for spec in specs("default") if (spec.head_dim, spec.skip) == (128, "stat")]
    assert chosen == tuple(spec for spec in of_both if spec.dtype != "e4m3") != tuple(of_both)
    assert specs("default", {**only, "phase": ("decode",)}) == tuple(spec for spec in chosen if spec.phase == "decode")


def test_kernels_that_combine_are_chosen_with_the_decode_kernels_that_need_them() -> None:
    """Whatever mask or option those are chosen by, of which combining knows nothing."""
    chosen = specs("full", {"mask": ["window"], "alibi": [True], "head_dim": [64, 192], "dtype": ["fp16"]})
    assert {spec.phase for spec in chosen} == {"prefill", "decode", "combine"}
    combining = [f"skim_{arch}_combine_fp16_d64_full_dense" for arch in ARCHS]
    assert [spec.name for spec in chosen if spec.phase == "combine"] == combining
    plain = specs("full", {"mask": ["full"], "head_dim": [192]})
    assert {spec.phase for spec in plain} == {"prefill", "transpose"}  # of 192 columns nothing is decoded
    for name, archs in (("default", ("sm100",)), ("full", ARCHS)):  # queries of 8 bits are rare on SM90
        eight_bit = specs(name, {"dtype": ["e4m3"], "head_dim": [64], "out_dtype": ["bf16"]})
        combining = [f"skim_{arch}_combine_bf16_d64_full_dense" for arch in archs]
        assert [spec.name for spec in eight_bit if spec.phase == "combine"] == combining
    known = set(all_specs())
    for spec in specs("full", {"phase": ["decode", "mla"]}):
        combine = matrix.combine_spec(spec)
        assert combine in known and (combine.head_dim, combine.dtype) == (spec.head_dim_v, spec.out_dtype)
    everything = specs("full")
    for name in sets.SETS:
        assert set(sets.with_helpers(specs(name))) == set(specs(name)) <= set(everything)


def test_kernels_that_transpose_are_chosen_with_the_prefill_kernels_that_need_them() -> None:
    chosen = specs("full", {"mask": ["window"], "head_dim": [192], "dtype": ["e4m3"], "paged": [True]})
    assert [spec.name for spec in chosen if spec.phase == "transpose"] == [
        "skim_sm90_transpose_e4m3_out_bf16_d128_full_dense_paged"
    ]
    assert not any(matrix.transpose_spec(spec) for spec in specs("full") if spec.dtype != "e4m3")
    known = set(all_specs())
    for spec in specs("full", {"phase": ["prefill"], "dtype": ["e4m3"]}):
        transpose = matrix.transpose_spec(spec)
        if spec.arch == "sm90":
            assert transpose in known and transpose.head_dim == spec.head_dim_v and transpose.paged == spec.paged
        else:
            assert transpose is None


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
        judge_values({"colour": "red"})


def test_the_values_of_every_kernel_are_accepted() -> None:
    for spec in all_specs():
        assert judge_values(spec.values) == Accepted(spec)


@pytest.mark.parametrize(
    ("values", "rule", "words"),
    [
        ({"out_dtype": "fp16"}, "out-dtype", "convert the output"),
        ({"head_dim": 64, "head_dim_v": 128}, "head-dims", "(192, 128)"),
        ({"head_dim": 72}, "head_dim-values", "next larger kernel"),
        ({"head_dim": 96, "head_dim_v": 128}, "head-dims", "(64, 64), (80, 80), (96, 96), (128, 128)"),
        ({"head_dim": 96, "phase": "decode"}, "head-dims", "(64, 64), (128, 128), (256, 256) of decode;"),
        ({"head_dim": 96, "arch": "sm100"}, "head-dims-hopper", "kernels of (80, 80), (96, 96), (192, 192); elsewhere"),
        ({"head_dim": 96, "dtype": "e4m3"}, "head-dims-hopper", "only SM90's prefill of 16 bits"),
        ({"head_dim": 96, "dtype": "e4m3", "arch": "sm100"}, "head-dims-hopper", "only SM90's prefill of 16 bits"),
        ({"head_dim_v": 88}, "head_dim_v-values", "next larger kernel"),
        (
            {"phase": "append"},
            "phase-values",
            "expected one of prefill, decode, combine, mla, transpose (got 'append')",
        ),
        ({"phase": "decode", "dtype": "e4m3", "kv_dtype": "e4m3"}, "kv-dtype-twice", "kv_dtype=same"),
        ({"kv_dtype": "e4m3"}, "kv-dtype-phase", "prefill would convert each of them once for every tile"),
        ({"phase": "combine", "kv_dtype": "e4m3"}, "combine-dtype", ""),
        ({"phase": "combine", "dtype": "e4m3", "arch": "sm90"}, "combine-dtype", ""),
        ({"phase": "mla", "dtype": "e4m3", "arch": "sm90"}, "mla-dtype", "nothing but 16 bits"),
        ({"phase": "mla", "kv_dtype": "e4m3"}, "mla-dtype", "nothing but 16 bits"),
        ({"phase": "mla", "arch": "sm100"}, "mla-arch", "SM90 alone"),
        ({"phase": "combine", "head_dim": 512, "arch": "sm100"}, "mla-arch", "SM90 alone"),
        ({"phase": "combine", "mask": "causal"}, "combine-options", "merged in one way, whatever mask and options"),
        ({"phase": "combine", "skip": "stat"}, "combine-options", "merged in one way"),
        ({"phase": "combine", "paged": True}, "combine-options", "merged in one way"),
        ({"phase": "combine", "softcap": True}, "combine-options", "merged in one way"),
        ({"phase": "combine", "alibi": True}, "combine-options", "merged in one way"),
        ({"phase": "decode", "head_dim": 192}, "head-dims", "(64, 64), (128, 128), (256, 256) of decode;"),
        ({"phase": "decode", "out_dtype": "fp16"}, "out-dtype", "16-bit kernels write the type they read"),
        ({"arch": "sm120"}, "arch-values", "sm120 has no kernel specs yet (specs exist for sm90, sm100)"),
        ({"dtype": "fp8"}, "dtype-values", "expected one of bf16, fp16, e4m3 (got 'fp8')"),
        ({"phase": "transpose"}, "transpose-dtype", "only 8-bit values of SM90's prefill"),
        ({"phase": "transpose", "dtype": "e4m3", "arch": "sm100"}, "transpose-dtype", "only 8-bit values"),
        ({"phase": "transpose", "kv_dtype": "e4m3"}, "kv-dtype-phase", "only decode reads keys and values"),
        ({"phase": "transpose", "dtype": "e4m3", "mask": "causal"}, "transpose-options", "in one way, whatever mask"),
        ({"phase": "transpose", "dtype": "e4m3", "skip": "skip"}, "transpose-options", "in one way"),
        ({"phase": "transpose", "dtype": "e4m3", "out_dtype": "fp16"}, "transpose-options", "stands for all outputs"),
        ({"phase": "transpose", "dtype": "e4m3", "head_dim": 192}, "head-dims", "(256, 256) of transpose"),
        ({"dtype": "e4m3", "out_dtype": "e4m3"}, "out_dtype-values", "expected one of bf16, fp16"),
        ({"arch": "sm100", "out_dtype": "fp16"}, "out-dtype", "16-bit kernels write the type they read"),
        ({"mask": "banded"}, "mask-values", "expected one of full, causal"),
        ({"paged": "maybe"}, "paged-values", "expected one of false, true"),
        ({"paged": 1}, "paged-values", "expected one of false, true"),
        ({"head_dim": True}, "head_dim-values", "head_dim"),
    ],
)
def test_rejections_name_rule_and_reason(values: dict[str, object], rule: str, words: str) -> None:
    verdict = judge_values(values)
    assert isinstance(verdict, Rejected)
    assert verdict.rule == rule
    assert words in verdict.reason


def test_what_is_left_open_is_filled_in() -> None:
    verdict = judge_values({"head_dim": "192", "mask": "causal", "paged": "true"})
    assert isinstance(verdict, Accepted)
    assert verdict.spec.name == "skim_sm90_prefill_bf16_d192v128_causal_dense_paged"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"dtype": "e4m3"}, "skim_sm90_prefill_e4m3_out_bf16_d128_full_dense"),
        ({"dtype": "e4m3", "out_dtype": "fp16"}, "skim_sm90_prefill_e4m3_out_fp16_d128_full_dense"),
        ({"dtype": "e4m3", "arch": "sm100"}, "skim_sm100_prefill_e4m3_out_bf16_d128_full_dense"),
        ({"arch": "sm100"}, "skim_sm100_prefill_bf16_d128_full_dense"),
    ],
)
def test_8_bit_input_means_16_bit_output(fields: dict[str, object], name: str) -> None:
    verdict = judge_values(fields)
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
        arguments = sets.build_command(spec).removeprefix("python build.py ").split(" ")
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
