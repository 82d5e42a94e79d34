"""Configurations as others read them: ModelOpt's groups, which TensorRT-LLM takes too, with a block of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import skimattn

from ...errors import expected
from ..policy import PHASES, Phase
from .config import SkipSoftmaxConfig
from .dialects import FORMAT, KEY, OWN, is_ours
from .fit import Fit
from .foreign import ALGORITHMS, FORMULA, is_skip_group
from .settings import Setting

_GROUP = "group_0"


def section_of(config: SkipSoftmaxConfig, targets: tuple[str, ...] = ()) -> dict[str, Any]:
    """What stands under ``sparse_attention_config``: a group with what ModelOpt can say, and everything in our block.

    ModelOpt's group has one setting for all modules, without heads and without a length term: what is told by pattern,
    by head or with another ``length_power`` stands in our block alone, and a ``public_fit`` in its place in the group.

    Args:
        config: what to write.
        targets: names of the modules' classes, where the configuration names none.
    """
    version = str(skimattn.__version__)
    own = {"format": FORMAT, "version": version, **config.model_dump(mode="json", exclude_defaults=True)}
    section: dict[str, Any] = {"producer": {"name": OWN, "version": version}, OWN: own}
    figures = _figures(config.patterns.get("default", config), config)
    if figures:
        group = {"algorithm": ALGORITHMS[0], "targets": list(config.targets or targets), "ignore": list(config.ignore)}
        if config.initial_disabled_steps:
            group["initial_disabled_steps"] = config.initial_disabled_steps  # type: ignore[assignment]
        section = {"config_groups": {_GROUP: {**group, **figures}}, **section}
    return section


def _figures(setting: Setting, config: SkipSoftmaxConfig) -> dict[str, Any]:
    thresholds = _plain(setting.threshold)
    if thresholds:
        return {"threshold": thresholds}
    factors = {
        phase: factor
        for phase, factor in _plain(setting.scale_factor).items()
        if setting.length_power.get(phase, 1.0) == 1.0
    }
    if factors:
        return {"threshold_scale_factor": factors}
    fits = {phase: fit for phase in PHASES if (fit := _public(setting, config, phase)) is not None}
    if not fits:
        return {}
    coefficients = {phase: {"a": fit.a, "b": fit.b} for phase, fit in fits.items()}
    figures: dict[str, Any] = {"threshold_scale_factor": {"formula": FORMULA, **coefficients}}
    targets = {phase: target for phase, target in _plain(setting.target_sparsity).items() if phase in fits}
    return {**figures, "target_sparsity": targets} if targets else figures


def _public(setting: Setting, config: SkipSoftmaxConfig, phase: Phase) -> Fit | None:
    for fits in (setting.public_fit, setting.fit, config.public_fit, config.fit):
        fit = fits.get(phase)
        if fit is not None and fit.is_public:
            return fit
    return None


def _plain(values: Mapping[Phase, Any]) -> dict[Phase, float]:
    """Of the phases that have one number for all heads."""
    return {phase: value for phase, value in values.items() if isinstance(value, float)}


def merged(document: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` with our section in it; groups of other methods and keys that we do not know stay.

    Raises:
        ArgumentError: what stands under our key belongs to something else.
    """
    held = document.get(KEY)
    if held is not None and not is_ours(held):
        shown = f"keys {', '.join(map(str, held))}" if isinstance(held, Mapping) else repr(held)
        raise expected(KEY, "nothing, or what skip_softmax keeps there", shown)
    before = dict(held or {})
    groups = {name: group for name, group in (before.get("config_groups") or {}).items() if not is_skip_group(group)}
    for name, group in section.get("config_groups", {}).items():
        groups[_free(name, groups)] = group
    # Figures of other forms would contradict those that are written now.
    for name in ("algorithm", "sparse_algo", "threshold", "threshold_scale_factor", "target_sparsity", "coefficients"):
        before.pop(name, None)
    new = {**before, **section}
    new.pop("config_groups", None)
    return {**document, KEY: {"config_groups": groups, **new} if groups else new}


def _free(name: str, taken: Mapping[str, Any]) -> str:
    if name not in taken:
        return name
    number = next(number for number in range(len(taken) + 1) if f"group_{number}" not in taken)
    return f"group_{number}"
