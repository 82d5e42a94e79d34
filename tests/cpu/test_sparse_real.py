"""Calibration on real skipping: a model of attention alone, on the reference, which takes the kernels' decisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from skimattn import Params, launch
from skimattn.sparse import (
    ModelRunner,
    Outcome,
    Quality,
    StatLog,
    attention_modules,
    calibrate,
    dropped_from_lse,
    policy_of,
    read_statistics,
    sparsify,
    summary,
)

from tests.helpers.sparse_models import ToyModel

HEADS, ROWS = 2, 128
THRESHOLDS = (1e-3, 0.01, 0.05, 0.2, 0.5)


def attend(model: ToyModel, sample: Any, phase: Any, tells_dropped: bool = True) -> Outcome:
    """One call for each layer with its policy, as an integration makes it: of a prompt the last chunk, or one step.

    Tiles lie below the sink by gaps, which heads and layers spread differently far.
    """
    generator = torch.Generator().manual_seed(sample[0])
    dropped, loss = {}, 2.0
    for index, (name, module) in enumerate(attention_modules(model).items()):
        q, k, v = torch.randn(3, 1, len(sample), HEADS, 64, generator=generator)
        widths = torch.tensor([4.0, 7.0]) + 4 * index
        gaps = torch.rand(1, -(-len(sample) // 128), HEADS, generator=generator) * widths
        gaps[:, 0] = 0  # the sink
        q[..., 0], k[..., 0] = 8, -gaps.repeat_interleave(128, 1)[:, : len(sample)]  # scores are that far below
        k[..., 1:] /= 8
        rows = slice(-1, None) if phase == "decode" else slice(-ROWS, None)
        call = Params(q[:, rows].bfloat16(), k.bfloat16(), v.bfloat16(), mask="causal", return_lse=True)
        policy = policy_of(module)
        rule = policy.rule(phase) if policy else None
        if policy is None or rule is None:
            continue
        threshold = rule.threshold(len(sample))
        if isinstance(threshold, torch.Tensor):
            threshold = threshold.expand(1, HEADS).contiguous()
        counts = policy.collector.counts(phase, 1, HEADS, q.device) if policy.collector else None
        skips = Params(
            call.q, call.k, call.v, mask="causal", return_lse=True, skip_softmax_threshold=threshold, stats=counts
        )
        _, kept = launch(skips)
        if not tells_dropped:
            continue
        _, dense = launch(call)
        mass = dropped_from_lse(kept, dense).double().mean((0, 1))
        dropped[name], loss = mass.numpy(), loss + float(mass.sum())
    return Outcome(loss, dropped=dropped)


def samples(seeds: range, *lengths: int) -> list[list[int]]:
    return [[seed] * length for seed in seeds for length in lengths]


@pytest.mark.parametrize("quality", [None, Quality(by="head", cost="dropped", corrections=1)])
def test_held_out_texts_skip_what_was_asked_for(quality: Quality | None, tmp_path: Any) -> None:
    model = ToyModel(2, HEADS)
    runner = ModelRunner(model, lambda sample, phase: attend(model, sample, phase, quality is not None))
    found = calibrate(
        model,
        samples(range(4), *((1024, 1536) if quality is None else (1024,))),
        {"prefill": 0.4, "decode": 0.5},
        runner=runner,
        thresholds=THRESHOLDS,
        quality=quality,
        progress=False,
    )
    sparsify(model, found.config, count=True)
    for sample in samples(range(100, 104), 1024, 1536):
        attend(model, sample, "prefill", tells_dropped=False)
        attend(model, sample, "decode", tells_dropped=False)
    assert summary(model).sparsity("prefill") == pytest.approx(0.4, abs=0.1), "few tiles"
    assert summary(model).sparsity("decode") == pytest.approx(0.5, abs=0.12), "few tiles"
    with StatLog(tmp_path / "x.jsonl", model) as log:
        attend(model, samples(range(5, 6), 1024)[0], "prefill")
        log.step(tokens={"prefill": 512})
    visited, skipped = read_statistics(tmp_path / "x.jsonl").tiles["prefill"].sum((0, 1)).tolist()
    assert visited == 2 * HEADS * (8 + 8) and 0 < skipped < visited
