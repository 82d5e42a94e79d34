"""What sparsify does to models, and that restore undoes all of it."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from skimattn import ArgumentError
from skimattn.integrations.diffusers import restore, sparsify
from skimattn.sparse import config_of, policy_of, save_pretrained, summary

from .models import FAMILIES, model_of, output_of
from .pipelines import wan_pipeline

THRESHOLD = {"threshold": 0.02}


def state_of(model: Any) -> Any:
    """All that sparsify might change: processors, and attributes of modules."""
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    return {name: id(one) for name, one in model.attn_processors.items()}, attributes, hooks, list(model.state_dict())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_restore_leaves_the_model_as_it_was(family: str) -> None:
    model, inputs = model_of(family), FAMILIES[family].inputs()
    before, output = state_of(model), output_of(model, inputs)
    sparsify(model, {**THRESHOLD, "initial_disabled_steps": 3})
    sparsify(model, THRESHOLD, count=True)  # in place of the first
    assert not torch.equal(output_of(model, inputs), output)
    restore(model)
    assert state_of(model) == before
    assert torch.equal(output_of(model, inputs), output)


def test_processors_that_others_have_set_meanwhile_stay() -> None:
    model = model_of("wan")
    before, theirs = model.attn_processors, object()
    sparsify(model, THRESHOLD)
    model.blocks[0].attn1.set_processor(theirs)
    restore(model)
    assert model.attn_processors == before | {"blocks.0.attn1.processor": theirs}


def test_a_pipeline_is_changed_whole_or_not_at_all() -> None:
    pipe = wan_pipeline()
    sparsify(pipe, {"transformer": THRESHOLD})
    before = [state_of(model) for model in (pipe.transformer, pipe.transformer_2)]
    with pytest.raises(ArgumentError, match="one number for each of 2 query heads"):
        sparsify(pipe, {"transformer": {"threshold": 0.1}, "transformer_2": {"threshold": [0.1, 0.1, 0.1]}})
    assert [state_of(model) for model in (pipe.transformer, pipe.transformer_2)] == before
    assert config_of(pipe.transformer).threshold["prefill"] == 0.02
    assert policy_of(pipe.transformer_2.blocks[0].attn1) is None, "it was not named"
    restore(pipe)
    with pytest.raises(ArgumentError, match=r"^target: expected one that sparsify was called with"):
        restore(pipe)


def test_one_configuration_for_all_transformers() -> None:
    pipe = sparsify(wan_pipeline(), THRESHOLD)
    assert all(policy_of(model.blocks[1].attn1) for model in (pipe.transformer, pipe.transformer_2))


def test_targets_by_class_are_self_attention_alone() -> None:
    group = {"algorithm": "skip_softmax", "targets": ["WanAttention"], "threshold": 0.02}
    model = sparsify(model_of("wan"), {"sparse_attention_config": {"config_groups": {"group_0": group}}})
    assert config_of(model).targets == FAMILIES["wan"].places
    sparsify(model, {**THRESHOLD, "patterns": {}, "targets": ["blocks.1.*"]})
    assert [row.layer for row in summary(model).rows] == ["blocks.1.attn1"] * 2
    assert policy_of(model.blocks[0].attn1) is None


def test_a_saved_model_is_sparsified_by_its_folder(tmp_path: Path) -> None:
    model, inputs = sparsify(model_of("wan"), {"scale_factor": 20.0}), FAMILIES["wan"].inputs()
    expected = output_of(model, inputs)
    save_pretrained(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["num_layers"] == 2 and "skimattn" in written["sparse_attention_config"]
    loaded = diffusers.WanTransformer3DModel.from_pretrained(tmp_path).to(torch.bfloat16).eval()
    assert torch.equal(output_of(sparsify(loaded.to(model.device), tmp_path), inputs), expected)


def test_summary_and_counts_of_a_model() -> None:
    model = sparsify(model_of("flux"), THRESHOLD, count=True)
    output_of(model, FAMILIES["flux"].inputs())
    found = summary(model).sparsity("prefill")
    assert found is not None and found > 0.1


def test_copies_and_pickles_of_a_sparsified_model() -> None:
    model, inputs = sparsify(model_of("hunyuan"), THRESHOLD), FAMILIES["hunyuan"].inputs()
    expected = output_of(model, inputs)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(output_of(other, inputs), expected)
        restore(other)
        assert not torch.equal(output_of(other, inputs), expected)
    assert torch.equal(output_of(model, inputs), expected)
