"""What a deployment is told: by an argument of its engine, by the environment, or by the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skimattn.codegen import variables

from ...errors import expected
from ...sparse import SkipSoftmaxConfig
from ...sparse.config.dialects import KEY, is_ours

SECTION = "skimattn"  # of the engine's argument
KEYS = ("config", "stat_log", "metrics")


@dataclass(frozen=True)
class Settings:
    """What layers skip, and who is told of it.

    Args:
        config: None: all layers are dense.
        stat_log: where a log of each step is to be written; None: nowhere.
        metrics: whether tiles are counted for those who look on.
    """

    config: SkipSoftmaxConfig | None = None
    stat_log: Path | None = None
    metrics: bool = True

    def log_of(self, engine: int, engines: int) -> Path | None:
        """The log of one of several engines, which have a file each."""
        log = self.stat_log
        return log if log is None or engines == 1 else log.with_name(f"{log.stem}.engine{engine}{log.suffix}")


@dataclass(frozen=True)
class Source:
    """How an engine is told.

    Args:
        argument: its argument that holds free keys and values.
        prefix: of the environment's variables.
    """

    argument: str
    prefix: str

    def variable(self, key: str) -> str:
        """The environment's name of a setting."""
        return f"{self.prefix}_{key.upper()}"


def read_from(source: Source, additional: Mapping[str, Any], section: object = None) -> Settings:
    """The settings. Each comes from the first of the sources that has it: argument, environment, checkpoint.

    Args:
        source: names them.
        additional: the engine's argument, whose key ``skimattn`` may hold ``config`` (a document that
            :meth:`SkipSoftmaxConfig.read` takes, or its file or folder; false: dense), ``stat_log`` and ``metrics``.
        section: what the checkpoint keeps under ``sparse_attention_config``; other methods' is left alone.

    Raises:
        ArgumentError: a key is unknown, a value cannot be, or the configuration is not one for serving.
        OSError: its file cannot be read.
    """
    own, name = additional.get(SECTION, {}), f"{source.argument}.{SECTION}"
    if not isinstance(own, Mapping):
        raise expected(name, "keys and values", repr(own))
    for key in own:
        if key not in KEYS:
            raise expected(f"{name}.{key}", f"one of {', '.join(KEYS)}", "another key")
    names = {key: source.variable(key) for key in KEYS}
    given = {key: (variable, said) for key, variable in names.items() if (said := variables.text(variable))}
    given |= {key: (f"{name}.{key}", value) for key, value in own.items() if value is not None}
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
    return value if isinstance(value, bool) else variables.meaning(name, str(value))


def _refuse_unservable(config: SkipSoftmaxConfig) -> None:
    """Refuse what only other engines or other steps of the work can honour."""
    for key in ("initial_disabled_steps", "disabled_until_timestep"):
        if getattr(config, key):
            raise expected(key, "none: steps are of diffusion, and texts have none", getattr(config, key))
    settings = [config, *config.patterns.values()]
    if config.calibration is not None and not any(setting.says_something for setting in settings):
        raise expected("config", "figures, such as calibrate makes", "a configuration that asks for a calibration")
