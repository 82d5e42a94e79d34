"""Which stage forwards are in: by rule, by ``generate``, and as the caller says."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import transformers
from skimattn.integrations.transformers import DECODE_ROWS, phase, register
from skimattn.integrations.transformers._phase import phase_of
from skimattn.sparse.policy import PhaseRule

from .families import RELEASE, model_of, tokens_of
from .recording import policies

BOTH = {"prefill": PhaseRule(0.5, 0.0), "decode": PhaseRule(0.25, 0.0)}
DECODED = "decode"


def stages_of(length: int, rows: int = 1, **options: Any) -> list[str]:
    """Of the forwards of one ``generate`` over a prompt of ``length`` tokens, with 3 new ones."""
    model = model_of("llama", num_hidden_layers=1)
    model.set_attn_implementation("skimattn")
    tokens = tokens_of(rows, length)
    with policies(model, BOTH) as (counts,):  # type: ignore[arg-type]
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
            disable_compile=True,
            **options,
        )
    return list(counts.stages)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("length", [1, 20, 100])
def test_a_prompt_is_prefill_and_its_steps_are_decode(length: int, cache: str | None) -> None:
    assert stages_of(length, 2, cache_implementation=cache) == ["prefill", DECODED, DECODED]


@pytest.mark.parametrize("cache", [None, "static"])
def test_chunks_of_a_prompt_are_prefill_however_small(cache: str | None) -> None:
    made = stages_of(15, cache_implementation=cache, prefill_chunk_size=7)
    # 4.57 leaves the last token of the prompt to the loop that generates.
    assert made == (["prefill"] * 3 + [DECODED] * 2 if RELEASE >= 5 else ["prefill"] * 2 + [DECODED] * 3)


def test_speculative_steps_are_decode() -> None:
    tokens = stages_of(20, prompt_lookup_num_tokens=4)
    assert tokens[0] == "prefill" and set(tokens[1:]) <= {DECODED}


def test_an_assistant_that_continues_its_own_cache_decodes() -> None:
    assistant = model_of("llama", num_hidden_layers=1, hidden_size=32)
    assistant.set_attn_implementation("skimattn")
    with policies(assistant, BOTH) as (counts,):  # type: ignore[arg-type]
        stages_of(20, assistant_model=assistant)
    assert counts.stages[0] == "prefill" and set(counts.stages[1:]) == {DECODED}


def test_in_a_loop_of_ones_own_the_number_of_tokens_decides_unless_it_is_said() -> None:
    model, tokens = model_of("llama", num_hidden_layers=1), tokens_of(1, 300)
    model.set_attn_implementation("skimattn")
    with policies(model, BOTH) as (counts,):  # type: ignore[arg-type]
        cache = transformers.DynamicCache(config=model.config)
        model(tokens[:, :1], past_key_values=cache)
        model(tokens[:, 1 : 2 + DECODE_ROWS], past_key_values=cache)
        model(tokens[:, 66:130], past_key_values=cache)
        with phase("prefill"):
            model(tokens[:, 130:140], past_key_values=cache)
            with phase("decode"):
                model(tokens[:, 140:300], past_key_values=cache)
            model(tokens[:, :1], past_key_values=cache)
        model(tokens[:, :1], past_key_values=cache)
    assert counts.stages == ["prefill", "prefill", DECODED, "prefill", DECODED, "prefill", DECODED]


def test_what_the_caller_says_counts_in_generate_too() -> None:
    with phase("decode"):
        assert stages_of(20) == [DECODED] * 3
    with phase("prefill"):
        assert stages_of(20) == ["prefill"] * 3


def test_what_is_said_holds_for_a_thread_and_ends_with_an_error() -> None:
    seen: list[str] = []
    with pytest.raises(KeyError), phase("decode"):
        other = threading.Thread(target=lambda: seen.append(phase_of(5, 0)))
        other.start()
        other.join()
        raise KeyError
    assert seen == ["prefill"] and phase_of(5, 0) == "prefill"


def test_registering_again_wraps_nothing_again() -> None:
    mixin = transformers.generation.GenerationMixin
    name = "_prefill" if RELEASE >= 5 else "_prefill_chunking"
    before = getattr(mixin, name)
    assert before.__wrapped__.__name__ == name, "generate has the method that says what a prompt is"
    register()
    assert getattr(mixin, name) is before
