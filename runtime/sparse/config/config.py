"""``SkipSoftmaxConfig``: what every attention module of a model is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from ...errors import expected
from ..methods import method_named
from ..policy import LayerPolicy, Phase
from .base import Model
from .kernels import Kernels
from .patterns import check_pattern, matches
from .settings import Numbers, Setting


class CalibrationPlan(Model):
    """What a configuration asks calibration for, in place of figures.

    Attributes:
        target_sparsity: the shares to reach.
        samples: how many texts to take.
        max_seqlen: the most tokens of each.
        thresholds: those to try, by phase.
    """

    target_sparsity: Numbers = Field(default_factory=dict)
    samples: int | None = Field(default=None, gt=0)
    max_seqlen: int | None = Field(default=None, gt=0)
    thresholds: dict[Phase, tuple[float, ...]] = Field(default_factory=dict)


class SkipSoftmaxConfig(Setting):
    """A setting for all attention modules, and others for those whose names match patterns.

    ``SkipSoftmaxConfig(threshold=0.01)``, ``SkipSoftmaxConfig(scale_factor={"prefill": 200, "decode": 5})`` or
    ``SkipSoftmaxConfig(patterns={"*layers.[0-3].*": {"enable": False}, "default": {"threshold": 0.02}})``.

    Attributes:
        patterns: module names, as fnmatch has them, to settings; the first that matches holds, and ``default`` where
            none does. ``[0-12]`` and the like are numbers, not characters. Exact names are patterns too, and so are
            names of classes. A setting without a fit of its own takes the one above.
        targets: patterns of what attention modules are; default: what has a ``layer_idx`` and is named like attention.
        ignore: patterns of modules that stay dense.
        initial_disabled_steps: of diffusion: so many first steps are dense.
        disabled_until_timestep: of diffusion, whose timesteps fall: steps above this one are dense.
        calibration: asks for one.
        kernels: what the figures were found with, by phase; None: not known.
        producer: who found them.
        stat_log_path: where a :class:`StatLog` that is told no file, and ``skimattn generate``, write statistics.
    """

    patterns: dict[str, Setting] = Field(default_factory=dict)
    targets: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    initial_disabled_steps: int = Field(default=0, ge=0)
    disabled_until_timestep: float | None = Field(default=None, ge=0)
    calibration: CalibrationPlan | None = None
    kernels: dict[Phase, Kernels] = Field(default_factory=dict)
    producer: dict[str, str] = Field(default_factory=dict)
    stat_log_path: str | None = None

    def __init__(self, **values: Any) -> None:
        """Any spelling of the values, such as one number for both phases.

        Raises:
            ArgumentError: one of them cannot be; the text names its key.
        """
        super().__init__(**values)

    @model_validator(mode="after")
    def _patterns_can_be_meant(self) -> Self:
        for key in ("patterns", "targets", "ignore"):
            for pattern in getattr(self, key):
                check_pattern(key, pattern)
        if "default" in self.patterns and self.says_something:
            raise expected("patterns.default", "nothing beside a setting of the configuration itself", "both")
        return self

    @classmethod
    def read(cls, document: Mapping[str, Any] | str | Path) -> Self:
        """The configuration in a document of any known dialect, in a file (JSON or YAML), or beside a model.

        Args:
            document: keys and values; or the path of a file, or of a folder that has a ``config.json``.

        Raises:
            ArgumentError: a key is not known, or a value cannot be; or the document is none of ours.
            OSError: the file cannot be read.
        """
        from .dialects import values_of  # which makes parts of a configuration

        return cls(**values_of(document if isinstance(document, Mapping) else load_document(Path(document))))

    def setting_for(self, name: str, class_name: str = "") -> tuple[str, Setting] | None:
        """What a module is told, and where that stands (for messages); None: nothing, so it is dense."""
        names = (name, class_name) if class_name else (name,)

        def holds(pattern: str) -> bool:
            return any(matches(pattern, one) for one in names)

        if any(holds(pattern) for pattern in self.ignore):
            return None
        for pattern, setting in self.patterns.items():
            if pattern != "default" and holds(pattern):
                return f"patterns.{pattern}.", setting
        if "default" in self.patterns:
            return "patterns.default.", self.patterns["default"]
        return ("", self) if self.says_something else None

    def policy_for(self, name: str, class_name: str = "") -> LayerPolicy | None:
        """The policy of a module; None: it is told nothing.

        Raises:
            ArgumentError: a target has no fit, or lies outside of what the fit observed.
        """
        found = self.setting_for(name, class_name)
        if found is None or not found[1].enable:
            return None
        where, setting = found
        missing = {phase: fit for phase, fit in self.fit.items() if phase not in setting.fit}
        if setting.target_sparsity and missing:
            setting = setting.model_copy(update={"fit": {**setting.fit, **missing}})
        rules = method_named(setting.method, f"{where}method").rules(setting, where)
        return LayerPolicy(rules) if rules else None

    def is_dense_at(self, step: int | None, timestep: float | None) -> bool:
        """Whether a diffusion step is to be dense: its number from 0, and its timestep, where they are known."""
        early = step is not None and step < self.initial_disabled_steps
        until = self.disabled_until_timestep
        return early or (until is not None and timestep is not None and timestep > until)


def load_document(path: Path) -> Mapping[str, Any]:
    """Keys and values of a JSON or YAML file, or of the ``config.json`` of a folder.

    Raises:
        ArgumentError: it holds something else.
        OSError: it cannot be read.
    """
    file = path / "config.json" if path.is_dir() else path
    text = file.read_text(encoding="utf-8")
    found = _yaml(text, file) if file.suffix in (".yaml", ".yml") else _json(text, file)
    if not isinstance(found, Mapping):
        raise expected(str(file), "keys and values", type(found).__name__)
    return found


def _json(text: str, file: Path) -> object:
    try:
        found: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise expected(str(file), "JSON", error) from error
    return found


def _yaml(text: str, file: Path) -> object:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("YAML files need PyYAML: pip install 'skimattn[calibrate]'") from error
    try:
        found: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise expected(str(file), "YAML", str(error).replace("\n", " ")) from error
    return found
