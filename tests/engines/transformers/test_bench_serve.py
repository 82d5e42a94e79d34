"""The model with planted sinks that ``bench serve`` makes: what it skips, as the reference decides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from skimattn.integrations.transformers import Loaded, load
from skimattn.sparse import sparsify, summary

from bench.serve_models import SINK, Planted, planted_prompts, save_planted

SIZES = Planted(2, 8, 4, 64, 256, 256, 512, 4096)
LENGTH = 1024
NEVER = 1 / 4.5  # of the tiles of so short a prompt: the first one of each group of rows


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("planted")
    save_planted(folder, SIZES)
    return load(folder)


def skipped(loaded: Loaded, threshold: float) -> tuple[float, list[float]]:
    """The share of all tiles of a prompt, and of each layer's."""
    [prompt] = planted_prompts(LENGTH, 1, SIZES.vocabulary)
    sparsify(loaded.model, {"threshold": threshold}, count=True)
    with torch.no_grad():
        loaded.model(torch.tensor([prompt]), use_cache=False, logits_to_keep=1)
    found = summary(loaded.model)
    share = found.sparsity("prefill")
    assert share is not None
    return share, [row.sparsity or 0.0 for row in found.rows if row.phase == "prefill"]


def test_half_and_nearly_all_can_be_skipped_below_one(loaded: Loaded) -> None:
    shares = {threshold: skipped(loaded, threshold)[0] / (1 - NEVER) for threshold in (1e-5, 0.0033, 0.2)}
    assert shares[1e-5] < 0.3 < shares[0.0033] < 0.7 < shares[0.2] <= 1.0, shares


def test_what_is_skipped_follows_the_sinks(loaded: Loaded) -> None:
    """A head is in when its sink beats the noise, whose maximum over a tile is 3.8 deviations, by the threshold."""
    _, layers = skipped(loaded, 0.0033)
    beaten = [[SIZES.sink(layer, head) > 3.8 + 5.7 for head in range(SIZES.heads_kv)] for layer in range(SIZES.layers)]
    for share, heads in zip(layers, beaten, strict=True):
        assert abs(share / (1 - NEVER) - sum(heads) / len(heads)) < 0.3, (layers, beaten)


def test_the_sink_stays_what_it_is_in_all_layers(loaded: Loaded) -> None:
    [prompt] = planted_prompts(64, 1, SIZES.vocabulary)
    with torch.no_grad():
        out = loaded.model.model(torch.tensor([prompt]), output_hidden_states=True, use_cache=False)
    for states in out.hidden_states[:-1]:
        assert states[0, 0, 0] == 1 and not states[0, 0, 1:].any() and not states[0, 1:, 0].any()


def test_its_tokenizer_has_a_word_for_each_token(loaded: Loaded) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(loaded.name))
    assert len(tokenizer) == SIZES.vocabulary and tokenizer.bos_token_id == SINK
    assert (
        tokenizer("w7 w500", add_special_tokens=False).input_ids == [7, 500] and tokenizer.decode([7, 500]) == "w7 w500"
    )
