"""Decode over 8-bit keys and values: kernels on the emulator and the reference, against the oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import skimattn
import torch
from skimattn import ArgumentError, NoKernelError, Params

from tests.helpers.bodies import name, run_and_check
from tests.helpers.cases import Case, contents
from tests.helpers.decode_cases import cache_cases
from tests.helpers.run import run_case

E4M3 = torch.float8_e4m3fn
NAN_BYTES = (0x7F, 0xFF)


@pytest.mark.parametrize("case", cache_cases(), ids=name)
def test_kernels_and_reference(case: Case) -> None:
    run_and_check(case, "emulator", schedule="random", seed=2)
    run_and_check(case.launched(), "reference")


@pytest.mark.parametrize(("dim", "heads"), [(64, 1), (128, 1), (64, 17), (128, 17)])
def test_every_byte_is_converted_exactly(dim: int, heads: int) -> None:
    """One key each row: its output is the value itself, whatever byte it is. NaN stays NaN, in its own column.

    More than 16 heads of one kv head are multiplied another way.
    """
    case = Case(
        "bytes", phase="decode", kv_dtype="e4m3", head_dim=dim, head_dim_v=dim, skip="dense", lens=((1, 1),) * 4
    )
    case = replace(case, give_out=False, lse=False, heads_q=heads)
    held = contents(case)
    every = torch.arange(256, dtype=torch.uint8).reshape(-1, dim)
    for index, one in enumerate(held):
        one.v[:] = every[index % len(every)].view(E4M3)
    result, _ = run_case(case, "emulator", held)
    for index, one in enumerate(held):
        got = result.rows("out", index).float().reshape(heads, dim)
        torch.testing.assert_close(
            got, one.v.float().reshape(1, dim).expand(heads, dim), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("byte", NAN_BYTES)
def test_a_nan_key_and_a_nan_value(byte: int) -> None:
    """A NaN key makes the rows that see it NaN, and no others; a NaN value its own column."""
    case = Case("nan", phase="decode", kv_dtype="e4m3", head_dim=128, head_dim_v=128, heads_q=2, skip="dense")
    case = replace(case, lens=((3, 300),), give_out=False)
    for tensor, where in (("k", (2, slice(None), slice(None))), ("v", (2, slice(None), 5))):
        held = contents(case)
        getattr(held[0], tensor)[299, 0, 5] = torch.tensor(byte, dtype=torch.uint8).view(E4M3)  # the last row sees it
        result, _ = run_case(case, "emulator", held)
        out = result.rows("out", 0)
        assert out[where].isnan().all()
        assert not (out[:2].isnan().any() if tensor == "k" else out[..., :5].isnan().any() | out[..., 6:].isnan().any())


def call(len_q: int, len_k: int = 300, dtype: torch.dtype = torch.bfloat16, **given: object) -> Params:
    k, v = (torch.randn(1, len_k, 2, 64).to(E4M3) for _ in "kv")
    return Params(torch.randn(1, len_q, 8, 64).to(dtype), k, v, **given)  # type: ignore[arg-type]


def test_decode_takes_what_no_prefill_kernel_does() -> None:
    assert skimattn.launch(call(64)).shape == (1, 64, 8, 64)  # 256 packed rows
    words = r"prefill_bf16_kv_e4m3.*kv-dtype-phase.*up to 65 rows.*are 260, and they take up to 256"
    with pytest.raises(NoKernelError, match=words):
        skimattn.launch(call(65))


def test_architecture_without_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIMATTN_REFERENCE", "sm100")
    with pytest.raises(NoKernelError, match="kv-dtype-arch"):
        skimattn.launch(call(1))


def test_queries_of_8_bits_on_sm90(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SKIMATTN_REFERENCE", "sm90")
    monkeypatch.setenv("SKIMATTN_KERNELS", str(tmp_path))  # whatever is built
    for rows, phase in ((2, "decode"), (65, "prefill")):
        params = call(rows, dtype=E4M3, q_descale=torch.tensor(0.5))
        explanation = skimattn.explain(params)
        assert explanation.accepted and f"skim_sm90_{phase}_e4m3_out_bf16_" in str(explanation)
        out = skimattn.launch(params)
        assert out.dtype == torch.bfloat16 and bool(out.isfinite().all()) and bool(out.any())


def test_descale_of_queries_that_have_none() -> None:
    with pytest.raises(ArgumentError, match=r"^q_descale: expected None with q of bf16"):
        skimattn.launch(call(1, q_descale=torch.tensor(1.0)))


def test_flash_attn_with_kvcache_takes_8_bit_caches() -> None:
    from skimattn.flash_attn_interface import flash_attn_with_kvcache

    one = call(1)
    scale = torch.full((1, 2), 0.5)
    new = {"k": one.k[:, :1].clone(), "v": one.v[:, :1].clone(), "cache_seqlens": 299}
    out = flash_attn_with_kvcache(one.q, one.k, one.v, k_descale=scale, v_descale=scale, **new)  # type: ignore[arg-type]
    wanted = skimattn.launch(Params(one.q, one.k, one.v, k_descale=scale, v_descale=scale))
    assert torch.equal(out, wanted) and torch.equal(one.k[:, 299:].view(torch.uint8), new["k"].view(torch.uint8))
