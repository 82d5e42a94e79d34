"""Planted inputs of which every threshold skips a share of its own: by the definition of the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from bench import decode_work, graded
from bench.decode_inputs import keys_of
from bench.shape import Shape
from bench.skip_work import DECODE, PREFILL, WAN


def gaps_of(scores: torch.Tensor, block: int) -> torch.Tensor:
    """How far below the row maximum the largest score of each block is, in nats, [..., rows, blocks]."""
    best = scores.unflatten(-1, (-1, block)).amax(-1)
    return best.amax(-1, keepdim=True) - best


@pytest.mark.parametrize("dtype", ["bf16", "e4m3"])
@pytest.mark.parametrize("table", [PREFILL, WAN], ids=["published", "wan"])
def test_every_threshold_skips_its_share_with_a_margin(dtype: str, table: Mapping[float, float]) -> None:
    """By the definition of the scores, for every row alone, at the thresholds of 64k: none lies near one of them."""
    shape = Shape(4096, "full", 2, 2, 128, dtype)
    thresholds = [(factor / 65536, share) for share, factor in table.items()]
    made = graded.prefill(shape, thresholds, "cpu")
    q, k = (x[0].transpose(0, 1).double() for x in (made.inputs.q, made.inputs.k))
    gaps = gaps_of(q[:, ::64] @ k.transpose(1, 2) * 128**-0.5, 256)
    for (threshold, share), drop in zip(thresholds, made.drops, strict=True):
        over = gaps + math.log(threshold)  # above 0: may be skipped
        assert torch.equal(over > 0, torch.from_numpy(drop)[:, None].expand_as(over)) and over.abs().min() > 0.15
        assert abs(drop.mean() - share) < 0.06 and not drop[:, 0].any()
    assert made.inputs.q.float().std() == pytest.approx(1, abs=0.15) and made.inputs.v.float().std() > 0.9


def test_every_threshold_skips_its_share_of_a_cache() -> None:
    work = decode_work.Work("a step", (1280, 1280), (1, 1), heads_q=4, heads_kv=2, cache="e4m3")
    thresholds = [(factor / 65536, share) for share, factor in DECODE.items()]
    made = graded.decode(work, 2, thresholds, "cpu")
    for copy in range(2):
        for request in range(2):
            k, _ = keys_of(made.cache, work, copy, request)
            q = made.cache.q[request].view(2, 2, 128).double()
            gaps = gaps_of(q @ k.double().permute(1, 2, 0) * 128**-0.5, 64)
            for (threshold, share), drop in zip(thresholds, made.drops, strict=True):
                over = gaps + math.log(threshold)
                assert torch.equal(over > 0, drop[copy, request][:, None].expand_as(over)) and over.abs().min() > 0.15
                assert (drop.sum(-1) == round(share * 20)).all()
    assert not torch.equal(made.drops[4][0, 0, 0], made.drops[4][0, 1, 0]), "requests should differ"


def test_planted_lengths_are_multiples() -> None:
    with pytest.raises(ValueError, match="seqlen: expected a multiple of 256 for planted inputs \\(got 300\\)"):
        graded.prefill(Shape(300, "causal", 1, 1), [(0.1, 0.5)], "cpu")
