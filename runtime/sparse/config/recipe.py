"""What people give ModelOpt's ``sparsify`` (of 0.37 and of 0.47), as values of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import expected
from ..policy import PHASES
from ..warning import warn
from .foreign import Values, known_only

_ENTRY = ("method", "enable", "threshold", "thresholds", "calibration")
_ELSEWHERE = ("br", "bc", "backend", "collect_stats", "is_causal")  # of its own implementation: say nothing to ours
_CALIBRATION = ("target_sparse_ratio", "samples", "max_seqlen")
_METHODS = {"flash_skip_softmax": "skip_softmax", "softmax_skip": "skip_softmax"}


def from_recipe(document: Mapping[str, Any]) -> Values:
    """``sparse_cfg``: patterns and ``default`` to entries, and perhaps ``calibration``."""
    known_only("", document, ("sparse_cfg", "method"))
    entries = document["sparse_cfg"]
    if not isinstance(entries, Mapping):
        raise expected("sparse_cfg", "patterns to settings", repr(entries))
    values: Values = {"patterns": {}}
    asked = entries.get("calibration")
    for pattern, entry in entries.items():
        if pattern == "calibration":
            continue
        key = f"sparse_cfg.{pattern}."
        if not isinstance(entry, Mapping):
            raise expected(key.rstrip("."), "keys and values", repr(entry))
        known_only(key, entry, (*_ENTRY, *_ELSEWHERE))
        asked = entry.get("calibration", asked)
        trials = entry.get("thresholds")
        setting, several = _setting(key, entry, trials)
        if several:
            values["calibration"] = {**values.get("calibration", {}), "thresholds": several}
        values["patterns"][pattern] = setting
    if asked is not None:
        values["calibration"] = {**values.get("calibration", {}), **_calibration(asked)}
    elif "calibration" in values:
        raise expected("sparse_cfg.calibration", "what to do with several thresholds", "none")
    return values


def _setting(key: str, entry: Mapping[str, Any], trials: Any) -> tuple[Values, Values]:
    """What a pattern is told, and the thresholds to try where there are several."""
    method = entry.get("method", "skip_softmax")
    setting: Values = {"method": _METHODS.get(method, method), "enable": entry.get("enable", True)}
    if "br" in entry or "bc" in entry:
        warn(f"{key}br and bc say which tiles were meant; here it is the kernels that decide, see explain")
    if "threshold" in entry:
        setting["threshold"] = entry["threshold"]
    if trials is None:
        return setting, {}
    if not isinstance(trials, Mapping) or not all(isinstance(trials[phase], list | tuple) for phase in trials):
        raise expected(f"{key}thresholds", "lists by phase", repr(trials))
    known_only(f"{key}thresholds.", trials, PHASES)
    if all(len(values) == 1 for values in trials.values()):
        setting["threshold"] = {phase: values[0] for phase, values in trials.items()}
        return setting, {}
    return setting, {phase: list(values) for phase, values in trials.items()}


def _calibration(asked: Any) -> Values:
    if not isinstance(asked, Mapping):
        raise expected("sparse_cfg.calibration", "keys and values", repr(asked))
    if "target_sparse_ratio" not in asked:
        raise expected("sparse_cfg.calibration.target_sparse_ratio", "the share to skip", "none")
    others = [name for name in asked if name not in _CALIBRATION]
    if others:
        warn(f"sparse_cfg.calibration: {', '.join(others)} is not used here")
    plan = {"target_sparsity": asked["target_sparse_ratio"]}
    return plan | {name: asked[name] for name in ("samples", "max_seqlen") if asked.get(name) is not None}
