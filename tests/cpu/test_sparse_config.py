"""Configurations: what they tell which module, and how each key refuses."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import skimattn.sparse
from skimattn import ArgumentError
from skimattn.sparse import Fit, PhaseRule, SkipSoftmaxConfig, SparseWarning, register_method
from skimattn.sparse.config.kernels import Kernels, difference, expected_range, kernels_here
from skimattn.sparse.methods import SkipSoftmax, method_named

FIT = {"a": 7.93, "b": 8.61}


def rules(config: SkipSoftmaxConfig, name: str = "model.layers.3.self_attn", cls: str = "Attention") -> Any:
    policy = config.policy_for(name, cls)
    return None if policy is None else dict(policy.rules)


def test_one_number_is_of_both_phases() -> None:
    assert rules(SkipSoftmaxConfig(threshold=0.01)) == {"prefill": PhaseRule(0.01, 0), "decode": PhaseRule(0.01, 0)}
    assert rules(SkipSoftmaxConfig(scale_factor=40)) == {"prefill": PhaseRule(40.0), "decode": PhaseRule(40.0)}
    mixed = SkipSoftmaxConfig(threshold={"decode": 0.5}, scale_factor={"prefill": [3, 4]}, length_power=2)
    assert rules(mixed) == {"prefill": PhaseRule((3.0, 4.0), 2.0), "decode": PhaseRule(0.5, 0)}
    assert rules(SkipSoftmaxConfig()) is None


def test_a_target_takes_the_factor_of_its_fit() -> None:
    found = rules(SkipSoftmaxConfig(target_sparsity={"prefill": 0.5}, fit={"prefill": FIT}))
    assert list(found) == ["prefill"] and found["prefill"].factor == pytest.approx(587, abs=1)
    assert rules(SkipSoftmaxConfig(target_sparsity={"prefill": 0}, fit={"prefill": FIT}))["prefill"].factor == 0
    own = {**FIT, "length_power": 2.0}
    assert (
        rules(SkipSoftmaxConfig(target_sparsity=0.5, fit={"prefill": own, "decode": FIT}))["prefill"].length_power == 2
    )


def test_patterns_hold_in_their_order() -> None:
    patterns = {"*layers.3.*": {"threshold": 0.3}, "*layers.*": {"threshold": 0.1}, "Special": {"enable": False}}
    config = SkipSoftmaxConfig(patterns={**patterns, "default": {"threshold": 0.2}}, ignore=["*lm*"])
    assert rules(config)["prefill"].factor == 0.3
    assert rules(config, "model.layers.4.attn")["prefill"].factor == 0.1
    assert rules(config, "other", "Special") is None
    assert rules(config, "other")["prefill"].factor == 0.2
    assert rules(config, "lm.layers.3.attn") is None
    assert rules(SkipSoftmaxConfig(patterns=patterns), "other") is None


def test_a_pattern_takes_the_fit_above_it() -> None:
    config = SkipSoftmaxConfig(patterns={"*3*": {"target_sparsity": 0.5}}, fit={"prefill": FIT, "decode": FIT})
    assert rules(config)["decode"].factor == pytest.approx(587, abs=1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"threshold": 1.0}, r"threshold.prefill: expected at least 0 and below 1 \(got 1.0\)"),
        ({"threshold": {"decode": -0.1}}, "threshold.decode: expected at least 0"),
        ({"threshold": {"prefil": 0.1}}, "threshold.prefil: expected prefill or decode"),
        ({"threshold": True}, "threshold: expected a finite number"),
        ({"threshold": float("nan")}, "threshold: expected a finite number"),
        ({"scale_factor": {"prefill": [1, "x"]}}, "scale_factor.prefill: expected a finite number, or a list"),
        ({"scale_factor": -1}, "scale_factor.prefill: expected 0 or more"),
        ({"target_sparsity": 1}, "target_sparsity.prefill: expected at least 0 and below 1"),
        ({"target_sparsity": [0.5, 0.4]}, "target_sparsity.prefill: expected one number"),
        ({"threshold": 0.1, "scale_factor": {"decode": 3}}, "scale_factor.decode: expected nothing beside threshold"),
        ({"treshold": 0.1}, r"treshold: expected one of threshold, scale_factor.*\(got another key\)"),
        ({"fit": {"prefill": {"a": 1}}}, "fit.prefill.b: expected to be given"),
        ({"fit": {"prefill": {"a": 0, "b": 1}}}, "fit.prefill.a: expected above 0"),
        ({"public_fit": {"decode": {**FIT, "length_power": 2}}}, "public_fit.decode.length_power: expected 1"),
        ({"length_power": -1}, "length_power.prefill: expected 0"),
        ({"length_power": [1, 2]}, "length_power.prefill: expected one number"),
        ({"method": "magic"}, "method: expected one of skip_softmax"),
        ({"patterns": {"*a*": {"method": "magic"}}}, r"patterns.\*a\*.method: expected one of"),
        ({"patterns": {"*a*": {"threshold": 7}}}, r"patterns.\*a\*.threshold.prefill: expected at least"),
        ({"patterns": {"": {"threshold": 0.1}}}, "patterns: expected a pattern of module names"),
        ({"patterns": {"default": {}}, "threshold": 0.1}, "patterns.default: expected nothing beside"),
        ({"enable": "perhaps"}, "enable: expected true or false"),
        ({"initial_disabled_steps": -1}, "initial_disabled_steps: expected 0 or more"),
        ({"initial_disabled_steps": 1.5}, "initial_disabled_steps: expected a whole number"),
        ({"disabled_until_timestep": "x"}, "disabled_until_timestep: expected a number"),
        ({"calibration": {"samples": 0}}, "calibration.samples: expected above 0"),
    ],
)
def test_refusals_name_the_key(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{words}"):
        SkipSoftmaxConfig(**values)


def test_a_target_without_a_fit_or_outside_of_it_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^fit.prefill: expected a fit for target_sparsity, such as calibrate"):
        rules(SkipSoftmaxConfig(target_sparsity=0.5))
    with pytest.raises(ArgumentError, match=r"^patterns.\*.fit.decode: expected a fit"):
        rules(SkipSoftmaxConfig(patterns={"*": {"target_sparsity": {"decode": 0.5}}}))
    narrow = {"prefill": {**FIT, "sparsity": [0.2, 0.6]}}
    wanted = r"^target_sparsity.prefill: expected between 0.2 and 0.6, where its fit was observed, or extrapolate=True"
    with pytest.raises(ArgumentError, match=wanted):
        rules(SkipSoftmaxConfig(target_sparsity={"prefill": 0.7}, fit=narrow))
    assert rules(SkipSoftmaxConfig(target_sparsity={"prefill": 0.7}, fit=narrow, extrapolate=True))


def test_a_configuration_does_not_change() -> None:
    config = SkipSoftmaxConfig(threshold=0.1)
    with pytest.raises(ValueError, match=r"frozen"):
        config.threshold = {}
    assert copy.deepcopy(config) == config


def test_diffusion_steps_that_are_dense() -> None:
    config = SkipSoftmaxConfig(threshold=0.1, initial_disabled_steps=2, disabled_until_timestep=900)
    assert [config.is_dense_at(step, None) for step in (0, 1, 2)] == [True, True, False]
    assert [config.is_dense_at(None, timestep) for timestep in (999, 900, 10)] == [True, False, False]
    assert config.is_dense_at(5, 950) and not SkipSoftmaxConfig().is_dense_at(0, 1000)


def test_another_method_is_used_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skimattn.sparse.methods._methods", {"skip_softmax": SkipSoftmax()})

    class Half:
        def rules(self, setting: Any, where: str) -> Any:
            return {"prefill": PhaseRule(0.5, 0)}

    register_method("half", Half())
    assert rules(SkipSoftmaxConfig(method="half", threshold=0.1)) == {"prefill": PhaseRule(0.5, 0)}
    with pytest.raises(ArgumentError, match=r"^name: expected one that is free, other than skip_softmax, half"):
        register_method("half", Half())
    with pytest.raises(ArgumentError, match=r"^method: expected one of skip_softmax, half"):
        method_named("third")


def test_fits_tell_shares_and_factors() -> None:
    fit = Fit(a=0.12, b=9.85)
    assert fit.rule(0.9).factor == pytest.approx(850, rel=0.01)
    assert fit.share(fit.rule(0.4).factor / 5000, 5000) == pytest.approx(0.4)
    assert fit.share(0.0, 10) == 0 and fit.share(0.99, 10**9) == 1


def test_without_pydantic_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    for name in [name for name in sys.modules if name.startswith("skimattn.sparse.config")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(skimattn.sparse, "SkipSoftmaxConfig", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"needs pydantic: pip install 'skimattn\[calibrate\]'"):
        _ = skimattn.sparse.SkipSoftmaxConfig
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'"):
        _ = skimattn.sparse.nonsense


def test_kernels_of_this_machine() -> None:
    prefill, decode = kernels_here("prefill", 128, arch="sm90"), kernels_here("decode", 128, arch="sm90")
    assert prefill and (prefill.tile, prefill.group_rows, prefill.order) == ((128, 128), 64, "sink_first")
    assert decode and decode.split and decode.split["min_leaf_keys"] == 512 and decode.group_rows == 64
    assert kernels_here("decode", 576, arch="sm90") and kernels_here("prefill", 300) is None


def test_other_tiles_are_told_with_what_they_may_do() -> None:
    here = Kernels(arch="sm90", tile=(128, 128), group_rows=64, order="sink_first", predicate="p")
    assert difference(here, here, 0.5) is None
    coarse = here.model_copy(update={"group_rows": 128})
    assert "skip 50% to 71% of the tiles here where 50% were to be skipped" in str(difference(coarse, here, 0.5))
    assert "skip 25% to 50%" in str(difference(here, coarse, None))
    assert "does not say with which tiles it was made" in str(difference(None, here, 0.3))
    other = here.model_copy(update={"order": "reverse"})
    assert "other tiles of the same size may be skipped" in str(difference(other, here, 0.5))
    assert expected_range(0.5, (64, 128), (128, 64)) == (0.25, pytest.approx(0.5**0.5))


@pytest.mark.parametrize("text", ["[1, 2]", "{", "threshold: [", "12"])
@pytest.mark.parametrize("name", ["x.json", "x.yaml"])
def test_files_that_hold_something_else(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ArgumentError, match=rf"{name}: expected (JSON|YAML|keys and values)"):
        SkipSoftmaxConfig.read(tmp_path / name)


def test_yaml_needs_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.yaml").write_text("threshold: 0.1\nignore: ['*x*']\n")
    assert SkipSoftmaxConfig.read(tmp_path / "x.yaml") == SkipSoftmaxConfig(threshold=0.1, ignore=["*x*"])
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'skimattn\[calibrate\]'"):
        SkipSoftmaxConfig.read(tmp_path / "x.yaml")


def test_ranges_in_patterns_say_how_they_are_read() -> None:
    with pytest.warns(SparseWarning, match=r"is read as the numbers 0 to 12"):
        config = SkipSoftmaxConfig(patterns={"*layers.[0-12].*": {"threshold": 0.1}})
    assert rules(config, "model.layers.12.attn") and not rules(config, "model.layers.13.attn")
