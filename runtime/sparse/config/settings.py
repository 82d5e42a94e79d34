"""What attention modules are told, by phase: a threshold, a scale factor, or a share to be skipped and a fit for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from ...errors import ArgumentError, expected
from ..methods import method_named
from ..policy import PHASES, Phase
from .base import Model
from .fit import Fit

Value = float | tuple[float, ...]
ByPhase = dict[Phase, Value]


def by_phase(value: object) -> ByPhase:
    """A number (or one for each head) of both phases, or of the phases that are named."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(PHASES, _numbers("", value))
    unknown = [str(name) for name in value if name not in PHASES]
    if unknown:
        raise expected(unknown[0], "prefill or decode", "another key")
    return {phase: _numbers(phase, value[phase]) for phase in PHASES if value.get(phase) is not None}


def _numbers(key: str, value: object) -> Value:
    if isinstance(value, list | tuple) and value:
        return tuple(_number(key, one) for one in value)
    return _number(key, value)


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise expected(key, "a finite number, or a list of them with one for each query head", repr(value))
    return float(value)


Numbers = Annotated[ByPhase, BeforeValidator(by_phase)]


class Setting(Model):
    """What the modules of one pattern are told. Of each phase at most one of the first three says something.

    Attributes:
        threshold: final ones, at least 0 and below 1.
        scale_factor: ``threshold = scale_factor / len_k ** length_power``.
        target_sparsity: the share of tiles to skip, at least 0 and below 1; needs a ``fit`` of the phase.
        fit: of each phase.
        public_fit: of each phase, a and b alone, for other libraries, where ``fit`` has more.
        length_power: of ``scale_factor``, by phase; default 1.
        extrapolate: whether a target may lie outside what the fit observed.
        method: a name of :func:`skimattn.sparse.methods.register_method`.
        enable: False: dense.
    """

    threshold: Numbers = Field(default_factory=dict)
    scale_factor: Numbers = Field(default_factory=dict)
    target_sparsity: Numbers = Field(default_factory=dict)
    fit: dict[Phase, Fit] = Field(default_factory=dict)
    public_fit: dict[Phase, Fit] = Field(default_factory=dict)
    length_power: Numbers = Field(default_factory=dict)
    extrapolate: bool = False
    method: str = "skip_softmax"
    enable: bool = True

    def __init__(self, **values: Any) -> None:
        """Any spelling of the values, such as one number for both phases; raises as all parts do."""
        super().__init__(**values)

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        method_named(self.method)
        for phase in PHASES:
            said = [name for name in ("threshold", "scale_factor", "target_sparsity") if phase in getattr(self, name)]
            if len(said) > 1:
                raise ArgumentError(f"{said[1]}.{phase}: expected nothing beside {said[0]} (got both)")
        _within("threshold", self.threshold, 1.0)
        _within("scale_factor", self.scale_factor, math.inf)
        _within("target_sparsity", self.target_sparsity, 1.0)
        _within("length_power", self.length_power, math.inf)
        for name in ("target_sparsity", "length_power"):
            for phase, value in getattr(self, name).items():
                if isinstance(value, tuple):
                    raise expected(f"{name}.{phase}", "one number: heads have thresholds and factors alone", value)
        for phase, fit in self.public_fit.items():
            if fit.length_power != 1.0:
                raise expected(f"public_fit.{phase}.length_power", "1", fit.length_power)
            if fit.curves:
                raise expected(f"public_fit.{phase}.curves", "none: other libraries read a and b", len(fit.curves))
        return self

    @property
    def says_something(self) -> bool:
        """Whether any phase is told anything."""
        return bool(self.threshold or self.scale_factor or self.target_sparsity)


def _within(key: str, values: ByPhase, end: float) -> None:
    for phase, value in values.items():
        for one in value if isinstance(value, tuple) else (value,):
            if not 0 <= one < end:
                wanted = "0 or more" if end == math.inf else f"at least 0 and below {end:g}"
                raise expected(f"{key}.{phase}", wanted, one)
