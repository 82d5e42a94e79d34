"""What the vLLM plug-in is told, which layers that means, and what is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from skimattn import ArgumentError
from skimattn.integrations.serving import channel
from skimattn.integrations.serving.layers import names_of, of_rank, policies_of
from skimattn.integrations.vllm._refusals import refuse_deployment, refuse_layer
from skimattn.integrations.vllm._settings import Settings, read_settings
from skimattn.sparse import LayerPolicy, PhaseRule, SkipSoftmaxConfig

LAYERS = [f"model.layers.{number}.self_attn.attn" for number in range(3)]
SECTION = {"config_groups": {"group_0": {"algorithm": "skip_softmax", "threshold": {"prefill": 0.125}}}}


def refused(text: str) -> Any:
    return pytest.raises(ArgumentError, match=text)


def told(argument: dict[str, Any], environ: dict[str, str], section: object = None) -> Settings:
    with patch.dict(os.environ, environ):
        return read_settings(argument, section)


def test_nothing_said_is_dense() -> None:
    assert told({}, {}) == Settings(None, None, True)
    assert told({"other": {"a": 1}}, {}, {"sparse_topk": 3}) == Settings(None, None, True)


def test_sources_and_their_order(tmp_path: Path) -> None:
    file = tmp_path / "sparse.json"
    file.write_text(json.dumps({"threshold": 0.25}))
    own = {"skimattn": {"config": {"threshold": {"decode": 0.5}}, "stat_log": "a.jsonl", "metrics": False}}
    environ = {"SKIMATTN_VLLM_CONFIG": str(file), "SKIMATTN_VLLM_STAT_LOG": "b.jsonl", "SKIMATTN_VLLM_METRICS": "1"}

    def threshold(settings: Settings) -> object:
        assert settings.config is not None
        return settings.config.threshold

    assert threshold(told({}, {}, SECTION)) == {"prefill": 0.125}
    found = told({}, environ, SECTION)
    assert threshold(found) == {"prefill": 0.25, "decode": 0.25} and (found.stat_log, found.metrics) == (
        Path("b.jsonl"),
        True,
    )
    found = told(own, environ, SECTION)
    assert threshold(found) == {"decode": 0.5} and (found.stat_log, found.metrics) == (Path("a.jsonl"), False)
    assert threshold(told({}, {"SKIMATTN_VLLM_CONFIG": '{"scale_factor": 3, "threshold": null}'})) == {}
    logged = {"algorithm": "skip_softmax", "threshold_scale_factor": 9, "stat_log_path": "c.jsonl"}
    assert told({}, {}, logged).stat_log == Path("c.jsonl")
    assert told({"skimattn": {"config": False}}, environ | {"SKIMATTN_VLLM_STAT_LOG": ""}, SECTION).config is None


@pytest.mark.parametrize(
    ("additional", "environ", "text"),
    [
        ({"skimattn": 5}, {}, r"^additional_config.skimattn: expected keys and values \(got 5\)"),
        ({"skimattn": {"treshold": 1}}, {}, r"^additional_config.skimattn.treshold: expected one of config, stat_log"),
        ({"skimattn": {"config": 3}}, {}, r"^additional_config.skimattn.config: .*file or folder, or false \(got 3\)"),
        (
            {"skimattn": {"config": {"threshold": 2}}},
            {},
            r"^threshold.prefill: expected at least 0 and below 1 \(got 2",
        ),
        ({"skimattn": {"stat_log": 3}}, {}, r"^additional_config.skimattn.stat_log: expected the path of a file"),
        (
            {"skimattn": {"metrics": "maybe"}},
            {},
            r"^additional_config.skimattn.metrics: expected one of 1, true, on, yes",
        ),
        ({}, {"SKIMATTN_VLLM_METRICS": "2"}, r"^SKIMATTN_VLLM_METRICS: expected one of 1, true, .*, no \(got '2'\)"),
        ({}, {"SKIMATTN_VLLM_CONFIG": "{x"}, r"^SKIMATTN_VLLM_CONFIG: expected JSON, a file or a folder"),
        ({}, {"SKIMATTN_VLLM_STAT_LOG": "a"}, r"^SKIMATTN_VLLM_STAT_LOG: expected a config beside it"),
        (
            {"skimattn": {"config": {"threshold": 0.1, "initial_disabled_steps": 2}}},
            {},
            r"^initial_disabled_steps: expected none: steps are of diffusion, .*\(got 2\)",
        ),
        (
            {"skimattn": {"config": {"threshold": 0.1, "disabled_until_timestep": 900}}},
            {},
            r"^disabled_until_timestep: expected none",
        ),
        (
            {"skimattn": {"config": {"calibration": {"samples": 2}, "patterns": {}}}},
            {},
            r"^config: expected figures, such as calibrate makes \(got a configuration that asks",
        ),
    ],
)
def test_settings_that_cannot_be(additional: dict[str, Any], environ: dict[str, str], text: str) -> None:
    with refused(text):
        told(additional, environ)


def test_layers_by_names_of_either_library() -> None:
    assert names_of(LAYERS[0]) == ("model.layers.0.self_attn", LAYERS[0]) and names_of("odd") == ("odd",)
    config = SkipSoftmaxConfig(
        patterns={
            "model.layers.0.self_attn": {"threshold": 0.1},
            "*.1.self_attn.attn": {"enable": False},
            "default": {"threshold": 0.2},
        }
    )
    found = policies_of(config, LAYERS)
    assert list(found) == [LAYERS[0], LAYERS[2]]
    assert [policy.rules["decode"].factor for policy in found.values()] == [0.1, 0.2]
    assert list(policies_of(SkipSoftmaxConfig(threshold=0.1, ignore=("*layers.[0-1].*",)), LAYERS)) == LAYERS[2:]
    assert list(policies_of(SkipSoftmaxConfig(threshold=0.1, targets=("LlamaAttention",)), LAYERS)) == LAYERS
    assert list(policies_of(SkipSoftmaxConfig(threshold=0.1, targets=("*.1.*",)), LAYERS)) == LAYERS[1:2]


def test_patterns_that_no_layer_matches() -> None:
    with refused(
        r"^patterns.\*vision\*: expected patterns of layers, such as model.layers.0.self_attn \(got one that no"
    ):
        policies_of(SkipSoftmaxConfig(patterns={"*vision*": {"threshold": 0.1}}), LAYERS)
    with refused(r"^ignore.LlamaAttention: expected patterns"):
        policies_of(SkipSoftmaxConfig(threshold=0.1, ignore=("LlamaAttention",)), LAYERS)
    with refused(r"^config: expected a setting for at least one of 3 attention layers \(got none\)"):
        policies_of(SkipSoftmaxConfig(threshold=0.1, enable=False), LAYERS)
    assert policies_of(SkipSoftmaxConfig(patterns={"*.9.*": {"threshold": 0.1}}), LAYERS, all_here=False) == {}


def test_heads_of_a_rank() -> None:
    policy = LayerPolicy({"prefill": PhaseRule((1.0, 2.0, 3.0, 4.0)), "decode": PhaseRule(5.0)})
    own = of_rank(policy, LAYERS[0], 2, 1, 2)
    assert own.rules == {"prefill": PhaseRule((3.0, 4.0)), "decode": PhaseRule(5.0)}
    with refused(rf"^{LAYERS[0]}: prefill: expected one number for each of 6 query heads \(got 4\)"):
        of_rank(policy, LAYERS[0], 2, 1, 3)


LAYER: dict[str, Any] = {
    "head_size": 64,
    "dtype": torch.bfloat16,
    "cache_dtype": "auto",
    "attn_type": "decoder",
    "others": {},
}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dtype": torch.float32}, r"^dtype: expected bfloat16 or float16 .*\(got torch.float32\)"),
        ({"cache_dtype": "fp8_e5m2"}, r"^kv_cache_dtype: expected one of auto, .*\(got 'fp8_e5m2'\)"),
        ({"cache_dtype": "float16"}, r"^kv_cache_dtype: expected auto or an 8-bit type with a model of torch.bfloat16"),
        ({"attn_type": "encoder_only"}, r"^attn_type: expected decoder .*\(got 'encoder_only'\)"),
        ({"head_size": 320}, r"^head_size: expected a multiple of 8 .*at most 256 \(got 320\)"),
        ({"head_size": 72, "cache_dtype": "fp8"}, r"^head_size: .*16 with an 8-bit cache"),
        ({"others": {"chunk_lookback": 4}}, r"^chunk_lookback: expected None, since it is not known here .*\(got 4\)"),
    ],
)
def test_layers_that_are_not_computed(change: dict[str, Any], text: str) -> None:
    refuse_layer(**LAYER)
    refuse_layer(**(LAYER | {"cache_dtype": "fp8_e4m3", "head_size": 128, "others": {"sinks_of_none": None}}))
    with refused(text):
        refuse_layer(**(LAYER | change))


def test_parallelism_that_is_not_computed() -> None:
    sizes: dict[str, Any] = {"decode_context": 1, "prefill_context": 1, "pipeline": 2, "has_log": False}
    refuse_deployment(**sizes)
    for change, name in (("decode_context", "decode"), ("prefill_context", "prefill")):
        with refused(rf"^{name}_context_parallel_size: expected 1, since keys of one request .*\(got 2\)"):
            refuse_deployment(**(sizes | {change: 2}))
    with refused(r"^stat_log: expected none with pipeline_parallel_size above 1"):
        refuse_deployment(**(sizes | {"has_log": True}))


def test_channel_adds_up_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(channel.INHERITED, str(tmp_path))
    folder = channel.open_channel()
    assert folder == tmp_path and channel.read_tiles(folder) == {"prefill": (0, 0), "decode": (0, 0)}
    channel.write_tiles(folder, 0, 0, [9, 9, 9, 9])
    channel.write_tiles(folder, 0, 0, [10, 1, 20, 2])
    channel.write_tiles(folder, 0, 1, [100, 3, 200, 4])
    channel.write_tiles(folder, 1, 0, [1000, 5, 2**40, 6])
    assert channel.read_tiles(folder, 0) == {"prefill": (110, 4), "decode": (220, 6)}
    assert channel.read_tiles(folder)["decode"] == (220 + 2**40, 12)
    assert [channel.first_to_report(folder) for _ in range(3)] == [True, False, False]
    channel.write_tiles(folder / "gone", 0, 0, [1, 1, 1, 1])


def test_a_channel_is_made_once_and_removed_by_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(channel.INHERITED, raising=False)
    folder = channel.open_channel()
    assert folder == channel.open_channel() and os.environ[channel.INHERITED] == str(folder)
    channel._remove(str(folder), os.getpid() + 1)
    assert folder.is_dir(), "a child leaves it alone"
    channel._remove(str(folder), os.getpid())
    assert not folder.exists()
