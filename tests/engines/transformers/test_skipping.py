"""Policies at work: real skipping, with the decisions that requests alone would get, and counted so."""

from __future__ import annotations

import pytest
import torch
import transformers
from skimattn import Params, launch
from skimattn.sparse.policy import LayerPolicy, PhaseRule, attach_policy

from .families import logits_of, model_of, padded, tokens_of
from .recording import Counts, handed, launched, layers_of, near_sighted, policies

__all__ = ["handed", "launched"]
LENGTH, SHORT = 520, 300  # five tiles of 128 keys, and three
THRESHOLD = 0.02
Handed = tuple[torch.Tensor, ...]


def alone(call: Handed, row: int, keys: slice, threshold: float | torch.Tensor, rows: int = 0) -> torch.Tensor:
    """What a request counts ``[Hq, 2]`` in a call of its own: these keys, and as many rows or that many last ones."""
    q, k, v = (x[row : row + 1].transpose(1, 2) for x in call)
    q = q[:, -rows:] if rows else q[:, keys]
    k, v = k[:, keys].contiguous(), v[:, keys].contiguous()
    stats = torch.zeros(1, q.shape[2], 2, dtype=torch.int64, device=q.device)
    used = torch.tensor([k.shape[1]], dtype=torch.int32, device=q.device)
    launch(Params(q.contiguous(), k, v, mask="causal", skip_softmax_threshold=threshold, stats=stats, seqused_k=used))
    return stats[0]


def check_counts(counts: Counts, expected: list[torch.Tensor], least: float) -> None:
    """The last call's counts are those of the requests alone, and enough was skipped."""
    stats = counts.calls[-1][1]
    assert stats.tolist() == torch.stack(expected).tolist()
    visited, skipped = stats.sum((0, 1)).tolist()
    assert skipped >= least * visited, f"{skipped} of {visited}"


def test_prefill_skips_what_requests_alone_would_skip(handed: list[Handed]) -> None:
    model, tokens = near_sighted(), tokens_of(2, LENGTH)
    mask = padded([LENGTH, SHORT], LENGTH, "left")
    dense = logits_of(model, "skimattn", tokens, attention_mask=mask)
    with policies(model, {"prefill": PhaseRule(THRESHOLD, 0.0)}) as (counts,):
        sparse = logits_of(model, "skimattn", tokens, attention_mask=mask)
    assert counts.stages == ["prefill"]
    expected = [alone(handed[-1], row, slice(LENGTH - n, LENGTH), THRESHOLD) for row, n in enumerate((LENGTH, SHORT))]
    check_counts(counts, expected, least=0.15)
    assert not torch.equal(sparse[0], dense[0])
    off = (sparse - dense)[mask.bool()].abs()
    assert 0 < off.max().item() < 0.25 * dense.abs().max().item(), "what is skipped weighs little"


def test_right_padding_does_not_vote(handed: list[Handed]) -> None:
    model, tokens = near_sighted(), tokens_of(2, LENGTH)
    with policies(model, {"prefill": PhaseRule(THRESHOLD, 0.0)}) as (counts,):
        logits_of(model, "skimattn", tokens, attention_mask=padded([LENGTH, SHORT], LENGTH, "right"))
    expected = [alone(handed[-1], row, slice(n), THRESHOLD) for row, n in enumerate((LENGTH, SHORT))]
    check_counts(counts, expected, least=0.15)


@pytest.mark.parametrize("kind", [None, "static"])
def test_decode_skips_by_head_behind_padding(handed: list[Handed], kind: str | None) -> None:
    model, tokens = near_sighted(), tokens_of(2, LENGTH)
    model.set_attn_implementation("skimattn")
    factors = (2.0, 20.0, 0.0, 20.0)  # divided by the lengths; a head with 0 never lets its group skip
    with policies(model, {"decode": PhaseRule(factors)}) as (counts,):
        model.generate(
            tokens,
            attention_mask=padded([LENGTH, SHORT], LENGTH, "left"),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
            cache_implementation=kind,
            disable_compile=True,
        )
    assert counts.stages == ["decode"] * 2, "prefill has no rule, so it is dense and is not counted"
    expected = []
    for row, length in enumerate((LENGTH, SHORT)):
        threshold = torch.tensor([factors], device=tokens.device) / (length + 2)
        expected.append(alone(handed[-1], row, slice(LENGTH - length, LENGTH + 2), threshold, rows=1))
    check_counts(counts, expected, least=0.2)
    stats = counts.calls[-1][1]
    assert stats[:, 2:, 1].sum() == 0 and (stats[:, :2, 1] > 0).all(), "heads 2 and 3 decide together"


def test_packed_sequences_skip_each_for_itself(handed: list[Handed]) -> None:
    model, tokens = near_sighted(), tokens_of(1, LENGTH + SHORT)
    positions = torch.cat([torch.arange(LENGTH), torch.arange(SHORT)])[None].to(tokens.device)
    with policies(model, {"prefill": PhaseRule(THRESHOLD, 0.0)}) as (counts,):
        logits_of(model, "skimattn", tokens, position_ids=positions, use_cache=False)
    pieces = slice(0, LENGTH), slice(LENGTH, LENGTH + SHORT)
    check_counts(counts, [alone(handed[-1], 0, piece, THRESHOLD) for piece in pieces], least=0.15)


def test_without_rules_layers_are_dense_to_the_bit(launched: list[Params]) -> None:
    model, tokens = near_sighted(), tokens_of(1, 200)
    dense = logits_of(model, "skimattn", tokens)
    for policy in (LayerPolicy(), LayerPolicy({"prefill": PhaseRule(0.5, 0.0)}, enabled=False)):
        attach_policy(layers_of(model)[0], policy)
        assert torch.equal(logits_of(model, "skimattn", tokens), dense)
        assert launched[-1].skip_softmax_threshold is None
    attach_policy(layers_of(model)[0], LayerPolicy({"prefill": PhaseRule(0.0)}))
    assert torch.equal(logits_of(model, "skimattn", tokens), dense), "a threshold of 0 is dense"
    assert launched[-1].skip_softmax_threshold == 0.0
    attach_policy(layers_of(model)[0], None)


def test_lengths_are_the_keys_that_a_row_can_see(launched: list[Params]) -> None:
    """Of a request, of its window, whatever the cache; by length of each request where they differ."""
    model, tokens, rule = model_of("gemma3"), tokens_of(2, 40), PhaseRule(2.4)
    model.set_attn_implementation("skimattn")
    with policies(model, {"prefill": rule, "decode": rule}):
        for cache in (transformers.DynamicCache(), transformers.DynamicCache(config=model.config)):
            launched.clear()
            model(tokens, past_key_values=cache)
            model(tokens[:, :1], past_key_values=cache)
            assert [call.skip_softmax_threshold for call in launched] == pytest.approx([0.1, 2.4 / 40, 0.1, 2.4 / 41])
        launched.clear()
        model(tokens, attention_mask=padded([40, 15], 40, "left"))
        window, full = (call.skip_softmax_threshold.tolist() for call in launched)  # type: ignore[union-attr]
        assert window == pytest.approx([0.1, 2.4 / 15]) and full == pytest.approx([2.4 / 40, 2.4 / 15])
