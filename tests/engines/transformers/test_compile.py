"""torch.compile: whole forwards in one graph, steps of ``generate`` that compile once, and what cannot be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from skimattn.integrations.transformers import phase
from skimattn.sparse.policy import LayerPolicy, PhaseRule, attach_policy
from transformers import CompileConfig

from .families import DEVICE, RELEASE, logits_of, model_of, padded, tokens_of
from .recording import layers_of

LENGTH = 30
RULES = {"prefill": PhaseRule((9.0, 6.0, 8.0, 0.0)), "decode": PhaseRule(7.0)}  # 30 keys: near 0.25


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """How many were compiled."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("inputs", ["nothing", "padding", "padding without a cache"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_a_forward_with_its_masks_is_one_graph(family: str, inputs: str) -> None:
    if RELEASE < 5 and family == "gpt_oss":
        pytest.skip("the experts of 4.57 cannot be traced whole")
    model, tokens = model_of(family), tokens_of(2, LENGTH)
    given: dict[str, Any] = {} if inputs == "nothing" else {"attention_mask": padded([LENGTH, 13], LENGTH, "left")}
    given |= {"use_cache": False} if "without" in inputs else {}
    for module in layers_of(model):
        attach_policy(module, LayerPolicy(RULES))  # type: ignore[arg-type]
    try:
        plain = logits_of(model, "skimattn", tokens, **given)
        compiled = torch.compile(model, fullgraph=True, backend="eager")(tokens, **given).logits.float()
    finally:
        for module in layers_of(model):
            attach_policy(module, None)
    assert torch.equal(compiled, plain) and graphs() == 1


def steps(model: Any, tokens: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    """Logits of 8 greedy steps over a static cache."""
    made = model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        cache_implementation="static",
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return torch.stack(made.logits)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_steps_of_generate_compile_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_steps(family, monkeypatch, "aot_eager")


def test_inductor_reads_keys_behind_padding_where_they_lie() -> None:
    model, tokens = model_of("llama", num_hidden_layers=1), tokens_of(2, LENGTH)
    given = {"attention_mask": padded([LENGTH, 13], LENGTH, "left"), "use_cache": False}
    plain = logits_of(model, "skimattn", tokens, **given)
    compiled = torch.compile(model, fullgraph=True)(tokens, **given).logits.float()
    assert (compiled - plain).abs().max().item() < 0.03 * plain.abs().max().item()


@pytest.mark.gpu
def test_steps_of_generate_in_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DEVICE == "cuda"
    compile_steps("llama", monkeypatch, "inductor", mode="reduce-overhead")


def compile_steps(
    family: str, monkeypatch: pytest.MonkeyPatch, backend: str, mode: str = "default", **changes: Any
) -> None:
    model, tokens, mask = model_of(family, **changes), tokens_of(2, LENGTH), padded([LENGTH, 13], LENGTH, "left")
    model.set_attn_implementation("skimattn")
    for module in layers_of(model):
        attach_policy(module, LayerPolicy(RULES))  # type: ignore[arg-type]
    try:
        plain = steps(model, tokens, mask, disable_compile=True)
        # transformers compiles by itself on accelerators only.
        monkeypatch.setattr(type(model), "_valid_auto_compile_criteria", lambda *_: True)
        how = CompileConfig(fullgraph=True, backend=backend, mode=mode)
        compiled = steps(model, tokens, mask, compile_config=how)
    finally:
        for module in layers_of(model):
            attach_policy(module, None)
    off = (compiled - plain).abs().max().item()
    assert off == 0 if backend == "aot_eager" else off < 0.05 * plain.abs().max().item()
    assert 1 <= graphs() <= 2, "eight steps, of which the first may differ"


def test_a_stage_that_is_said_is_seen_by_compiled_code() -> None:
    model, tokens = model_of("llama"), tokens_of(1, LENGTH)
    model.set_attn_implementation("skimattn")
    attach_policy(layers_of(model)[0], LayerPolicy({"decode": PhaseRule(0.9, 0.0)}))
    try:
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        dense, skipping = compiled(tokens).logits, None
        with phase("decode"):
            skipping = compiled(tokens).logits
            assert torch.equal(skipping, model(tokens).logits)
        assert torch.equal(dense, compiled(tokens).logits)
    finally:
        attach_policy(layers_of(model)[0], None)
    assert graphs() == 2


def test_padding_between_tokens_is_refused_in_compiled_code_too() -> None:
    model, tokens = model_of("llama"), tokens_of(2, LENGTH)
    model.set_attn_implementation("skimattn")
    mask = torch.ones_like(tokens)
    mask[1, 5] = 0
    with pytest.raises(RuntimeError, match="pad on the left to generate"):
        torch.compile(model, fullgraph=True, backend="eager")(tokens, attention_mask=mask)


def test_masks_that_may_be_of_packed_sequences_are_refused_while_traced() -> None:
    model, tokens = model_of("llama"), tokens_of(1, LENGTH)
    model.set_attn_implementation("skimattn")
    with pytest.raises(Exception, match="without a cache pass attention_mask"):
        torch.compile(model, fullgraph=True, backend="eager")(tokens, use_cache=False)
