"""What layers skip: policies that write down every call, and models in which there is something to skip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from skimattn import Params
from skimattn.integrations.transformers import NAME, _attention
from skimattn.sparse.policy import LayerPolicy, Phase, PhaseRule, attach_policy
from transformers import AttentionInterface

from tests.helpers.recorded_counts import Counts

from .families import DEVICE, model_of


def layers_of(model: transformers.PreTrainedModel) -> list[torch.nn.Module]:
    """The attention modules."""
    return [layer.self_attn for layer in model.model.layers]


@contextmanager
def policies(model: transformers.PreTrainedModel, rules: dict[Phase, PhaseRule]) -> Iterator[list[Counts]]:
    """Give all layers these rules; yields what each one counts."""
    counts = [Counts() for _ in layers_of(model)]
    for module, collector in zip(layers_of(model), counts, strict=True):
        attach_policy(module, LayerPolicy(rules, collector=collector))
    try:
        yield counts
    finally:
        for module in layers_of(model):
            attach_policy(module, None)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Params]:
    """All calls that attention makes, in order."""
    calls: list[Params] = []
    launch = _attention.launch

    def recorded(params: Params) -> Any:
        calls.append(params)
        return launch(params)

    monkeypatch.setattr(_attention, "launch", recorded)
    return calls


@pytest.fixture
def handed() -> Iterator[list[tuple[torch.Tensor, ...]]]:
    """The q, k and v ``[B, heads, rows or keys, columns]`` of every layer's call, as transformers hands them over."""
    calls: list[tuple[torch.Tensor, ...]] = []

    def recorded(module: torch.nn.Module, *tensors: torch.Tensor, **arguments: Any) -> Any:
        calls.append(tuple(x.clone() for x in tensors[:3]))
        return _attention.attention(module, *tensors, **arguments)  # type: ignore[arg-type]

    AttentionInterface.register(NAME, recorded)
    yield calls
    AttentionInterface.register(NAME, _attention.attention)


def near_sighted() -> transformers.PreTrainedModel:
    """A model whose rows weigh near keys most, as language models do, so that far tiles can be skipped.

    All queries and keys have a common part in columns that turn through about two radians in a tile of 128 keys.
    """
    sizes = {"head_dim": 64, "attention_bias": True, "hidden_size": 64, "num_hidden_layers": 1}
    model = model_of("llama", **sizes)
    for module in layers_of(model):
        for bias in (module.q_proj.bias, module.k_proj.bias):
            bias.view(-1, 64)[:, 10:17] = 5.0
    return model.to(DEVICE)
