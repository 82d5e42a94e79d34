"""``generate``: every family, kind of cache and way to prefill, checked step by step against float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from .families import FAMILIES, RELEASE, logits_of, model_of, padded, tokens_of, truth_of

PROMPT, NEW = 30, 10  # past the window of 24 in the prompt, and over the border of a chunk


def skip_what_transformers_cannot(family: str, cache: str | None) -> None:
    if RELEASE < 5 and family == "deepseek_v3" and cache == "static":
        pytest.skip("static caches of 4.57 hold values as wide as keys only")


def generated(
    family: str, tokens: torch.Tensor, mask: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens ``[rows, NEW]`` and the logits ``[rows, NEW, vocabulary]`` that they were chosen by."""
    model = model_of(family)
    model.set_attn_implementation("skimattn")
    made = model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        disable_compile=True,
        **options,
    )
    return made.sequences, torch.stack(made.logits, dim=1).float()


def check_steps(family: str, mask: torch.Tensor, sequences: torch.Tensor, logits: torch.Tensor) -> None:
    """Each step's logits against one float32 forward over what was generated, and each token against both."""
    prompt = mask.shape[1]
    whole = torch.nn.functional.pad(mask, (0, NEW - 1), value=1)
    positions = (whole.cumsum(1) - 1).masked_fill(whole == 0, 1)
    kept = torch.zeros_like(whole, dtype=torch.bool)
    kept[:, prompt - 1 :] = True
    truth = truth_of(family, sequences[:, :-1], kept, attention_mask=whole, position_ids=positions)
    truth.check(logits.flatten(0, 1))
    chosen = sequences[:, prompt:].flatten()
    behind = truth.exact.max(dim=1).values - truth.exact.gather(1, chosen[:, None])[:, 0]
    assert behind.max().item() <= 2 * 2.5 * truth.most + 2e-4, "a token that float32 would not have chosen"


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_steps_behind_left_padding(family: str, cache: str | None) -> None:
    skip_what_transformers_cannot(family, cache)
    mask = padded([PROMPT, 13], PROMPT, "left")
    sequences, logits = generated(family, tokens_of(2, PROMPT), mask, cache_implementation=cache)
    check_steps(family, mask, sequences, logits)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
def test_greedy_steps_without_padding(family: str) -> None:
    mask = padded([PROMPT, PROMPT], PROMPT, "left")
    check_steps(family, mask, *generated(family, tokens_of(2, PROMPT), mask))


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt_oss", "llama4", "deepseek_v3"])
def test_a_prompt_in_chunks(family: str, cache: str | None) -> None:
    skip_what_transformers_cannot(family, cache)
    mask = padded([PROMPT, PROMPT], PROMPT, "left")
    made = generated(family, tokens_of(2, PROMPT), mask, cache_implementation=cache, prefill_chunk_size=7)
    check_steps(family, mask, *made)


@pytest.mark.parametrize("family", ["llama", "gemma2", "deepseek_v3"])
def test_speculative_steps(family: str) -> None:
    tokens = tokens_of(1, 10).repeat(1, 3)  # the prompt repeats itself, so there is something to look up
    mask = torch.ones_like(tokens)
    sequences, logits = generated(family, tokens, mask, prompt_lookup_num_tokens=4)
    check_steps(family, mask, sequences[:, : PROMPT + NEW], logits[:, :NEW])


@pytest.mark.parametrize("kind", ["dynamic", "static", "static, with a mask over all of it"])
def test_a_cache_that_is_continued(kind: str) -> None:
    """A second turn of several tokens behind what is cached, a step of one token, and a third turn."""
    model, tokens = model_of("llama"), tokens_of(2, 36)
    model.set_attn_implementation("skimattn")
    cache = transformers.StaticCache(model.config, 48) if "static" in kind else transformers.DynamicCache()
    mask = {"attention_mask": torch.ones(2, 48, device=tokens.device)} if "mask" in kind else {}
    name = "cache" if RELEASE >= 5 else "past_key_values"
    parts = []
    for begin, end in ((0, 20), (20, 29), (29, 30), (30, 36)):
        places = {"position_ids": torch.arange(begin, end, device=tokens.device)[None]}
        places |= {} if RELEASE >= 5 else {"cache_position": places["position_ids"][0]}
        parts.append(model(tokens[:, begin:end], **{name: cache}, **mask, **places).logits.float())
    truth_of("llama", tokens).check(torch.cat(parts, dim=1))


def test_attention_matters_to_these_models() -> None:
    """With two keys fewer their logits are farther off than rounding can explain."""
    tokens = tokens_of(2, 40)
    for family in FAMILIES:
        truth = truth_of(family, tokens)
        other = logits_of(model_of(family), "eager", tokens, attention_mask=padded([40, 38], 40, "left"))
        off = (other[1, -2:] - truth.exact[1, -2:]).abs()
        assert off.mean().item() > 2 * truth.mean, family
