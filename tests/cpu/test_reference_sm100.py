"""The reference as SM100's kernels compute: groups of 128 rows, and 8-bit input with its descales."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from skimattn import Params, attention, launch
from skimattn._select.dispatch import REFERENCE_VARIABLE

E4M3 = torch.float8_e4m3fn
HEADS_Q, HEADS_KV = 4, 2


@pytest.fixture(autouse=True)
def _as_sm100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REFERENCE_VARIABLE, "sm100")


def inputs(batch: int, rows: int, keys: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q": (batch, rows, HEADS_Q, 64), "k": (batch, keys, HEADS_KV, 64), "v": (batch, keys, HEADS_KV, 64)}
    return {name: torch.randn(shape, generator=generator).to(E4M3) for name, shape in shapes.items()}


def per_head(batch: int, seed: int) -> torch.Tensor:
    """Descales from 0.5 to 1.5."""
    return torch.rand(batch, HEADS_KV, generator=torch.Generator().manual_seed(seed)) + 0.5


def exact(call: dict[str, torch.Tensor], descales: dict[str, torch.Tensor]) -> torch.Tensor:
    """Causal attention in float32 of the true values, with SDPA."""
    true = []
    for name in "qkv":
        value = descales[f"{name}_descale"]
        by_head = value if value.dim() == 2 else value.reshape(1, 1).expand(call["q"].shape[0], HEADS_KV)
        heads = call[name].float().transpose(1, 2)
        repeat = heads.shape[1] // HEADS_KV
        heads = heads * by_head.repeat_interleave(repeat, 1)[:, :, None, None]
        true.append(heads.repeat_interleave(HEADS_Q // heads.shape[1], 1))
    return torch.nn.functional.scaled_dot_product_attention(*true, is_causal=True).transpose(1, 2)


def test_8_bit_input_with_descales_is_close_to_the_truth() -> None:
    call = inputs(2, 200, 200)
    descales = {"q_descale": per_head(2, 1), "k_descale": per_head(2, 2), "v_descale": torch.tensor(0.25)}
    out = attention(**call, **descales, causal=True)
    assert isinstance(out, torch.Tensor) and out.dtype == torch.bfloat16
    wanted = exact(call, descales)
    assert float((out.float() - wanted).abs().max()) < 0.06 * float(wanted.abs().max())
    assert float((out.float() - wanted).norm() / wanted.norm()) < 0.04


def test_probabilities_are_rounded_as_256_times_themselves_but_not_in_the_sum() -> None:
    """Sixteen keys with a score of 0 next to one of 7: exp(-7) itself would be 0 in e4m3."""
    q, k, v = torch.zeros(1, 1, 1, 64), torch.zeros(1, 32, 1, 64), torch.zeros(1, 32, 1, 64)
    q[..., 0], k[0, 0, 0, 0] = 1, 7
    v[0, 16:, 0, 0] = 1
    call = {name: tensor.to(E4M3) for name, tensor in (("q", q), ("k", k), ("v", v))}
    out, lse = launch(Params(**call, softmax_scale=1.0, return_lse=True))
    p = math.exp(-7.0)
    rounded = torch.tensor(256 * p).to(E4M3).item() / 256
    assert rounded > 0 and torch.tensor(p).to(E4M3).item() == 0
    total = 1 + 31 * p
    assert lse.item() == pytest.approx(7 + math.log(total), rel=1e-6)
    assert out[0, 0, 0, 0].item() == torch.tensor(16 * rounded / total).bfloat16().item()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"mask": "causal"},
    {"softcap": 5.0},
    {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    {"softcap": 5.0, "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    {"sinks": torch.tensor([1.0, 2.0, -1.0, 0.0])},
    {"mask": "causal", "skip_softmax_threshold": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_descales_of_q_and_k_multiply_the_scale(options: dict[str, Any]) -> None:
    """Powers of two leave all roundings alone, so the bits agree."""
    call = inputs(1, 90, 300)
    q_descale, k_descale = torch.tensor([[0.5, 0.5]]), torch.tensor([4.0])
    out, lse = launch(Params(**call, **options, q_descale=q_descale, k_descale=k_descale, return_lse=True))
    wanted, wanted_lse = launch(Params(**call, **options, softmax_scale=2 * 64**-0.5, return_lse=True))
    assert torch.equal(out, wanted) and torch.equal(lse, wanted_lse)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_each_kv_head_of_each_request_has_its_own_descales(options: dict[str, Any]) -> None:
    call = inputs(2, 90, 200)
    descales = {f"{name}_descale": per_head(2, seed) for seed, name in enumerate("qkv")}
    out = launch(Params(**call, **descales, **options))
    assert isinstance(out, torch.Tensor)
    repeat = HEADS_Q // HEADS_KV
    for index in range(2):
        for head in range(HEADS_KV):
            heads = slice(head * repeat, (head + 1) * repeat)
            alone = {name: call[name][index : index + 1, :, head : head + 1] for name in "kv"}
            mine = {name: value[heads] if isinstance(value, torch.Tensor) else value for name, value in options.items()}
            scalars = {name: value[index, head] for name, value in descales.items()}
            wanted = launch(Params(call["q"][index : index + 1, :, heads], **alone, **scalars, **mine))
            assert torch.equal(out[index : index + 1, :, heads], wanted)


def test_the_descale_of_v_multiplies_the_output() -> None:
    call = inputs(1, 40, 100)
    plain, scaled = launch(Params(**call)), launch(Params(**call, v_descale=torch.tensor(2.0)))
    assert isinstance(plain, torch.Tensor) and torch.equal(scaled, 2 * plain)  # type: ignore[arg-type]


def test_8_bit_input_gives_the_output_that_is_asked_for() -> None:
    call = inputs(1, 40, 100)
    out = torch.empty(1, 40, HEADS_Q, 64, dtype=torch.float16)
    plain = launch(Params(**call))
    assert launch(Params(**call, out=out)) is out
    assert isinstance(plain, torch.Tensor)
    torch.testing.assert_close(out.float(), plain.float(), rtol=2**-8, atol=0)


def test_rows_without_keys_and_pages_with_garbage() -> None:
    call = inputs(1, 40, 48)
    pages = {name: torch.full((5, 16, HEADS_KV, 64), math.nan).to(E4M3) for name in "kv"}
    for name in "kv":
        pages[name].view(torch.uint8)[1:4] = call[name].view(torch.uint8).reshape(3, 16, HEADS_KV, 64)
    table = torch.tensor([[1, 2, 3, 9]], dtype=torch.int32)
    used = torch.tensor([48], dtype=torch.int32)
    out = launch(Params(call["q"], pages["k"], pages["v"], page_table=table, seqused_k=used, mask="causal"))
    wanted = launch(Params(**call, mask="causal"))
    assert torch.equal(out, wanted)  # type: ignore[arg-type]
    out, lse = launch(Params(call["q"], call["k"][:, :8], call["v"][:, :8], mask="causal", return_lse=True))
    assert (out[0, :32] == 0).all() and (lse[0, :32] == -math.inf).all() and (out[0, 32:] != 0).any()


def test_128_rows_decide_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 100 would lose the first tile; on SM90 that keeps it for rows 64 to 127 only."""
    q, k, v = torch.zeros(1, 256, 1, 64), torch.zeros(1, 256, 1, 64), torch.zeros(1, 256, 1, 64)
    q[..., 0], k[0, 128:, 0, 0] = 1, 8
    q[0, 100] = 0
    maps = {}
    for arch, groups in (("sm90", 4), ("sm100", 2)):
        monkeypatch.setenv(REFERENCE_VARIABLE, arch)
        stats = torch.zeros(2, dtype=torch.int64)
        skip_map = torch.zeros(1, 1, groups, 2, dtype=torch.uint8)
        call = Params(
            q.bfloat16(),
            k.bfloat16(),
            v.bfloat16(),
            mask="window",  # visited from the last tile down
            softmax_scale=1.0,
            skip_softmax_threshold=0.1,
            stats=stats,
            skip_map=skip_map,
        )
        launch(call)
        maps[arch] = skip_map[0, 0].tolist()
        assert stats.tolist() == [2 * groups, sum(row.count(2) for row in maps[arch])]
    assert maps == {"sm90": [[2, 1], [1, 1], [2, 1], [2, 1]], "sm100": [[1, 1], [2, 1]]}
