"""What ``bench models`` measures, and with how much: methods, targets, windows, trial thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from skimattn.sparse import Quality
from skimattn.sparse.policy import Phase

UNIFORM = "one threshold"
PARTS = ("curves", "needles", "lengths")
TRIALS = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9)
ALONE = (0.003, 0.02, 0.1, 0.3, 0.8)
GOALS = ((0.66, 0.003), (0.77, 0.01))  # skipped at least, perplexity more by at most; SmolLM2 in prefill


@dataclass(frozen=True)
class Plan:
    """How much is run.

    Attributes:
        length: of windows, the longest that the model takes.
        targets: shares of curves.
        windows: that are measured on.
        calibration: windows that thresholds are found on.
        alone: of them, on which layers run alone.
        heads_alone: of them, on which heads do.
        thresholds: tried by all layers together.
        tried_alone: by layers and heads alone.
        steps: tokens that decode predicts in a window, when measured.
        steps_calibrated: when thresholds are found.
        decode_batch: windows that decode together, in calibration.
        needles: texts with needles.
        lengths: that targets are held against.
        fit_lengths: of windows that fits over lengths are made on; (): 3, 6 and 12 sixteenths of ``length``.
        length_targets: those targets.
        length_windows: windows of each length.
        methods: names of :func:`methods`.
    """

    length: int
    targets: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.66, 0.7, 0.77, 0.8, 0.9)
    windows: int = 50
    calibration: int = 12
    alone: int = 12
    heads_alone: int = 4
    thresholds: tuple[float, ...] = TRIALS
    tried_alone: tuple[float, ...] = ALONE
    steps: int = 32
    steps_calibrated: int = 16
    decode_batch: int = 24
    needles: int = 20
    lengths: tuple[int, ...] = ()
    fit_lengths: tuple[int, ...] = ()
    length_targets: tuple[float, ...] = (0.2, 0.35, 0.5, 0.65, 0.8)
    length_windows: int = 8
    methods: tuple[str, ...] = ()

    @property
    def plain(self) -> dict[str, Any]:
        """What measurements depend on, but which methods, parts and targets there are."""
        made: dict[str, Any] = {**asdict(self)}
        for name in ("methods", "targets", "windows", "needles", "lengths", "length_targets"):
            made.pop(name)  # more of them may be asked for later
        return made

    def calibration_lengths(self) -> tuple[int, ...]:
        """Of windows for fits over lengths: none of those that are measured on."""
        return self.fit_lengths or tuple(self.length * part // 16 for part in (3, 6, 12))


def plan_for(length: int) -> Plan:
    """The default plan of a model that takes so many tokens; long windows cost more, so there are fewer targets."""
    lengths = tuple(one for one in (1024 << shift for shift in range(8)) if one <= length)
    plan = Plan(length, lengths=lengths, methods=tuple(methods(Plan(length))))
    if length <= 8192:
        return plan
    few = {
        "targets": (0.1, 0.3, 0.5, 0.7, 0.9),
        "calibration": 6,
        "alone": 4,
        "heads_alone": 2,
        "length_windows": 4,
        "decode_batch": 8,
    }
    names = (UNIFORM, *_BOTH["loss"], "heads by dropped mass", "heads by output")
    return replace(plan, **few, needles=10, methods=names)  # type: ignore[arg-type]


_BOTH = {
    "loss": ("layers by loss", "heads by loss"),
    "divergence": ("layers by divergence", "heads by divergence"),
    "dropped": ("layers by dropped mass", "heads by dropped mass"),
    "output": ("layers by output", "heads by output"),
}


def methods(plan: Plan, phase: Phase = "prefill") -> Mapping[str, Quality | None]:
    """How thresholds are found; in decode the calibration's windows are one text, a batch."""
    found: dict[str, Quality | None] = {UNIFORM: None}
    for cost, (layers, heads) in _BOTH.items():
        for name, by, texts in ((layers, "layer", plan.alone), (heads, "head", plan.heads_alone)):
            alone = texts if phase == "prefill" else 1
            found[name] = Quality(by, cost, corrections=1, texts=alone, thresholds=plan.tried_alone)  # type: ignore[arg-type]
    return found
