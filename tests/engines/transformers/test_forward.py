"""One forward: prefill of every family, with padding of both sides, with and without a cache, and packed."""

from __future__ import annotations

import pytest
import torch

from .families import FAMILIES, RELEASE, logits_of, model_of, padded, tokens_of, truth_of

LENGTH = 40
BATCHES = {
    "full": None,
    "left": padded([LENGTH, 17], LENGTH, "left"),
    "right": padded([17, LENGTH], LENGTH, "right"),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_is_what_eager_attention_gives(family: str, batch: str) -> None:
    tokens, mask = tokens_of(2, LENGTH), BATCHES[batch]
    kept = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    truth = truth_of(family, tokens, kept, attention_mask=mask)
    for use_cache in (True, False):
        logits = logits_of(model_of(family), "skimattn", tokens, attention_mask=mask, use_cache=use_cache)
        assert torch.isfinite(logits).all(), "rows of padding are finite too"
        truth.check(logits[kept])


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3"])
def test_sequences_packed_by_position_ids_do_not_see_each_other(family: str) -> None:
    tokens, lengths = tokens_of(2, LENGTH), ([11, 29], [LENGTH])
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths]).to(tokens.device)
    inputs = {"position_ids": positions, "use_cache": False}
    truth_of(family, tokens, **inputs).check(logits_of(model_of(family), "skimattn", tokens, **inputs))


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_sequences_packed_by_offsets_are_those_packed_by_position_ids(family: str) -> None:
    tokens = tokens_of(1, LENGTH)
    positions = torch.cat([torch.arange(11), torch.arange(29)])[None].to(tokens.device)
    offsets = torch.tensor([0, 11, LENGTH], device=tokens.device)
    given = {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": 29, "max_length_k": 29}
    by_positions = logits_of(model_of(family), "skimattn", tokens, position_ids=positions, use_cache=False)
    by_offsets = logits_of(model_of(family), "skimattn", tokens, position_ids=positions, use_cache=False, **given)
    assert torch.equal(by_positions, by_offsets)
    # Where transformers sees no packing, since there is a mask, the offsets alone say it.
    masked = {"position_ids": positions, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    assert torch.equal(by_positions, logits_of(model_of(family), "skimattn", tokens, **masked, **given))


@pytest.mark.skipif(RELEASE < 5, reason="4.57 makes no bidirectional masks for decoders")
@pytest.mark.parametrize("batch", ["full", "left", "right"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_model_that_sees_both_ways(family: str, batch: str) -> None:
    tokens, mask, changes = tokens_of(2, LENGTH), BATCHES[batch], {"is_causal": False}
    kept = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    inputs = {"attention_mask": mask, "use_cache": False}
    truth = truth_of(family, tokens, kept, **inputs, changes=changes)
    truth.check(logits_of(model_of(family, **changes), "skimattn", tokens, **inputs)[kept])


def test_a_request_has_the_same_bits_alone_and_padded_beside_others() -> None:
    tokens, mask = tokens_of(2, LENGTH), padded([LENGTH, 17], LENGTH, "left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model = model_of("llama")
    beside = logits_of(model, "skimattn", tokens, attention_mask=mask, position_ids=positions)[1, -17:]
    alone = logits_of(model, "skimattn", tokens[1:, -17:], position_ids=positions[1:, -17:])[0]
    truth = truth_of("llama", tokens[1:, -17:])
    truth.check(beside[None])
    truth.check(alone[None])
