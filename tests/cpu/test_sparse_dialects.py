"""The dialects of configurations: read, written, and never written over what is somebody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from skimattn import ArgumentError
from skimattn.sparse import PhaseRule, SkipSoftmaxConfig, SparseWarning
from skimattn.sparse.config.dialects import is_ours
from skimattn.sparse.config.export import merged, section_of
from skimattn.sparse.config.kernels import kernels_here

NAME = "model.layers.3.self_attn"
FORMULA = "a * exp(b * target_sparsity)"
COEFFICIENTS = {"prefill": {"a": 7.93, "b": 8.61}, "decode": {"a": 0.12, "b": 9.85}}
MODELOPT = {
    "sparse_attention_config": {
        "config_groups": {
            "group_0": {
                "algorithm": "skip_softmax",
                "targets": ["LlamaAttention"],
                "ignore": ["*layers.0.*"],
                "threshold_scale_factor": {"formula": FORMULA, **COEFFICIENTS},
                "target_sparsity": {"prefill": 0.5, "decode": 0.4},
                "initial_disabled_steps": 3,
            }
        },
        "producer": {"name": "modelopt", "version": "0.47.0"},
    },
    "model_type": "llama",
}


def factors(config: SkipSoftmaxConfig, name: str = NAME) -> Any:
    policy = config.policy_for(name, "LlamaAttention")
    return policy and {phase: (rule.factor, rule.length_power) for phase, rule in policy.rules.items()}


def group(**values: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"algorithm": "skip_softmax", **values}}}


def test_modelopt_now(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELOPT))
    config = SkipSoftmaxConfig.read(tmp_path)
    found = factors(config)
    assert found["prefill"] == (pytest.approx(587.18, rel=0.002), 1) and found["decode"][0] == pytest.approx(
        6.17, rel=0.01
    )
    assert factors(config, "model.layers.0.self_attn") is None
    assert config.initial_disabled_steps == 3 and config.producer["name"] == "modelopt"
    assert config.targets == ("LlamaAttention",) and not config.kernels


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({"config_groups": {"group_0": {"sparse_algo": "softmax_skip", "threshold": 0.01}}}, (0.01, 0)),
        (
            {
                "config_groups": {"group_0": {"sparse_algo": "softmax_skip", "targets": ["LlamaAttention"]}},
                "threshold_scale_factor": 600,
                "target_sparsity": 0.5,
            },
            (600, 1),
        ),
        ({"algorithm": "skip_softmax", "threshold_scale_factor": 600}, (600, 1)),
        ({"algorithm": "skip_softmax", "threshold_scale_factor": {"prefill": 600, "decode": 9}}, (600, 1)),
        ({"algorithm": "skip_softmax", "threshold": 0.02}, (0.02, 0)),
        ({"threshold_scale_factor": 600}, (600, 1)),
        ({"threshold": 0.02}, (0.02, 0)),
        (
            {"algorithm": "skip_softmax", "coefficients": {"log_a": 0.0, "b": 1.0}, "target_sparsity": 0.5},
            (pytest.approx(1.6487, abs=1e-4), 1),
        ),
        (
            {
                "algorithm": "skip_softmax",
                "coefficients": {"prefill": {"a": 2, "b": 1}},
                "target_sparsity": {"prefill": 0},
            },
            (0, 1),
        ),
        (
            {
                "algorithm": "skip_softmax",
                "threshold_scale_factor": {"formula": FORMULA.replace(" ", ""), "prefill": {"a": 1, "b": 2}},
                "target_sparsity": {"prefill": 0.5},
            },
            (pytest.approx(2.71828, abs=1e-4), 1),
        ),
    ],
)
def test_figures_of_other_dialects(document: dict[str, Any], wanted: Any) -> None:
    assert factors(SkipSoftmaxConfig.read(document))["prefill"] == wanted


def test_engine_keys_beside_the_figures() -> None:
    section = {"algorithm": "skip_softmax", "threshold_scale_factor": 5, "disabled_until_timestep": 800}
    config = SkipSoftmaxConfig.read({**section, "stat_log_path": "x.jsonl"})
    assert config.disabled_until_timestep == 800 and config.stat_log_path == "x.jsonl"


def test_several_groups_become_patterns_and_those_of_other_methods_are_left_alone() -> None:
    groups = {
        "group_0": {"algorithm": "skip_softmax", "targets": ["*layers.3.*"], "threshold": 0.1},
        "group_1": {"algorithm": "sparse_video", "anything": 1},
        "group_2": {"algorithm": "skip_softmax", "threshold": 0.2, "ignore": ["*lm*"]},
    }
    config = SkipSoftmaxConfig.read({"config_groups": groups})
    assert factors(config)["prefill"] == (0.1, 0) and factors(config, "other")["prefill"] == (0.2, 0)
    assert factors(config, "lm.x") is None and config.targets == ("*layers.3.*",)


def test_recipes_of_both_versions() -> None:
    entry = {"method": "flash_skip_softmax", "threshold": {"prefill": 1e-3, "decode": 1e-5}, "collect_stats": True}
    config = SkipSoftmaxConfig.read({"sparse_cfg": {"*attn*": entry, "default": {"enable": False}}})
    assert factors(config) == {"prefill": (1e-3, 0), "decode": (1e-5, 0)} and factors(config, "mlp") is None
    newer = {"*attn*": {"thresholds": {"prefill": [1e-3]}}, "default": {"enable": False}}
    assert factors(SkipSoftmaxConfig.read({"sparse_cfg": newer})) == {"prefill": (1e-3, 0)}
    plan = {"target_sparse_ratio": {"prefill": 0.5}, "samples": 64, "max_seqlen": 8192, "chunk_size": 5}
    trials = {"*attn*": {"thresholds": {"prefill": [1e-3, 1e-2]}}, "calibration": plan}
    with pytest.warns(SparseWarning, match=r"calibration: chunk_size is not used here"):
        asked = SkipSoftmaxConfig.read({"sparse_cfg": trials}).calibration
    assert asked and asked.target_sparsity == {"prefill": 0.5} and (asked.samples, asked.max_seqlen) == (64, 8192)
    assert asked.thresholds == {"prefill": (1e-3, 1e-2)}
    with pytest.warns(SparseWarning, match=r"br and bc say which tiles were meant"):
        SkipSoftmaxConfig.read({"sparse_cfg": {"*": {"br": 64, "bc": 64, "threshold": 0.1}}})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"algorithm": "rocketkv"}, "algorithm: expected one of skip_softmax"),
        (
            {"sparse_attention_config": {"algorithm": "rocketkv"}},
            "sparse_attention_config: expected a configuration of",
        ),
        ({"sparse_attention_config": 3}, "sparse_attention_config: expected a configuration of .*got 3"),
        ({"model_type": "llama"}, "configuration: expected one of threshold, .*got keys model_type"),
        ({"config_groups": 3}, "config_groups: expected keys and values"),
        (
            {"config_groups": {"g": {"algorithm": "x"}}},
            "config_groups: expected a group whose algorithm is skip_softmax",
        ),
        ({**group(threshold=0.1), "extra": 1}, "extra: expected one of config_groups"),
        (group(threshold_scale=1), "config_groups.group_0.threshold_scale: expected one of algorithm"),
        (group(), "config_groups.group_0.threshold_scale_factor: expected factors"),
        (
            group(threshold_scale_factor={"formula": "a + b", **COEFFICIENTS}),
            r"config_groups.group_0.threshold_scale_factor.formula: expected 'a \* exp",
        ),
        ({"algorithm": "skip_softmax", "factor": 1}, "factor: expected one of algorithm"),
        ({"algorithm": "skip_softmax", "coefficients": 3}, "coefficients: expected a and b, by phase"),
        ({"algorithm": "skip_softmax", "coefficients": {"prefill": 3}}, "coefficients.prefill: expected a and b"),
        (
            {"algorithm": "skip_softmax", "coefficients": {"prefill": {"c": 3}}},
            "coefficients.prefill.c: expected one of a",
        ),
        (
            {"algorithm": "skip_softmax", "coefficients": {"prefill": {"log_a": 900, "b": 1}}},
            "coefficients.prefill.log_a: expected a number whose",
        ),
        ({"sparse_cfg": 3}, "sparse_cfg: expected patterns to settings"),
        ({"sparse_cfg": {"*": 3}}, r"sparse_cfg.\*: expected keys and values"),
        ({"sparse_cfg": {"*": {"tresh": 3}}}, r"sparse_cfg.\*.tresh: expected one of method"),
        ({"sparse_cfg": {"*": {"thresholds": 3}}}, r"sparse_cfg.\*.thresholds: expected lists by phase"),
        ({"sparse_cfg": {"*": {"thresholds": {"x": [1]}}}}, r"sparse_cfg.\*.thresholds.x: expected one of prefill"),
        (
            {"sparse_cfg": {"*": {"thresholds": {"prefill": [0.1, 0.2]}}}},
            "sparse_cfg.calibration: expected what to do with several",
        ),
        ({"sparse_cfg": {"calibration": 3}}, "sparse_cfg.calibration: expected keys and values"),
        ({"sparse_cfg": {"calibration": {}}}, "sparse_cfg.calibration.target_sparse_ratio: expected the share"),
        ({"skimattn": {"format": 9, "version": "7"}}, "skimattn.format: expected 1 .*9, of version 7"),
    ],
)
def test_refusals_name_the_key(document: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{words}"):
        SkipSoftmaxConfig.read(document)


def test_what_is_written_is_read_by_others_and_by_us() -> None:
    here = kernels_here("prefill", 128)
    assert here is not None
    own = {"prefill": {"a": 3, "b": 9, "length_power": 1.7, "sparsity": [0.1, 0.8], "heldout_error": 0.02}}
    config = SkipSoftmaxConfig(
        patterns={"*layers.3.*": {"threshold": {"prefill": [0.1, 0.2]}}, "default": {"target_sparsity": 0.5}},
        fit={**own, "decode": COEFFICIENTS["decode"]},
        public_fit={"prefill": COEFFICIENTS["prefill"]},
        kernels={"prefill": here},
        initial_disabled_steps=2,
    )
    section = json.loads(json.dumps(section_of(config, ("LlamaAttention",))))
    assert section["config_groups"]["group_0"] == {
        "algorithm": "skip_softmax",
        "targets": ["LlamaAttention"],
        "ignore": [],
        "initial_disabled_steps": 2,
        "threshold_scale_factor": {"formula": FORMULA, **COEFFICIENTS},
        "target_sparsity": {"prefill": 0.5, "decode": 0.5},
    }
    assert section["producer"]["name"] == "skimattn" and section["skimattn"]["version"]
    block = section["skimattn"]["kernels"]["prefill"]
    assert block["tile"] == [128, 128] and block["order"] == "sink_first" and "exp(max score" in json.dumps(block)
    assert is_ours(section) and SkipSoftmaxConfig.read({"sparse_attention_config": section}) == config
    without = {key: value for key, value in section.items() if key != "skimattn"}
    assert factors(SkipSoftmaxConfig.read(without))["decode"] == (pytest.approx(0.12 * 2.718281828 ** (9.85 * 0.5)), 1)


@pytest.mark.parametrize(
    ("values", "figures"),
    [
        ({"threshold": {"prefill": 0.1}}, {"threshold": {"prefill": 0.1}}),
        ({"scale_factor": 5}, {"threshold_scale_factor": {"prefill": 5, "decode": 5}}),
        ({"scale_factor": 5, "length_power": 2}, None),
        ({"threshold": [0.1, 0.2]}, None),
        ({"fit": COEFFICIENTS}, {"threshold_scale_factor": {"formula": FORMULA, **COEFFICIENTS}}),
    ],
)
def test_what_the_group_can_say(values: dict[str, Any], figures: Any) -> None:
    section = section_of(SkipSoftmaxConfig(**values))
    found = section.get("config_groups", {}).get("group_0")
    assert found == (figures and {"algorithm": "skip_softmax", "targets": [], "ignore": [], **figures})


def test_keys_of_others_stay() -> None:
    section = section_of(SkipSoftmaxConfig(threshold=0.1))
    document = {
        "model_type": "x",
        "sparse_attention_config": {
            "config_groups": {
                "group_0": {"algorithm": "video"},
                "group_1": {"algorithm": "skip_softmax", "threshold": 1},
            },
            "note": "theirs",
            "threshold_scale_factor": 3,
        },
    }
    written = merged(document, section)["sparse_attention_config"]
    assert written["config_groups"]["group_0"] == {"algorithm": "video"} and written["note"] == "theirs"
    assert written["config_groups"]["group_1"]["threshold"] == {"prefill": 0.1, "decode": 0.1}
    assert len(written["config_groups"]) == 2 and "threshold_scale_factor" not in written
    assert merged({}, section_of(SkipSoftmaxConfig()))["sparse_attention_config"]["skimattn"]["format"] == 1


@pytest.mark.parametrize("theirs", [{"topk": 16, "block_size": 128}, "dense", {"algorithm": "dsa"}])
def test_what_another_model_keeps_under_the_key_is_not_written_over(theirs: Any) -> None:
    assert not is_ours(theirs)
    with pytest.raises(ArgumentError, match=r"^sparse_attention_config: expected nothing, or what skip_softmax keeps"):
        merged({"sparse_attention_config": theirs}, section_of(SkipSoftmaxConfig(threshold=0.1)))


def test_phase_rules_of_a_read_configuration_are_plain() -> None:
    policy = SkipSoftmaxConfig.read({"threshold": 0.25}).policy_for("x")
    assert policy and policy.rule("decode") == PhaseRule(0.25, 0.0)
