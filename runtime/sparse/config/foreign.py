"""What ModelOpt (two forms) and TensorRT-LLM write, as values of ours. A key that nobody knows is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import expected
from ..policy import PHASES

Values = dict[str, Any]

ALGORITHMS = ("skip_softmax", "softmax_skip", "flash_skip_softmax")  # names of the one method, by others
FORMULA = "a * exp(b * target_sparsity)"
_GROUP = (
    *("algorithm", "sparse_algo", "targets", "ignore", "threshold", "threshold_scale_factor"),
    *("target_sparsity", "initial_disabled_steps", "disabled_until_timestep"),
)
_SECTION = ("config_groups", "producer", "threshold_scale_factor", "target_sparsity")
_ENGINE = (
    *("algorithm", "threshold", "threshold_scale_factor", "target_sparsity", "coefficients"),
    *("disabled_until_timestep", "stat_log_path"),
)


def known_only(key: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first key that is not known."""
    for name in given:
        if name not in known:
            raise expected(f"{key}{name}", f"one of {', '.join(known)}", "another key")


def is_skip_group(group: object) -> bool:
    """Whether one of ``config_groups`` is about skipping softmax tiles."""
    return isinstance(group, Mapping) and group.get("algorithm", group.get("sparse_algo")) in ALGORITHMS


def from_modelopt(section: Mapping[str, Any]) -> Values:
    """``config_groups``, of ModelOpt now or of its version 0.37; groups of other methods are left alone."""
    known_only("", section, _SECTION)
    groups = section["config_groups"]
    if not isinstance(groups, Mapping):
        raise expected("config_groups", "keys and values", repr(groups))
    above = {name: section[name] for name in ("threshold_scale_factor", "target_sparsity") if name in section}
    read = [
        _group(f"config_groups.{name}.", {**above, **group}) for name, group in groups.items() if is_skip_group(group)
    ]
    if not read:
        raise expected("config_groups", "a group whose algorithm is skip_softmax", ", ".join(groups) or "none")
    values = dict(read[0]) if len(read) == 1 else _several(read)
    producer = section.get("producer")
    if isinstance(producer, Mapping):
        values["producer"] = {str(name): str(value) for name, value in producer.items()}
    return values


def _several(groups: list[Values]) -> Values:
    """Groups for different targets become patterns, in their order."""
    patterns: dict[str, Any] = {}
    values: Values = {"patterns": patterns, "targets": [], "ignore": []}
    for group in groups:
        setting = {
            name: value
            for name, value in group.items()
            if name in ("threshold", "scale_factor", "fit", "target_sparsity")
        }
        for target in group["targets"] or ["default"]:
            patterns.setdefault(target, setting)
            values["targets"] += [target] if group["targets"] else []
        values["ignore"] += group["ignore"]
        values |= {name: group[name] for name in ("initial_disabled_steps", "disabled_until_timestep") if name in group}
    return values


def _group(key: str, group: Mapping[str, Any]) -> Values:
    known_only(key, group, _GROUP)
    values = _figures(key, group)
    values |= {"targets": list(group.get("targets", ())), "ignore": list(group.get("ignore", ()))}
    return values | {
        name: group[name] for name in ("initial_disabled_steps", "disabled_until_timestep") if name in group
    }


def from_engine(section: Mapping[str, Any]) -> Values:
    """TensorRT-LLM's: factors, or coefficients and a target; of its early form the final threshold."""
    if section.get("algorithm", ALGORITHMS[0]) not in ALGORITHMS:
        raise expected("algorithm", f"one of {', '.join(ALGORITHMS)}", repr(section["algorithm"]))
    known_only("", section, _ENGINE)
    values = _figures("", section)
    values |= {name: section[name] for name in ("disabled_until_timestep", "stat_log_path") if name in section}
    return values


def _figures(key: str, group: Mapping[str, Any]) -> Values:
    """Threshold, factor, or target and fit, whichever is there; figures that are final win over a target."""
    if group.get("threshold") is not None:
        return {"threshold": group["threshold"]}
    factor, target = group.get("threshold_scale_factor"), group.get("target_sparsity")
    coefficients = group.get("coefficients")
    if coefficients is None and isinstance(factor, Mapping) and any(isinstance(factor.get(p), Mapping) for p in PHASES):
        _check_formula(f"{key}threshold_scale_factor.formula", factor.get("formula"))
        coefficients = {phase: factor[phase] for phase in PHASES if phase in factor}
        factor = None
    if factor is not None:
        return {"scale_factor": factor}
    values: Values = {}
    if coefficients is not None:
        values["fit"] = _fits(f"{key}coefficients", coefficients)
    if target is not None:
        values["target_sparsity"] = target
    if not values:
        raise expected(f"{key}threshold_scale_factor", "factors, or coefficients and a target_sparsity", "none")
    return values


def _check_formula(key: str, formula: object) -> None:
    if formula is not None and str(formula).replace(" ", "") != FORMULA.replace(" ", ""):
        raise expected(key, repr(FORMULA), repr(formula))


def _fits(key: str, coefficients: Any) -> dict[str, Any]:
    """a (or log_a) and b of each phase, or of both."""
    if not isinstance(coefficients, Mapping):
        raise expected(key, "a and b, by phase", repr(coefficients))
    by_phase = coefficients if any(phase in coefficients for phase in PHASES) else dict.fromkeys(PHASES, coefficients)
    known_only(f"{key}.", by_phase, PHASES)
    fits = {}
    for phase, fit in by_phase.items():
        if not isinstance(fit, Mapping):
            raise expected(f"{key}.{phase}", "a and b", repr(fit))
        known_only(f"{key}.{phase}.", fit, ("a", "b", "log_a"))
        values = dict(fit)
        if "log_a" in values:
            values["a"] = _exponential(f"{key}.{phase}.log_a", values.pop("log_a"))
        fits[phase] = values
    return fits


def _exponential(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 700:
        raise expected(key, "a number whose exponential is one", repr(value))
    return math.exp(value)
