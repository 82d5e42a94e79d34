"""Policies go onto a model and come off again; what is told, counted, shown and saved."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from skimattn import ArgumentError
from skimattn.sparse import (
    LayerPolicy,
    PhaseRule,
    SkipSoftmaxConfig,
    SparseWarning,
    TileCounts,
    attach_policy,
    attention_modules,
    config_of,
    disable,
    enable,
    export_config,
    from_pretrained,
    policy_of,
    restore,
    save_pretrained,
    set_step,
    sparsify,
    summary,
)
from skimattn.sparse.config.kernels import kernels_here
from skimattn.sparse.model import await_step
from skimattn.sparse.modules import head_dim_of
from skimattn.sparse.report import describe

from tests.helpers.sparse_models import ToyModel

CPU = torch.device("cpu")


def policies(model: torch.nn.Module) -> list[LayerPolicy | None]:
    return [policy_of(module) for module in attention_modules(model).values()]


def factors(model: torch.nn.Module) -> list[Any]:
    return [policy and policy.rule("prefill") and policy.rules["prefill"].factor for policy in policies(model)]


def test_attention_modules_are_found() -> None:
    model = ToyModel(2)
    assert list(attention_modules(model)) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert list(attention_modules(model, ["*1.mlp"])) == ["layers.1.mlp"]
    assert list(attention_modules(model, ["ToyLayer"])) == ["layers.0", "layers.1"]
    with pytest.raises(ArgumentError, match=r"^model: expected modules that match \*x \(got ToyModel\)"):
        attention_modules(model, ["*x"])
    with pytest.raises(ArgumentError, match=r"^model: expected modules with layer_idx, named like attention .*Linear"):
        attention_modules(torch.nn.Linear(1, 1))


def test_undo_restores_the_model_exactly() -> None:
    model = ToyModel()
    own = LayerPolicy({"decode": PhaseRule(0.5, 0)})
    attach_policy(model.layers[1].self_attn, own)
    before = [dict(module.__dict__) for module in model.modules()]
    sparsify(model, {"threshold": 0.1})
    sparsify(model, {"threshold": 0.2}, count=True)
    assert factors(model) == [0.2] * 4 and config_of(model).threshold["decode"] == 0.2
    restore(model)
    assert [dict(module.__dict__) for module in model.modules()] == before
    assert policy_of(model.layers[1].self_attn) is own
    with pytest.raises(ArgumentError, match=r"^model: expected one that sparsify was called with .*ToyModel"):
        restore(model)
    restore(model, missing_ok=True)


def test_what_is_refused_changes_nothing() -> None:
    model = sparsify(ToyModel(), {"threshold": 0.1})
    for config, words in (
        ({"target_sparsity": 0.5}, "fit.prefill: expected a fit"),
        ({"patterns": {"*": {"enable": False}}}, "config: expected a setting for at least one of 4 attention modules"),
        ({"threshold": [0.1, 0.2, 0.3]}, "layers.0.self_attn: prefill: expected one number for each of 2 query heads"),
        (SkipSoftmaxConfig(calibration={"target_sparsity": 0.5}), "config: expected a setting .* see calibrate"),
        ({"threshold": 0.1, "targets": ["*none*"]}, "model: expected modules that match"),
        (None, "config: expected a configuration, since model.config has no sparse_attention_config"),
    ):
        with pytest.raises(ArgumentError, match=f"^{words}"):
            sparsify(model, config)
        assert factors(model) == [0.1] * 4


def test_disable_enable_and_dense_steps() -> None:
    model = sparsify(ToyModel(), {"threshold": 0.1, "initial_disabled_steps": 2, "disabled_until_timestep": 500})
    assert factors(model) == [None] * 4, "the first step is dense"
    set_step(model, 2, timestep=400)
    assert factors(model) == [0.1] * 4
    disable(model)
    set_step(model, 3)
    assert factors(model) == [None] * 4 and "disabled" in str(summary(model))
    enable(model)
    assert factors(model) == [0.1] * 4
    set_step(model, 3, timestep=600)
    assert factors(model) == [None] * 4


def test_models_with_dense_steps_wait_to_be_told_the_first() -> None:
    def waiting(model: torch.nn.Module) -> tuple[bool, bool]:
        policy = policies(model)[0]
        assert policy is not None
        return policy.awaits_step, policy.enabled

    one = {"threshold": 0.1}
    for schedule in ({"initial_disabled_steps": 2}, {"disabled_until_timestep": 500}):
        model = sparsify(ToyModel(), {**one, **schedule})
        assert waiting(model) == (True, False)
        disable(model)
        assert waiting(model) == (False, False), "dense whatever the step"
        enable(model)
        assert waiting(model) == (True, False)
        set_step(model, 2, 400)
        assert waiting(model) == (False, True)
        await_step(model)
        assert waiting(model) == (True, False)
    model = sparsify(ToyModel(), one)
    assert waiting(model) == (False, True)
    await_step(model)
    assert waiting(model) == (False, True), "without dense steps nobody has to be told"


def test_columns_of_a_head_from_what_all_heads_have_together() -> None:
    module = torch.nn.Module()
    module.heads, module.inner_dim = 3, 192  # type: ignore[assignment]
    assert head_dim_of(module) == 64


def test_a_pattern_that_nothing_matches_is_told() -> None:
    with pytest.warns(SparseWarning, match=r"patterns.\*layer.3\*: no attention module of the model matches"):
        sparsify(ToyModel(), {"patterns": {"*layer.3*": {"threshold": 0.3}, "default": {"threshold": 0.1}}})


def test_figures_of_other_tiles_are_told() -> None:
    here = kernels_here("prefill", 64)
    assert here is not None
    fit = {"prefill": {"a": 1, "b": 5}}
    config = SkipSoftmaxConfig(target_sparsity={"prefill": 0.6}, fit=fit, kernels={"prefill": here})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(ToyModel(), config)
        sparsify(ToyModel(), {"threshold": 0.1})
    other = config.model_copy(update={"kernels": {"prefill": here.model_copy(update={"group_rows": 128})}})
    with pytest.warns(SparseWarning, match=r"prefill: it was made with .* may skip 60% to 77% of the tiles"):
        sparsify(ToyModel(), other)
    with pytest.warns(SparseWarning, match=r"does not say with which tiles it was made"):
        sparsify(ToyModel(), config.model_copy(update={"kernels": {}, "producer": {"name": "modelopt"}}))


def test_summary_counts_what_calls_add() -> None:
    model = sparsify(
        ToyModel(2), {"patterns": {"*0*": {"threshold": 0.1}, "*1*": {"scale_factor": [3, 4]}}}, count=True
    )
    collector = policies(model)[0].collector  # type: ignore[union-attr]
    assert collector is not None
    for _ in range(2):
        counts = collector.counts("prefill", 3, 2, CPU)
        assert counts is not None
        counts += torch.tensor([10, 4])
    found = summary(model)
    assert [(row.layer[7], row.phase, row.threshold) for row in found.rows] == [
        ("0", "prefill", "0.1"),
        ("0", "decode", "0.1"),
        ("1", "prefill", "3 to 4 by head / len_k"),
        ("1", "decode", "3 to 4 by head / len_k"),
    ]
    assert found.rows[0].sparsity == 0.4 and found.rows[1].sparsity is None and found.sparsity("prefill") == 0.4
    assert "layers.0.self_attn  prefill  0.1" in str(found) and "40.0 %" in str(found)
    assert summary(model, len_k=100).rows[2].threshold == "0.03 to 0.04 by head"
    assert summary(sparsify(ToyModel(1), {"threshold": {"prefill": 0.1}})).rows[1].threshold == "dense"
    assert describe(PhaseRule(2.0, 1.5)) == "2 / len_k^1.5"


def test_counts_by_head_add_up_over_batch_sizes() -> None:
    counts = TileCounts(by_head=True)
    for batch in (1, 3):
        buffer = counts.counts("decode", batch, 2, CPU)
        assert buffer is counts.counts("decode", batch, 2, CPU) and buffer is not None and buffer.shape == (batch, 2, 2)
        buffer += torch.tensor([[5, 1], [5, 2]])
    assert counts.total("decode").tolist() == [[20, 4], [20, 8]] and counts.total("prefill").tolist() == [0, 0]
    counts.reset()
    assert not counts.total("decode").any()


def test_a_sparsified_model_can_be_copied_and_pickled() -> None:
    model = sparsify(ToyModel(), {"threshold": 0.1})
    keys = list(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        disable(other)
        assert factors(other) == [None] * 4 and factors(model) == [0.1] * 4 and list(other.state_dict()) == keys
        restore(other)


def test_config_json_holds_it(tmp_path: Path) -> None:
    model = sparsify(ToyModel(), {"patterns": {"*0*": {"threshold": [0.1, 0.2]}, "*3*": {"scale_factor": 7}}})
    save_pretrained(model, tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["model_type"] == "toy" and document["sparse_attention_config"] == export_config(model)
    assert not list(tmp_path.glob("*.tmp"))
    other = from_pretrained(ToyModel(), tmp_path, count=True)
    assert config_of(other) == config_of(model) and factors(other) == [(0.1, 0.2), None, None, 7.0]
    third = ToyModel()
    third.config.sparse_attention_config = document["sparse_attention_config"]
    assert factors(sparsify(third)) == factors(model)
    sparsify(other, {"threshold": 0.5})
    save_pretrained(other, tmp_path)
    group = json.loads((tmp_path / "config.json").read_text())["sparse_attention_config"]["config_groups"]["group_0"]
    assert group["targets"] == ["ToyAttention"] and group["threshold"] == {"prefill": 0.5, "decode": 0.5}


def test_a_model_that_cannot_save_itself_gets_its_config_json_alone(tmp_path: Path) -> None:
    model = sparsify(torch.nn.ModuleDict({"a": ToyModel(1).layers[0]}), {"threshold": 0.1})
    (tmp_path / "config.json").write_text('{"other": 1}')
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["other"] == 1


def test_what_is_somebody_elses_is_not_written_over(tmp_path: Path) -> None:
    model = sparsify(ToyModel(), {"threshold": 0.1})
    model.config.sparse_attention_config = {"topk": 16}
    with pytest.raises(ArgumentError, match=r"^sparse_attention_config: expected nothing, or what skip_softmax keeps"):
        save_pretrained(model, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "config.json").write_text('{"sparse_attention_config": {"topk": 16}}')
    with pytest.raises(ArgumentError, match=r"expected a config.json with a sparse_attention_config of ours"):
        from_pretrained(ToyModel(), tmp_path)
    with pytest.raises(ArgumentError, match=r"^sparse_attention_config: expected a configuration of skip_softmax"):
        sparsify(model)
