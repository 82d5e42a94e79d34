"""``calibrate``: from a model, texts and targets to a configuration that reaches them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skimattn
import torch

from ...errors import expected
from ..config.config import SkipSoftmaxConfig
from ..config.fit import Fit
from ..config.kernels import Kernels, kernels_here
from ..config.settings import by_phase
from ..modules import attention_modules, head_dim_of
from ..policy import Phase, PhaseRule
from ..warning import warn
from .fit import fit_shares
from .measure import Bench, digest, points_of, trials
from .point import Point
from .profile import TOGETHER, By, Cost
from .progress import Progress, shown
from .quality import Chosen, choose_thresholds
from .result import Calibration
from .runner import Forward, ModelRunner, Run, Runner, Sample
from .state import State

TRIALS = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 0.6)  # final thresholds


@dataclass(frozen=True)
class Quality:
    """Ask for thresholds of each layer's, or each head's, own, where tiles cost least.

    Attributes:
        by: what gets a threshold; in decode the heads of one kv head share theirs.
        cost: what is to be small: the added loss of each alone (as many runs as there are units, thresholds and texts);
            how far its predictions move (the same with fewer texts, since it is not hidden behind what labels happen to
            be); the dropped probability, or the square of what heads' outputs change by (both without labels, and
            without runs beyond those of the fit).
        budget: in place of a target share, by phase: nats that may be added to the mean loss (0.003 is 0.3 % of
            perplexity), or what another cost may add up to.
        corrections: how often the choice is run as a whole and moved by what it missed, since units are not
            independent.
        texts: how many of the texts, the first of them, units run alone on; None: all.
        thresholds: final ones at which units run alone, rising; (): all that are tried.
    """

    by: By = "layer"
    cost: Cost = "loss"
    budget: float | Mapping[Phase, float] | None = None
    corrections: int = 2
    texts: int | None = None
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Job:
    """What :func:`calibrate` was asked for, checked."""

    modules: Mapping[str, torch.nn.Module]
    samples: Sequence[Sample]
    targets: Mapping[Phase, float]
    budgets: Mapping[Phase, float]
    thresholds: tuple[float, ...]
    quality: Quality | None
    per_layer: bool
    extrapolate: bool
    resamples: int
    seed: int

    @property
    def names(self) -> list[str]:
        """Of the texts."""
        return [digest(sample) for sample in self.samples]

    @property
    def phases(self) -> list[Phase]:
        return [phase for phase in ("prefill", "decode") if phase in self.targets or phase in self.budgets]


def calibrate(
    model: torch.nn.Module,
    data: Iterable[Sample | torch.Tensor],
    targets: float | Mapping[Phase, float] | None = None,
    *,
    runner: Runner | None = None,
    forward: Forward | None = None,
    modules: Sequence[str] = (),
    thresholds: Sequence[float] = TRIALS,
    quality: Quality | None = None,
    per_layer: bool = False,
    extrapolate: bool = False,
    state: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool | Progress = True,
    resamples: int = 200,
    seed: int = 0,
) -> Calibration:
    """Find out what thresholds skip on real texts, with the kernels that serve, and choose those that reach targets.

    All texts run at all thresholds and really skip, since later decisions depend on earlier ones. The fit of it is
    public, and exported; with texts of several lengths there is one with a length term too. The model is left as it
    was; :func:`skimattn.sparse.sparsify` takes ``config`` of the result.

    Args:
        model: with attention modules that call our kernels, or the reference, as an integration lets them.
        data: texts as token ids; of several lengths, if thresholds are to hold for several.
        targets: shares of tiles to skip, one or by phase. Phases that are not named are not calibrated.
        runner: runs a text; or
        forward: a function that does, see :class:`ModelRunner`.
        modules: patterns of attention modules; default as :func:`attention_modules`.
        thresholds: final ones to try, rising.
        quality: thresholds by layer or head, chosen by what they cost.
        per_layer: fit each layer, so that each skips the target.
        extrapolate: allow targets outside the shares that were observed.
        state: a file in which measurements are kept, so that a calibration that was stopped goes on.
        about: what else they depend on, such as options of ``forward``; the file of another calibration is refused.
        progress: show a bar (if rich is installed), tell a function (done, of how many, what), or neither.
        resamples: of the confidence intervals.
        seed: of the resampling.

    Raises:
        ArgumentError: an argument cannot be; a target is outside what was observed; or the model skips nothing.
    """
    found = attention_modules(model, modules)
    job = _checked(found, data, targets, thresholds, quality, per_layer, extrapolate, resamples, seed)
    kernels = _kernels(job)
    depends = {**_depends_on(model, job, kernels), **(about or {})}
    with shown(progress) as tell:
        bench = Bench(found, _runner(model, runner, forward, modules), State(state, depends), tell, _expected_runs(job))
        done = {phase: _of_phase(bench, job, phase) for phase in job.phases}
    return _assembled(job, done, kernels, tuple(modules))


def _kernels(job: _Job) -> dict[Phase, Kernels]:
    """What serves here, by phase: figures are only good for these."""
    head_dims = [dim for module in job.modules.values() if (dim := head_dim_of(module))]
    return {phase: found for phase in job.phases for dim in head_dims[:1] if (found := kernels_here(phase, dim))}


def _depends_on(model: torch.nn.Module, job: _Job, kernels: Mapping[Phase, Kernels]) -> dict[str, Any]:
    """What measurements depend on."""
    depends: dict[str, Any] = {"layers": list(job.modules), "texts": job.names, "model": type(model).__name__}
    return depends | {"kernels": {phase: str(one) for phase, one in kernels.items()}}


def _runner(model: torch.nn.Module, runner: Runner | None, forward: Forward | None, modules: Sequence[str]) -> Runner:
    if (runner is None) == (forward is None):
        raise expected("runner, forward", "one of them", "both or neither")
    if runner is not None:
        return runner
    assert forward is not None
    return ModelRunner(model, forward, modules)


def _checked(
    modules: Mapping[str, torch.nn.Module],
    data: Iterable[Sample | torch.Tensor],
    targets: float | Mapping[Phase, float] | None,
    thresholds: Sequence[float],
    quality: Quality | None,
    *options: Any,
) -> _Job:
    samples = [[int(token) for token in text] for text in data]
    if not samples or not all(samples):
        raise expected("data", "texts as token ids, at least one, none of them empty", f"{len(samples)} texts")
    rising = _rising("thresholds", thresholds)
    if quality is not None and quality.thresholds:
        _rising("quality.thresholds", quality.thresholds)
    if quality is not None and quality.texts is not None and quality.texts < 1:
        raise expected("quality.texts", "1 or more", quality.texts)
    wanted = _numbers("targets", targets)
    budgets = _numbers("quality.budget", quality.budget if quality else None)
    for phase, target in wanted.items():
        if not 0 < target < 1:
            raise expected(f"targets.{phase}", "above 0 and below 1", target)
        if phase in budgets:
            raise expected(f"quality.budget.{phase}", "nothing beside a target", budgets[phase])
    for phase, budget in budgets.items():
        if not budget > 0:
            raise expected(f"quality.budget.{phase}", "above 0", budget)
    if not wanted and not budgets:
        raise expected("targets", "shares to skip, or a quality with a budget", "neither")
    return _Job(modules, samples, wanted, budgets, rising, quality, *options)


def _rising(key: str, thresholds: Sequence[float]) -> tuple[float, ...]:
    rising = tuple(sorted(set(thresholds)))
    if len(rising) < 2 or rising != tuple(thresholds) or not 0 < rising[0] <= rising[-1] < 1:
        raise expected(key, "at least two, rising, above 0 and below 1", thresholds)
    return rising


def _numbers(key: str, value: Any) -> dict[Phase, float]:
    try:
        given = by_phase(value)
    except ValueError as error:
        raise type(error)(f"{key}{'' if str(error).startswith(':') else '.'}{error}") from None
    if any(isinstance(one, tuple) for one in given.values()):
        raise expected(key, "one number for each phase", given)
    return {phase: one for phase, one in given.items() if isinstance(one, float)}


def _expected_runs(job: _Job) -> int:
    """At least; units of heads are not known yet."""
    texts, tried = len(job.samples), len(job.thresholds)
    runs = texts * tried
    if job.quality is not None:
        runs += texts * job.quality.corrections
        if job.quality.cost not in TOGETHER:
            alone = len(job.samples[: job.quality.texts])
            runs += texts + alone * len(job.modules) * len(job.quality.thresholds or job.thresholds)
    return runs * len(job.phases)


@dataclass(frozen=True)
class _Done:
    """One phase: points, fits (own, public) of the model and of layers, and chosen thresholds."""

    points: tuple[Point, ...]
    fit: Fit
    public: Fit
    layers: Mapping[str, tuple[Fit, Fit]]
    chosen: Chosen | None


def _of_phase(bench: Bench, job: _Job, phase: Phase) -> _Done:
    runs = trials(bench, job.samples, phase, job.thresholds, lambda threshold: PhaseRule(threshold, 0.0))
    points = points_of(runs, job.names)
    fit, public = _fits(points, job)
    target = job.targets.get(phase)
    if target is not None and job.quality is None and not job.extrapolate:
        low, high = fit.sparsity or (0.0, 1.0)
        if not low <= target <= high:
            wanted = f"between {low:.3g} and {high:.3g}, which trials skipped, or extrapolate=True"
            raise expected(f"targets.{phase}", wanted, target)
    layers = _layer_fits(runs, job, phase) if job.per_layer else {}
    chosen = None
    if job.quality is not None:
        power = fit.length_power if target is None else fit.rule(target).length_power
        budget = job.budgets.get(phase)
        chosen = choose_thresholds(bench, job.samples, phase, runs, power, job.quality, target, budget)
    return _Done(tuple(points), fit, public, layers, chosen)


def _fits(points: Sequence[Point], job: _Job) -> tuple[Fit, Fit]:
    own, public = (
        fit_shares(points, length_term=term, resamples=job.resamples, seed=job.seed) for term in (True, False)
    )
    return own, public


def _layer_fits(runs: Mapping[float, Sequence[Run]], job: _Job, phase: Phase) -> dict[str, tuple[Fit, Fit]]:
    fits = {}
    for layer in job.modules:
        try:
            fits[layer] = _fits(points_of(runs, job.names, layer), job)
        except ValueError as error:
            warn(f"{layer}: {phase}: it takes the fit of the whole model, since its own cannot be made: {error}")
    return fits


def _assembled(
    job: _Job, done: Mapping[Phase, _Done], kernels: dict[Phase, Kernels], targets: tuple[str, ...]
) -> Calibration:
    """The configuration: targets and fits, and settings of layers where they have their own."""
    patterns: dict[str, dict[str, Any]] = {}
    for phase, one in done.items():
        for layer, (fit, public) in one.layers.items():
            low, high = fit.sparsity or (0.0, 1.0)
            values = {"fit": fit, "public_fit": public, "target_sparsity": min(max(job.targets[phase], low), high)}
            _add(patterns, layer, phase, values)
        for layer, factor in (one.chosen.factors if one.chosen else {}).items():
            assert one.chosen is not None
            _add(patterns, layer, phase, {"scale_factor": factor, "length_power": one.chosen.length_power})
    config = SkipSoftmaxConfig(
        target_sparsity=dict(job.targets),
        fit={phase: one.fit for phase, one in done.items()},
        public_fit={phase: one.public for phase, one in done.items()},
        patterns=patterns,
        targets=targets,
        extrapolate=job.extrapolate,
        kernels=kernels,
        producer={"name": "skimattn", "version": str(skimattn.__version__)},
    )
    return Calibration(
        config,
        {phase: one.points for phase, one in done.items()},
        {phase: one.chosen for phase, one in done.items() if one.chosen},
    )


def _add(patterns: dict[str, dict[str, Any]], layer: str, phase: Phase, values: Mapping[str, Any]) -> None:
    setting = patterns.setdefault(layer, {})
    for name, value in values.items():
        setting.setdefault(name, {})[phase] = value
