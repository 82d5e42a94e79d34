"""Skipping is real, is what the rule says of the q and k that the models have, and stays out of cross attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from skimattn.integrations.diffusers import sparsify
from skimattn.sparse import policy_of, summary
from skimattn.sparse.config.kernels import kernels_here

from tests.helpers.oracle import Request, Rules, attend
from tests.helpers.recorded_counts import Counts

from .models import FAMILIES, Handed, hunyuan_inputs, model_of, output_of

THRESHOLD = 0.02


def counted(model: Any, place: str) -> Counts:
    policy = policy_of(model.get_submodule(place))
    assert policy is not None
    policy.collector = counts = Counts()
    return counts


def by_the_rule(
    call: tuple[torch.Tensor, ...], mask: torch.Tensor | None, thresholds: Callable[[int], list[float]]
) -> list[list[list[int]]] | None:
    """(visited, skipped) by request and head for diffusers' own q, k and v; ``thresholds``: of a request's keys.

    None: a decision is too close to call.
    """
    here = kernels_here("prefill", 64, mask="full")
    assert here is not None
    rules = Rules("full", 64**-0.5, here.tile[1], here.group_rows, here.order)
    found = []
    for row in range(len(call[0])):
        keys = slice(None) if mask is None else slice(int(mask[row].sum()))
        q, k, v = (x[row, keys].double().cpu().numpy() for x in call)
        answer = attend(rules, Request(q, k, v, np.asarray(thresholds(len(k)))))
        if answer.ambiguous:
            return None
        found.append(np.stack((answer.visited, answer.skipped), 1).tolist())
    return found


# Each kind of attention module, in a model in which it is the first one.
FIRST = {
    "wan": ("wan", "blocks.0.attn1", {"num_layers": 1}),
    "hunyuan joint": ("hunyuan", "transformer_blocks.0.attn", {"num_single_layers": 0}),
    "hunyuan single": ("hunyuan", "single_transformer_blocks.0.attn", {"num_layers": 0}),
    "flux joint": ("flux", "transformer_blocks.0.attn", {"num_single_layers": 0}),
    "flux single": ("flux", "single_transformer_blocks.0.attn", {"num_layers": 0}),
}


@pytest.mark.parametrize("case", FIRST)
def test_what_is_skipped_is_what_the_rule_says(case: str) -> None:
    family, place, changes = FIRST[case]
    inputs = FAMILIES[family].inputs()
    model = model_of(family, **changes)
    with Handed() as handed:
        dense = output_of(model, inputs)
    # Wan's cross attention comes later; HunyuanVideo's token refiner, which sees no video, earlier.
    index = next(index for index, call in enumerate(handed.calls) if call[1].shape[1] > 600)
    mask = handed.masks[index]
    assert (mask is not None) == (family == "hunyuan")
    trials = {one: by_the_rule(handed.calls[index], mask, lambda _, one=one: [one] * 2) for one in (0.02, 0.022)}
    threshold = next(one for one, found in trials.items() if found)
    sparsify(model, {"threshold": threshold})
    counts = counted(model, place)
    sparse = output_of(model, inputs)
    ((phase, stats),) = counts.calls
    assert phase == "prefill"
    assert stats.tolist() == trials[threshold]
    visited, skipped = stats.sum((0, 1)).tolist()
    assert skipped >= 0.15 * visited, f"{skipped} of {visited}"
    off = (sparse - dense).abs()
    assert 0 < off.max().item() < 0.25 * dense.abs().max().item(), "what is skipped weighs little"


def test_factors_by_head_are_divided_by_the_lengths_of_requests() -> None:
    model, inputs = model_of("hunyuan", num_single_layers=0), hunyuan_inputs((40, 13))
    with Handed() as handed:
        output_of(model, inputs)
    factors = [10.0, 40.0]
    sparsify(model, {"scale_factor": {"prefill": factors}})
    counts = counted(model, "transformer_blocks.0.attn")
    output_of(model, inputs)
    index = next(index for index, call in enumerate(handed.calls) if call[1].shape[1] > 600)
    expected = by_the_rule(handed.calls[index], handed.masks[index], lambda keys: [one / keys for one in factors])
    assert counts.calls[0][1].tolist() == expected
    skipped = counts.calls[0][1][..., 1]
    assert (skipped[:, 0] < skipped[:, 1]).all()


def test_padding_does_not_vote() -> None:
    model, both = model_of("hunyuan"), hunyuan_inputs((140, 13))  # whole groups of padding
    sparsify(model, {"scale_factor": 20.0})
    alone = {name: value[1:] if len(value) == 2 else value for name, value in both.items()}
    alone["encoder_hidden_states"] = alone["encoder_hidden_states"][:, :13]
    alone["encoder_attention_mask"] = alone["encoder_attention_mask"][:, :13]
    counts = counted(model, "transformer_blocks.0.attn")
    beside, by_itself = output_of(model, both)[1], output_of(model, alone)[0]
    assert counts.calls[0][1][1].tolist() == counts.calls[1][1][0].tolist()
    assert (beside - by_itself).abs().max() < 0.05 * by_itself.abs().max()


def test_cross_attention_and_refiners_stay_as_they_are() -> None:
    for family, kept in (("wan", "attn2"), ("vace", "attn2"), ("hunyuan", "context_embedder")):
        model = model_of(family)
        before = model.attn_processors
        sparsify(model, {"threshold": THRESHOLD}, count=True)
        after = model.attn_processors
        for name, processor in after.items():
            place = name.removesuffix(".processor")
            assert (processor is before[name]) == (kept in name)
            assert (policy_of(model.get_submodule(place)) is None) == (kept in name)
        output_of(model, FAMILIES[family].inputs())
        assert {row.layer for row in summary(model).rows} == set(FAMILIES[family].places)
        assert all(row.visited for row in summary(model).rows if row.phase == "prefill")


def test_layers_that_are_told_nothing_keep_their_processors() -> None:
    model = model_of("wan")
    before = model.attn_processors
    sparsify(model, {"patterns": {"blocks.1.*": {"threshold": THRESHOLD}}})
    after = model.attn_processors
    assert [name for name in after if after[name] is not before[name]] == ["blocks.1.attn1.processor"]
