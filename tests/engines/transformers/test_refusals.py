"""What is not recognised is refused by name, and says what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from skimattn import ArgumentError
from skimattn.integrations.transformers import phase, register
from skimattn.integrations.transformers._attention import attention
from skimattn.integrations.transformers._mask import attention_mask
from transformers import masking_utils

from .families import RELEASE, logits_of, model_of, padded, tokens_of

TOKENS = tokens_of(2, 12)


def refused(name: str, *words: str) -> Any:
    """The error of an argument, which must also say ``words``."""
    return pytest.raises(ArgumentError, match=f"(?s)^{name}: expected" + "".join(f".*{word}" for word in words))


def test_masks_of_four_dimensions() -> None:
    full = torch.ones(2, 1, 12, 12, dtype=torch.bool).tril()
    with refused("attention_mask", "sdpa and eager take"):
        logits_of(model_of("llama"), "skimattn", TOKENS, attention_mask=full)
    with refused("attention_mask", "sdpa and eager take"):  # numbers, and shaped as one of ours might be
        logits_of(model_of("llama"), "skimattn", TOKENS, attention_mask=full[:, :, :1, :3].int())


def test_padding_between_tokens() -> None:
    mask = torch.ones_like(TOKENS)
    mask[1, 5] = 0
    with refused("attention_mask", "padding before all tokens", "1 rows"):
        logits_of(model_of("llama"), "skimattn", TOKENS, attention_mask=mask)


def test_tokens_behind_right_padding() -> None:
    model = model_of("llama")
    model.set_attn_implementation("skimattn")
    with refused("attention_mask", "pad on the left to generate"):
        model.generate(TOKENS, attention_mask=padded([12, 7], 12, "right"), max_new_tokens=3, pad_token_id=0)


@pytest.mark.parametrize(("change", "named"), [("or_mask_function", "or_masks"), ("and_mask_function", "<lambda>")])
def test_changed_mask_functions(change: str, named: str) -> None:
    config = model_of("llama").config
    embeddings = torch.zeros(2, 12, 64)
    names = {"inputs_embeds": embeddings, "cache": None}
    if RELEASE < 5:
        names = {"input_embeds": embeddings, "past_key_values": None, "cache_position": torch.arange(12)}
    config._attn_implementation = "skimattn"
    with refused("mask_function", "without or_mask_function", named):
        masking_utils.create_causal_mask(
            config=config, attention_mask=None, **names, **{change: lambda b, h, q, k: (q >= 0) & (k >= 0)}
        )


def test_models_whose_images_or_texts_see_both_ways_by_an_or_mask() -> None:
    with refused("mask_function", "or_mask"):
        logits_of(model_of("gemma3", use_bidirectional_attention=True), "skimattn", TOKENS)


def test_chunks_of_packed_sequences() -> None:
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)
    with refused("position_ids", "chunked"):
        logits_of(model_of("llama4"), "skimattn", TOKENS, position_ids=positions, use_cache=False)


def test_dropout_and_gradients() -> None:
    model = model_of("llama", attention_dropout=0.25)
    model.train()
    with refused("dropout", "eval"):
        logits_of(model, "skimattn", TOKENS)
    model.eval()
    with torch.enable_grad(), refused("q", "no_grad"):
        logits_of(model, "skimattn", TOKENS)


def test_weights_of_attention() -> None:
    with refused("output_attentions", "never stored", "eager"):
        # A model of its own: 4.57 leaves what collects weights in a model whose forward has failed.
        logits_of(model_of("llama", num_hidden_layers=1), "skimattn", TOKENS, output_attentions=True)


def test_float32() -> None:
    with refused("q", "bfloat16|bf16"):
        logits_of(model_of("llama", torch.float32), "skimattn", TOKENS)


def call(mask: torch.Tensor | None = None, *, rows: int = 12, module: Any = None, **arguments: Any) -> torch.Tensor:
    """The attention function alone, with 12 keys."""
    q, k = torch.ones(2, 4, rows, 16, dtype=torch.bfloat16), torch.ones(2, 2, 12, 16, dtype=torch.bfloat16)
    module = torch.nn.Module() if module is None else module
    return attention(module, q, k, k, mask, **arguments)[0]


def mask_of(function: Any = masking_utils.causal_mask_function, **arguments: Any) -> torch.Tensor:
    """The mask function alone, for these calls."""
    return attention_mask(**{"batch_size": 2, "kv_length": 12, "q_length": 12, "mask_function": function} | arguments)


@pytest.mark.parametrize("name", ["head_mask", "position_bias", "indices", "something_new"])
def test_keywords_that_are_not_known_to_leave_attention_alone(name: str) -> None:
    assert call(mask_of(), **{name: None}).shape == (2, 12, 4, 16)
    with refused(name, "None, since"):
        call(mask_of(), **{name: torch.ones(4)})


def test_arguments_of_masks_that_are_new() -> None:
    with refused("something_new"):
        mask_of(something_new=1)


def test_no_mask_says_little() -> None:
    assert torch.equal(call(is_causal=True), call(mask_of()))
    assert torch.equal(call(module=SimpleNamespace(is_causal=True)), call(mask_of()))
    assert call(is_causal=False, rows=5).shape == (2, 5, 4, 16)
    with refused("attention_mask", "None with 5 queries and 12 keys"):
        call(is_causal=True, rows=5)


def test_a_layer_that_contradicts_its_mask() -> None:
    window = mask_of(masking_utils.sliding_window_causal_mask_function(4))
    assert torch.equal(call(window, sliding_window=4), call(sliding_window=4, is_causal=True))
    with refused("sliding_window", "5 with a mask that is window of 4 keys"):
        call(window, sliding_window=5)
    with refused("sliding_window", "5 with a mask that is causal"):
        call(mask_of(), sliding_window=5)
    with refused("is_causal", "config.is_causal"):
        call(mask_of(), is_causal=False)
    with refused("attention_mask", "a mask of 2 requests"):
        call(mask_of(batch_size=3))


def test_padding_of_another_shape() -> None:
    with refused("attention_mask", r"\[2, positions\]"):
        mask_of(attention_mask=torch.ones(2, 12, 12, dtype=torch.bool))
    with refused("attention_mask", r"\[2, positions\]"):
        mask_of(attention_mask=torch.ones(3, 12, dtype=torch.bool))


def test_offsets_of_packed_sequences_that_do_not_fit() -> None:
    offsets = torch.tensor([0, 5, 12])
    with refused("cu_seq_lens_q", "2 rows"):
        call(mask_of(), cu_seq_lens_q=offsets, cu_seq_lens_k=offsets)
    one = [
        x[:1] for x in (torch.ones(2, 4, 12, 16, dtype=torch.bfloat16), torch.ones(2, 2, 12, 16, dtype=torch.bfloat16))
    ]
    with refused("cu_seq_lens_k"):
        attention(torch.nn.Module(), one[0], one[1], one[1], mask_of(batch_size=1), cu_seq_lens_q=offsets)
    with refused("cu_seq_lens_q", "padding"):
        padding = padded([9], 12, "left").bool()
        mask = mask_of(batch_size=1, attention_mask=padding)
        attention(torch.nn.Module(), one[0], one[1], one[1], mask, cu_seq_lens_q=offsets, cu_seq_lens_k=offsets)


def test_stages_and_releases_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("name", "'prefill' or 'decode'"), phase("generate"):  # type: ignore[arg-type]
        pass
    monkeypatch.setattr(transformers, "__version__", "4.56.2")
    with pytest.raises(ImportError, match=r"expected 4\.57 or later"):
        register()
