"""From a call to one kernel of the matrix, or a refusal that names the nearest kernels and how to add one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from skimattn import ArgumentError, NoKernelError, Params, explain
from skimattn._call.validate import validate
from skimattn._select.dispatch import (
    REFERENCE_VARIABLE,
    arch_of,
    head_dims,
    phases_of,
    reference_arch,
    spec_of,
    specs_of,
)
from skimattn._select.kernels import FOLDER_VARIABLE
from skimattn._select.nearest import describe_nearest, differences, not_built
from skimattn.codegen import matrix, sets
from skimattn.codegen.spec import KernelSpec

DTYPES = (torch.bfloat16, torch.float16, torch.float8_e4m3fn)
BASE = KernelSpec("sm90", "prefill", "bf16", "bf16", 128, 128, "causal", False, "dense", False, False)


def spec(
    dim: int = 128,
    dim_v: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    arch: str = "sm90",
    **arguments: Any,
) -> KernelSpec:
    q = torch.zeros(1, 8, 2, dim, dtype=dtype)
    v = torch.zeros(1, 8, 2, dim if dim_v is None else dim_v, dtype=dtype)
    return spec_of(validate(Params(q, q.clone(), v, **arguments)), arch)


def smallest(kernels: Iterable[tuple[int, int]], dim: int, dim_v: int) -> tuple[int, int]:
    return min((a + b, a, b) for a, b in kernels if a >= dim and b >= dim_v)[1:]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "e4m3"])
@pytest.mark.parametrize("arch", ["sm90", "sm100"])
def test_every_head_dim_has_the_smallest_kernel_that_holds_it(arch: str, dtype: str) -> None:
    kernels = [(64, 64), (128, 128), (192, 128), (256, 256)]
    if arch == "sm90" and dtype != "e4m3":
        kernels += [(80, 80), (96, 96), (192, 192)]
    for dim, dim_v in itertools.product(range(8, 257, 8), repeat=2):
        assert head_dims(arch, "prefill", dtype, dim, dim_v) == smallest(kernels, dim, dim_v), (dim, dim_v)
    assert head_dims(arch, "prefill", dtype, 192, 128) == (192, 128)
    assert head_dims(arch, "prefill", dtype, 200, 136) == (256, 256)
    decoded = [head_dims(arch, "decode", dtype, dim, dim) for dim in (64, 72, 80, 96, 112, 160)]
    assert decoded == [(64, 64)] + [(128, 128)] * 4 + [(256, 256)]


def test_calls_between_run_on_what_their_architecture_and_type_have() -> None:
    assert [spec(dim).head_dim for dim in (64, 72, 80, 88, 96, 104)] == [64, 80, 80, 96, 96, 128]
    assert [spec(dim).head_dim_v for dim in (136, 160, 192, 200)] == [192, 192, 192, 256]
    for dim, dim_v, wanted in ((72, 96, 96), (96, 8, 96), (64, 72, 80), (8, 80, 80), (96, 104, 128), (104, 96, 128)):
        chosen = spec(dim, dim_v, torch.float16)
        assert (chosen.head_dim, chosen.head_dim_v) == (wanted, wanted), (dim, dim_v)
    for other in (spec(96, arch="sm100"), spec(96, dtype=torch.float8_e4m3fn), spec(80, dtype=torch.float8_e4m3fn)):
        assert (other.head_dim, other.head_dim_v) == (128, 128)
    q, k = torch.zeros(1, 1, 2, 96).bfloat16(), torch.zeros(1, 900, 2, 96).bfloat16()
    assert {phase: one.head_dim for phase, one in specs_of(validate(Params(q, k, k)), "sm90").items()} == {
        "decode": 128,
        "combine": 128,
    }


def test_head_dims_beyond_the_largest_kernel() -> None:
    for arch, known in (("sm90", r"\(64, 64\), \(80, 80\), \(96, 96\), \(128"), ("sm100", r"\(64, 64\), \(128")):
        with pytest.raises(NoKernelError, match=rf"^head_dim: expected at most one of \[{known}.* \(got \(264, 8\)\)"):
            head_dims(arch, "prefill", "bf16", 264, 8)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({}, {"mask": "full", "skip": "dense"}),
        ({"mask": "padding"}, {"mask": "full"}),
        ({"mask": "causal"}, {"mask": "causal"}),
        ({"mask": "window", "window_size": (-1, -1)}, {"mask": "window"}),  # never replaced by another mask
        ({"mask": "chunked", "chunk_size": 4}, {"mask": "chunked"}),
        ({"mask": "custom", "custom_mask": torch.ones(8, 8, dtype=torch.bool)}, {"mask": "custom"}),
        ({"skip_softmax_threshold": 0.0}, {"skip": "skip"}),  # never replaced by dense
        ({"skip_softmax_threshold": torch.zeros(1)}, {"skip": "skip"}),
        ({"skip_softmax_threshold": 1, "stats": torch.zeros(2, dtype=torch.int64)}, {"skip": "stat"}),
        ({"softcap": 30.0}, {"softcap": True}),
        ({"softcap": 0}, {"softcap": False}),
        ({"alibi_slopes": torch.zeros(2)}, {"alibi": True}),
        ({"dtype": torch.float16}, {"dtype": "fp16", "out_dtype": "fp16"}),
        ({"sinks": torch.zeros(2)}, {"mask": "full"}),
    ],
)
def test_each_argument_selects_its_feature(arguments: dict[str, Any], fields: dict[str, Any]) -> None:
    chosen = spec(**arguments).values
    assert {name: chosen[name] for name in fields} == fields


def test_pages_select_the_paged_kernel() -> None:
    q, pages = torch.zeros(1, 8, 2, 64).bfloat16(), torch.zeros(3, 16, 2, 64).bfloat16()
    call = Params(q, pages, pages, page_table=torch.zeros(1, 2, dtype=torch.int32), mask="causal")
    assert spec_of(validate(call), "sm90").paged


def test_every_chosen_kernel_is_in_the_matrix() -> None:
    known = set(matrix.all_specs())
    for arch in ("sm90", "sm100"):
        for dim, dtype in itertools.product((16, 64, 96, 144, 256), DTYPES):
            assert spec(dim, dtype=dtype, arch=arch, mask="causal") in known


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_the_output_given_selects_what_8_bit_kernels_write(out_dtype: torch.dtype) -> None:
    given = spec(dtype=torch.float8_e4m3fn, arch="sm100", out=torch.zeros(1, 8, 2, 128, dtype=out_dtype))
    assert (given.dtype, given.out_dtype) == ("e4m3", {torch.bfloat16: "bf16", torch.float16: "fp16"}[out_dtype])
    assert spec(dtype=torch.float8_e4m3fn, arch="sm100").out_dtype == "bf16"


def test_requests_of_many_rows_are_prefills_whatever_their_keys() -> None:
    for heads_q, dim, arch in (
        (1, 128, "sm90"),
        (3, 64, "sm90"),
        (8, 256, "sm90"),
        (300, 128, "sm90"),
        (4, 64, "sm100"),
    ):
        one = torch.zeros(1, 1, 1, dim).bfloat16()

        def phases(rows: int, keys: int, one: torch.Tensor = one, heads: int = heads_q, arch: str = arch) -> list[str]:
            kv = one.expand(1, keys, 1, -1)
            return list(phases_of(validate(Params(one.expand(1, rows, heads, -1), kv, kv)), arch))

        least = 256 // heads_q + 1
        assert all(phases(least + more, 1 << 20) == ["prefill"] for more in (0, 1, 500))
        assert least <= 1 or phases(least - 1, 1 << 20) == ["decode"]


def test_8_bit_prefill_on_sm90_comes_with_what_transposes_v() -> None:
    q, k = (torch.zeros(1, rows, 2, 128).to(torch.float8_e4m3fn) for rows in (300, 400))
    problem = validate(Params(q, k, k, mask="causal"))
    assert {phase: spec.name for phase, spec in specs_of(problem, "sm90").items()} == {
        "prefill": "skim_sm90_prefill_e4m3_out_bf16_d128_causal_dense",
        "transpose": "skim_sm90_transpose_e4m3_out_bf16_d128_full_dense",
    }
    assert list(specs_of(problem, "sm100")) == ["prefill"]
    rows = torch.tensor([0, 100, 300], dtype=torch.int32)
    some = validate(Params(q[0], k[0, :300], k[0, :300], cu_seqlens_q=rows, cu_seqlens_k=rows.clone()))
    assert list(specs_of(some, "sm90")) == ["prefill", "decode", "combine", "transpose"]


def test_architectures() -> None:
    assert (arch_of((9, 0)), arch_of((10, 0))) == ("sm90", "sm100")
    for major, minor in ((8, 0), (8, 9), (9, 1), (10, 3), (11, 0), (12, 0), (12, 1)):
        known = r"9\.0 \(sm90\) or 10\.0 \(sm100\)"
        with pytest.raises(NoKernelError, match=rf"^device: expected .*{known} \(got {major}\.{minor}\)"):
            arch_of((major, minor))


def test_what_the_reference_stands_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert reference_arch() == "sm90"
    monkeypatch.setenv(REFERENCE_VARIABLE, "sm100")
    assert reference_arch() == "sm100"
    q = torch.zeros(1, 200, 2, 64).bfloat16()
    chosen = explain(Params(q, q, q))
    assert (chosen.kernel, chosen.group_rows) == ("skim_sm100_prefill_bf16_d64_full_dense", 128)
    assert "architecture: sm100; SKIMATTN_REFERENCE names another one for CPU tensors" in chosen.trace
    monkeypatch.setenv(REFERENCE_VARIABLE, "sm80")
    with pytest.raises(ArgumentError, match=r"^SKIMATTN_REFERENCE: expected one of sm90, sm100 \(got 'sm80'\)"):
        reference_arch()
    monkeypatch.setenv(REFERENCE_VARIABLE, "")
    assert reference_arch() == "sm90"


def test_differences_name_fields() -> None:
    other = KernelSpec("sm90", "prefill", "fp16", "fp16", 128, 128, "full", False, "dense", False, False)
    assert differences(BASE, other) == {
        "dtype": ("bf16", "fp16"),
        "out_dtype": ("bf16", "fp16"),
        "mask": ("causal", "full"),
    }


def test_a_kernel_that_is_not_built_names_the_nearest_and_the_build_line() -> None:
    built = [spec(mask="full"), spec(mask="causal", skip_softmax_threshold=0.5), spec(64, dtype=torch.float16)]
    text = str(not_built(BASE, built, "because"))
    assert text.startswith("skim_sm90_prefill_bf16_d128_causal_dense: not built, because; nearest: ")
    assert "skim_sm90_prefill_bf16_d128_full_dense (mask=full instead of causal)" in text
    assert "skim_sm90_prefill_bf16_d128_causal_skip (skip=skip instead of dense)" in text
    assert f"To add it: {sets.build_command(BASE)}" in text and "python build.py --sm 90" in text


def test_nothing_built_says_so() -> None:
    assert describe_nearest(BASE, []) == "no kernels are built"


def test_a_kernel_that_the_matrix_rejects_is_refused_with_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = matrix.Rule("no-windows", lambda candidate: candidate.mask == "window", "for this test")
    monkeypatch.setattr(matrix, "RULES", (*matrix.RULES, rule))
    with pytest.raises(NoKernelError, match=r"window_dense: rejected by rule no-windows: for this test; nearest: skim"):
        spec(mask="window", window_size=(3, 0))


def test_arguments_of_other_steps_are_unknown() -> None:
    q = torch.zeros(1, 8, 2, 64).bfloat16()
    with pytest.raises(TypeError, match="block_size"):
        Params(q, q, q, block_size=64)  # type: ignore[call-arg]


def test_float32_is_no_kernel() -> None:
    with pytest.raises(ArgumentError, match=r"^q: expected dtype"):
        spec(dtype=torch.float32)
