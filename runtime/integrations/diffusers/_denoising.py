"""``denoising``: which step of a run comes next, and what each one skipped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from ...errors import expected
from ...sparse.model import await_step, config_of, set_step
from ...sparse.statlog.log import StatLog
from ._models import sparsified


class OnStepEnd:
    """What a pipeline calls at the end of each step: a line of statistics, and what the next step is told.

    In a callback of your own, call it first: ``on_step_end(pipe, step, timestep, kwargs)``.
    """

    def __init__(self, pipe: Any, transformers: Mapping[str, torch.nn.Module], log: StatLog | None) -> None:
        """Before the first step, which has to be told before the pipeline begins."""
        self._pipe, self._transformers, self._log = pipe, transformers, log
        self._by_time = any(config_of(one).disabled_until_timestep is not None for one in transformers.values())
        self._timesteps: list[float] = []
        self.steps = 0
        self._begin()

    def __call__(self, pipe: Any, step: int, timestep: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:
        """End a step.

        Args:
            pipe: the pipeline.
            step: its number, from 0.
            timestep: its timestep.
            callback_kwargs: handed back as they are.

        Raises:
            ArgumentError: another step than this one was to end, or the scheduler does not say when the next one is.
        """
        if pipe is not self._pipe:
            raise expected("pipe", "the pipeline that denoising was called with", type(pipe).__name__)
        if step != self._next:
            hint = "a run that was interrupted needs another denoising"
            raise expected("step", f"{self._next}, which was told to come ({hint})", step)
        if self._log is not None:
            self._log.step()
        self.steps += 1
        if step + 1 == pipe.num_timesteps:
            self._begin()
            return callback_kwargs
        if self._by_time and step == 0:
            self._timesteps = _timesteps(pipe, timestep)
        self._tell(step + 1, self._timesteps[step + 1] if self._by_time else None)
        return callback_kwargs

    def _begin(self) -> None:
        """The first step of a run is the one with the highest timestep, which nobody knows before it runs."""
        self._tell(0, math.inf)

    def _tell(self, step: int, timestep: float | None) -> None:
        self._next = step
        for transformer in self._transformers.values():
            set_step(transformer, step, timestep)


def _timesteps(pipe: Any, first: Any) -> list[float]:
    """Those of this run, which may begin later than the scheduler's; read from the device once in a run."""
    found: list[float] = torch.as_tensor(pipe.scheduler.timesteps).tolist()[-pipe.num_timesteps :]
    if len(found) != pipe.num_timesteps or found[0] != float(first):
        wanted = f"{pipe.num_timesteps} timesteps from {float(first):g} on, for disabled_until_timestep"
        raise expected("pipe.scheduler.timesteps", wanted, f"{len(found)} from {found[0]:g} on" if found else "none")
    return found


@contextmanager
def denoising(pipe: Any, *, stat_log: str | Path | None = None) -> Iterator[OnStepEnd]:
    """Runs of a sparsified pipeline in this context know their steps, and may write what each one skipped.

    ``with denoising(pipe) as on_step_end: pipe(..., callback_on_step_end=on_step_end)``, as often as you like. With
    ``disabled_until_timestep`` the first step of a run is dense, whatever its timestep.

    Args:
        pipe: a pipeline that :func:`sparsify` was called with.
        stat_log: a file for :class:`skimattn.sparse.StatLog`, with a step for each denoising step, and layers of all
            transformers that skip, named by component.

    Raises:
        ArgumentError: the pipeline was not sparsified, or does not count its steps; at the end, no step was reported.
    """
    transformers = sparsified(pipe)
    if not hasattr(type(pipe), "num_timesteps"):
        raise expected("pipe", "a pipeline that has num_timesteps (else call set_step yourself)", type(pipe).__name__)
    with ExitStack() as stack:
        log = None
        if stat_log is not None:
            log = stack.enter_context(StatLog(stat_log, torch.nn.ModuleDict(dict(transformers))))
        stack.callback(_forget, transformers)
        on_step_end = OnStepEnd(pipe, transformers, log)
        yield on_step_end
        if on_step_end.steps == 0:
            raise expected("callback_on_step_end", "what denoising gives, handed to the pipeline", "no step that ended")


def _forget(transformers: Mapping[str, torch.nn.Module]) -> None:
    for transformer in transformers.values():
        await_step(transformer)
