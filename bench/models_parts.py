"""The parts of ``bench models``: curves, needles, and targets held against lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from skimattn.errors import ArgumentError
from skimattn.integrations.transformers import TextForward
from skimattn.sparse import Fit, ModelRunner, Point, SkipSoftmaxConfig, calibrate, fit_shares
from skimattn.sparse.policy import Phase

from .models_decode import Batches
from .models_figures import Case, Measured, added, at_goal, share_of
from .models_fits import dense_pass, linear_fit
from .models_plan import GOALS, PARTS
from .models_run import Subject, method_names
from .models_texts import Tokens

MOST = 0.99  # the largest threshold: what can be skipped at all


def curves(subject: Subject, phase: Phase) -> Iterator[Case]:
    """Perplexity over shares, a case for each method."""
    plan = subject.plan
    windows = subject.texts.windows("evaluation", plan.length, plan.windows)
    kinds = [subject.texts.name_of(index) for index in range(len(windows))]

    def measured(label: str, config: SkipSoftmaxConfig | None) -> list[Measured]:
        if phase == "prefill":
            return subject.prefill(label, config, windows)
        return subject.decode(label, config, windows, plan.steps)[0]

    dense = measured("dense", None)
    for method in method_names(subject):
        points: list[Case] = []
        spent: list[tuple[float, int]] = []
        for target in plan.targets:
            chosen = subject.chosen(method, phase, target)
            spent.append((chosen.seconds, chosen.runs))
            if chosen.config is None:
                points.append({"target": target, "why": chosen.why})
                continue
            sparse = measured(f"{method}/{target:g}", chosen.config)
            by_text = {
                kind: added(
                    *([row for row, of in zip(rows, kinds, strict=True) if of == kind] for rows in (sparse, dense))
                )
                for kind in dict.fromkeys(kinds)
            }
            points.append(
                {"target": target, "share": share_of(sparse), "added": added(sparse, dense), "by_text": by_text}
            )
        yield {
            "case": f"curves {phase} {method}",
            "part": "curves",
            "phase": phase,
            "method": method,
            "windows": len(windows),
            "length": plan.length,
            "perplexity": float(np.exp(np.mean([row.loss for row in dense]))),
            "points": points,
            # Of the target that was first: later ones, and later methods, use what is known then.
            "calibration": dict(zip(("seconds", "runs"), max(spent), strict=True)),
            "at_goals": [at_goal(points, *goal) for goal in GOALS],
        }


def needles(subject: Subject, phase: Phase) -> Iterator[Case]:
    """Needles found over shares, a case for each method; shares are those of the curves' windows."""
    dense = subject.needles("dense", None, phase)
    for method in method_names(subject):
        points: list[Case] = []
        for target in subject.plan.targets:
            chosen = subject.chosen(method, phase, target)
            if chosen.config is None:
                points.append({"target": target, "why": chosen.why})
                continue
            found = subject.needles(f"{method}/{target:g}", chosen.config, phase)
            points.append({"target": target, "found": sum(found), "lost": _lost(dense, found)})
        yield {
            "case": f"needles {phase} {method}",
            "part": "needles",
            "phase": phase,
            "method": method,
            "texts": len(dense),
            "dense": sum(dense),
            "points": points,
        }


def _lost(dense: Sequence[bool], found: Sequence[bool]) -> int:
    return sum(before and not after for before, after in zip(dense, found, strict=True))


def lengths(subject: Subject, phase: Phase) -> Iterator[Case]:
    """Targets against what is skipped on texts and lengths that no fit has seen; a case for each way to fit."""
    plan, ways = subject.plan, _ways(subject, phase)
    held = {length: subject.texts.windows("evaluation", length, plan.length_windows) for length in plan.lengths}
    most = {
        length: share_of(
            _skipped(subject, phase, f"most/{length}", SkipSoftmaxConfig(threshold={phase: MOST}), windows)
        )
        for length, windows in held.items()
    }
    for way, config_of in ways.items():
        rows = []
        for target in plan.length_targets:
            for length, windows in held.items():
                made = _skipped(subject, phase, f"{way}/{target:g}/{length}", config_of(target), windows)
                rows.append({"target": target, "length": length, "share": share_of(made), "most": most[length]})
        within = [row for row in rows if row["target"] <= row["most"]]
        errors = [row["share"] - row["target"] for row in within]
        yield {
            "case": f"lengths {phase} {way}",
            "part": "lengths",
            "phase": phase,
            "way": way,
            "calibrated_at": list(plan.calibration_lengths()),
            "rows": rows,
            "rms": float(np.sqrt(np.mean(np.square(errors)))) if errors else None,
            "worst": max((abs(error) for error in errors), default=None),
        }


def _skipped(
    subject: Subject, phase: Phase, label: str, config: SkipSoftmaxConfig, windows: Sequence[Tokens]
) -> list[Measured]:
    if phase == "prefill":
        return subject.prefill(label, config, windows)
    return subject.decode(label, config, windows, subject.plan.steps_calibrated)[0]


def _ways(subject: Subject, phase: Phase) -> Mapping[str, Callable[[float], SkipSoftmaxConfig]]:
    """Names of fits, to configurations for a target."""
    known = subject.memo.get(key := f"fits/{phase}")
    if known is None:
        known = _fitted(subject, phase)
        subject.memo.put(key, known)
    made = {way: {layer: Fit(**fit) for layer, fit in fits.items()} for way, fits in known.items()}

    def config_of(fits: Mapping[str, Fit], target: float) -> SkipSoftmaxConfig:
        shared: dict[str, Any] = {"target_sparsity": {phase: target}, "extrapolate": True}
        if "" in fits:
            return SkipSoftmaxConfig(fit={phase: fits[""]}, **shared)
        return SkipSoftmaxConfig(patterns={layer: {"fit": {phase: fit}, **shared} for layer, fit in fits.items()})

    return {way: lambda target, fits=fits: config_of(fits, target) for way, fits in made.items()}  # type: ignore[misc]


def _fitted(subject: Subject, phase: Phase) -> dict[str, dict[str, Any]]:
    """Fits by way and layer ("": the whole model), all from the same windows."""
    plan, texts = subject.plan, subject.texts
    each = plan.length_windows
    groups = [(length, texts.windows("calibration", length, each)) for length in plan.calibration_lengths()]
    runner = _Runner(subject, phase)
    data = [sample for length, windows in groups for sample in runner.samples(length, windows)]
    state = subject.folder / f"lengths-{phase}.jsonl"
    shared: dict[str, Any] = {"runner": runner, "thresholds": plan.thresholds, "extrapolate": True}
    shared |= {"state": state, "about": subject.about, "progress": False, "resamples": 0}
    found = calibrate(subject.model, data, {phase: 0.5}, per_layer=True, **shared)
    own, public = found.config.fit[phase], found.config.public_fit[phase]
    layers = {name: setting for name, setting in found.config.patterns.items() if phase in setting.fit}
    counted = runner.dense_points(data, plan.thresholds)
    fits: dict[str, dict[str, Fit]] = {
        "with a length term": {"": own},
        "plain": {"": public},
        "with a length term, by layer": {name: setting.fit[phase] for name, setting in layers.items()},
        "plain, by layer": {name: setting.public_fit[phase] for name, setting in layers.items()},
        "one dense pass, linear space": {"": linear_fit(counted)},
        "real skipping, linear space": {"": linear_fit(found.points[phase])},
        "one dense pass, plain": {"": fit_shares(counted, resamples=0)},
    }
    return {
        way: {layer: fit.model_dump(mode="json", exclude_defaults=True) for layer, fit in made.items()}
        for way, made in fits.items()
        if made
    }


class _Runner:
    """Runs windows of several lengths in a phase: prompts each on its own, decode in batches of a length."""

    def __init__(self, subject: Subject, phase: Phase) -> None:
        self._subject, self._phase = subject, phase
        self._lengths: dict[int, int] = {}  # of a window, by the tokens of a sample

    def samples(self, length: int, windows: Sequence[Tokens]) -> list[Tokens]:
        """What one run takes."""
        if self._phase == "prefill":
            return [*windows]
        batch = [token for window in windows for token in window]
        self._lengths[len(batch)] = length
        return [batch]

    def forward(self, sample: Sequence[int]) -> Any:
        subject = self._subject
        if self._phase == "prefill":
            return TextForward(subject.model)
        return Batches(subject.model, self._lengths[len(sample)], subject.plan.steps_calibrated)

    def run(self, sample: Sequence[int], phase: Phase) -> Any:
        """As calibration has it."""
        return ModelRunner(self._subject.model, self.forward(sample)).run(sample, phase)

    def dense_points(self, data: Sequence[Tokens], thresholds: Sequence[float]) -> list[Point]:
        """Counts of one dense pass over each sample; of decode, of the steps alone."""
        points = []
        for index, sample in enumerate(data):
            forward = self.forward(sample)
            if isinstance(forward, Batches):
                tokens = torch.tensor(list(sample), device=self._subject.model.device).view(-1, forward.length)
                forward._prompt(tokens)
            with dense_pass(self._subject.model, thresholds) as counts:
                outcome = forward(sample, self._phase)
                length = len(sample) if outcome.length is None else outcome.length
                points += counts.points(str(index), length)
        return points


_MADE: dict[str, Callable[[Subject, Phase], Iterator[Case]]] = dict(zip(PARTS, (curves, needles, lengths), strict=True))


def cases(subject: Subject, part: str, phase: Phase) -> Iterator[Case]:
    """All of a part; what fails is said in its place, and the rest goes on."""
    try:
        yield from _MADE[part](subject, phase)
    except ArgumentError as error:
        yield {"case": f"{part} {phase}", "part": part, "phase": phase, "failed": str(error)}
