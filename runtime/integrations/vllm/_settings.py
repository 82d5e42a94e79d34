"""What a deployment is told: from ``--additional-config``, from the environment, or from the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import expected
from ...sparse import SkipSoftmaxConfig
from ...sparse.config.dialects import KEY, is_ours

SECTION = "skimattn"  # of --additional-config
KEYS = ("config", "stat_log", "metrics")
VARIABLES = {
    "config": "SKIMATTN_VLLM_CONFIG",
    "stat_log": "SKIMATTN_VLLM_STAT_LOG",
    "metrics": "SKIMATTN_VLLM_METRICS",
}
_SWITCH = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True)
class Settings:
    """What layers skip, and who is told of it.

    Args:
        config: None: all layers are dense.
        stat_log: where a log of each step is to be written; None: nowhere.
        metrics: whether tiles are counted for the metrics endpoint.
    """

    config: SkipSoftmaxConfig | None = None
    stat_log: Path | None = None
    metrics: bool = True


def read_settings(additional: Mapping[str, Any], environ: Mapping[str, str], section: object = None) -> Settings:
    """The settings. Each comes from the first of the sources that has it.

    Args:
        additional: vLLM's ``additional_config``, whose key ``skimattn`` may hold ``config`` (a document that
            :meth:`SkipSoftmaxConfig.read` takes, or its file or folder; false: dense), ``stat_log`` and ``metrics``.
        environ: the environment, with the same as ``SKIMATTN_VLLM_CONFIG`` (a file, a folder, or JSON),
            ``SKIMATTN_VLLM_STAT_LOG`` and ``SKIMATTN_VLLM_METRICS`` (0 or 1).
        section: what the checkpoint keeps under ``sparse_attention_config``; other methods' is left alone.

    Raises:
        ArgumentError: a key is unknown, a value cannot be, or the configuration is not one for serving.
        OSError: its file cannot be read.
    """
    own = additional.get(SECTION, {})
    if not isinstance(own, Mapping):
        raise expected(f"additional_config.{SECTION}", "keys and values", repr(own))
    for key in own:
        if key not in KEYS:
            raise expected(f"additional_config.{SECTION}.{key}", f"one of {', '.join(KEYS)}", "another key")
    given = {key: (VARIABLES[key], environ[VARIABLES[key]]) for key in KEYS if environ.get(VARIABLES[key])}
    given |= {key: (f"additional_config.{SECTION}.{key}", value) for key, value in own.items() if value is not None}
    config = _config(*given["config"]) if "config" in given else _of_checkpoint(section)
    stat_log = _path(*given["stat_log"]) if "stat_log" in given else None
    if config is not None:
        _refuse_unservable(config)
        if stat_log is None and config.stat_log_path is not None:
            stat_log = Path(config.stat_log_path)
    elif stat_log is not None:
        raise expected(given["stat_log"][0], "a config beside it: dense layers count nothing", str(stat_log))
    return Settings(config, stat_log, _switch(*given["metrics"]) if "metrics" in given else True)


def _of_checkpoint(section: object) -> SkipSoftmaxConfig | None:
    return SkipSoftmaxConfig.read({KEY: section}) if is_ours(section) else None


def _config(name: str, value: object) -> SkipSoftmaxConfig | None:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise expected(name, "JSON, a file or a folder", error) from error
    if value is False or value == "0":
        return None
    if not isinstance(value, Mapping | str):
        raise expected(name, "a configuration, its file or folder, or false", repr(value))
    return SkipSoftmaxConfig.read(value)


def _path(name: str, value: object) -> Path:
    if not isinstance(value, str):
        raise expected(name, "the path of a file", repr(value))
    return Path(value)


def _switch(name: str, value: object) -> bool:
    found = value if isinstance(value, bool) else _SWITCH.get(str(value).lower())
    if found is None:
        raise expected(name, "true or false, or 1 or 0", repr(value))
    return found


def _refuse_unservable(config: SkipSoftmaxConfig) -> None:
    """Refuse what only other engines or other steps of the work can honour."""
    for key in ("initial_disabled_steps", "disabled_until_timestep"):
        if getattr(config, key):
            raise expected(key, "none: steps are of diffusion, and texts have none", getattr(config, key))
    settings = [config, *config.patterns.values()]
    if config.calibration is not None and not any(setting.says_something for setting in settings):
        raise expected("config", "figures, such as calibrate makes", "a configuration that asks for a calibration")
