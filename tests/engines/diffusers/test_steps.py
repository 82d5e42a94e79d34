"""Schedules of dense steps, transformers that take turns, and statistics by step, in real pipelines."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from skimattn import ArgumentError
from skimattn.integrations.diffusers import OnStepEnd, denoising, sparsify
from skimattn.sparse import config_of, disable, policy_of, read_statistics, set_step, summary

from .models import FAMILIES, model_of, output_of
from .pipelines import FORWARDS, LAYERS, STEPS, run_flux, run_hunyuan, run_wan, wan_pipeline

THRESHOLD = 0.2
TILES = 8 * 4 * 2  # groups of 64 rows, tiles of 128 keys, and heads, of 512 tokens


def refused(name: str, *words: str) -> Any:
    """The error of an argument, which must also say ``words``."""
    return pytest.raises(ArgumentError, match=f"(?s)^{name}: expected" + "".join(f".*{word}" for word in words))


def visited(path: Path, component: str) -> list[int]:
    """Visited tiles of a component's layers in each step."""
    found = read_statistics(path)
    own = [index for index, name in enumerate(found.layers) if name.startswith(f"{component}.blocks")]
    assert len(own) == LAYERS
    return [int(step) for step in found.tiles["prefill"][:, own, 0].sum(1)]


def in_steps(*counted: bool) -> list[int]:
    return [TILES * LAYERS * FORWARDS * one for one in counted]


def test_first_steps_are_dense_and_transformers_have_configurations_of_their_own(tmp_path: Path) -> None:
    pipe = wan_pipeline()
    first = {"threshold": THRESHOLD, "initial_disabled_steps": 1}
    sparsify(pipe, {"transformer": first, "transformer_2": {"threshold": 0.3}})
    assert config_of(pipe.transformer_2).initial_disabled_steps == 0
    with denoising(pipe, stat_log=tmp_path / "stats.jsonl") as on_step_end:
        run_wan(pipe, on_step_end)
    assert [time >= 800 for time in pipe.scheduler.timesteps.tolist()] == [True, True, False, False], "the boundary"
    assert visited(tmp_path / "stats.jsonl", "transformer") == in_steps(False, True, False, False)
    assert visited(tmp_path / "stats.jsonl", "transformer_2") == in_steps(False, False, True, True)
    assert read_statistics(tmp_path / "stats.jsonl").tiles["prefill"][..., 1].sum() > 0


def test_one_configuration_counts_steps_through_both_transformers(tmp_path: Path) -> None:
    pipe = sparsify(wan_pipeline(), {"threshold": THRESHOLD, "initial_disabled_steps": 3})
    with denoising(pipe, stat_log=tmp_path / "stats.jsonl") as on_step_end:
        run_wan(pipe, on_step_end)
        run_wan(pipe, on_step_end)  # the next run begins with dense steps again
    assert visited(tmp_path / "stats.jsonl", "transformer") == in_steps(*[False] * 8)
    assert visited(tmp_path / "stats.jsonl", "transformer_2") == in_steps(*[False, False, False, True] * 2)


def test_steps_above_a_timestep_are_dense(tmp_path: Path) -> None:
    pipe = wan_pipeline(boundary_ratio=None)
    pipe.scheduler.set_timesteps(STEPS)
    times = pipe.scheduler.timesteps.tolist()
    sparsify(pipe, {"threshold": THRESHOLD, "disabled_until_timestep": times[2]})
    with denoising(pipe, stat_log=tmp_path / "stats.jsonl") as on_step_end:
        run_wan(pipe, on_step_end)
    assert visited(tmp_path / "stats.jsonl", "transformer") == in_steps(False, False, True, True), (
        "this one is not above"
    )


def test_dense_steps_compute_what_a_dense_model_does() -> None:
    pipe = sparsify(wan_pipeline(None), {"threshold": THRESHOLD, "initial_disabled_steps": 2})
    with denoising(pipe) as on_step_end:
        steps_are_dense = run_wan(pipe, on_step_end, steps=2)
    sparsify(pipe, {"threshold": THRESHOLD})
    sparse = run_wan(pipe, steps=2)  # without dense steps nobody has to be told anything
    disable(pipe.transformer)
    assert torch.equal(run_wan(pipe, steps=2), steps_are_dense)
    assert not torch.equal(sparse, steps_are_dense)


@pytest.mark.parametrize("run", [run_hunyuan, run_flux])
def test_other_pipelines(run: Any, tmp_path: Path) -> None:
    def skipping(pipe: Any) -> AbstractContextManager[OnStepEnd]:
        sparsify(pipe, {"threshold": THRESHOLD, "initial_disabled_steps": 2}, count=True)
        return denoising(pipe, stat_log=tmp_path / "stats.jsonl")

    run(skipping)
    found = read_statistics(tmp_path / "stats.jsonl")
    steps = found.tiles["prefill"][..., 0].sum(1).tolist()
    assert steps[:2] == [0, 0] and steps[2] == steps[3] > 0
    assert len(found.layers) == 2


def test_a_callback_of_ones_own_and_the_rules_in_the_file(tmp_path: Path) -> None:
    pipe, seen = sparsify(wan_pipeline(None), {"threshold": THRESHOLD, "initial_disabled_steps": 1}), []
    with denoising(pipe, stat_log=tmp_path / "stats.jsonl") as on_step_end:

        def own(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            on_step_end(pipe, step, timestep, kwargs)
            seen.append((step, float(timestep)))
            return kwargs

        run_wan(pipe, own, steps=3)
    assert [step for step, _ in seen] == [0, 1, 2] and on_step_end.steps == 3
    assert policy_of(pipe.transformer.blocks[0].attn1).collector is None, "the log has gone"


class Loop:
    """What a pipeline is to denoising, in a loop that begins late: a part of the scheduler's timesteps."""

    def __init__(self, transformer: Any, steps: int, skipped: int) -> None:
        self.components = {"transformer": transformer, "vae": None}
        self.scheduler = diffusers.UniPCMultistepScheduler(flow_shift=3.0, use_flow_sigmas=True)
        self.scheduler.set_timesteps(steps)
        self.num_timesteps = steps - skipped

    @property
    def num_timesteps(self) -> int:
        return self._number

    @num_timesteps.setter
    def num_timesteps(self, number: int) -> None:
        self._number = number

    def run(self, on_step_end: Any) -> list[bool]:
        """Whether each step was dense."""
        policy = policy_of(self.components["transformer"].blocks[0].attn1)
        assert policy is not None
        found = []
        for step, time in enumerate(self.scheduler.timesteps[-self.num_timesteps :]):
            found.append(not policy.enabled)
            assert on_step_end(self, step, time, {"latents": 1}) == {"latents": 1}
        return found


def test_a_run_that_begins_late_and_another_scheduler() -> None:
    model = sparsify(model_of("wan"), {"threshold": THRESHOLD, "disabled_until_timestep": 700})
    loop = Loop(model, 8, 3)
    dense = [time > 700 for time in loop.scheduler.timesteps[3:].tolist()]
    assert dense[0] and not dense[-1]
    with denoising(loop) as on_step_end:
        assert loop.run(on_step_end) == dense
    loop.num_timesteps = 2  # all of them below: the first one is dense still
    with denoising(loop) as on_step_end:
        assert loop.run(on_step_end) == [True, False]


def test_a_loop_of_ones_own() -> None:
    model, inputs = model_of("wan"), FAMILIES["wan"].inputs()
    sparsify(model, {"threshold": THRESHOLD, "initial_disabled_steps": 1}, count=True)
    counted = []
    for step in range(3):
        set_step(model, step)
        output_of(model, inputs)
        counted.append(summary(model).rows[0].visited)
    assert counted[0] == 0 and counted[1] and counted[2] == 2 * counted[1]


def test_who_is_not_told_the_step_is_refused() -> None:
    pipe = sparsify(wan_pipeline(None), {"threshold": THRESHOLD, "initial_disabled_steps": 1})
    with refused("step", "denoising", "set_step"):
        run_wan(pipe)
    with denoising(pipe) as on_step_end:
        run_wan(pipe, on_step_end)
    with refused("step", "denoising", "set_step"):  # behind the context again
        run_wan(pipe)
    with refused("callback_on_step_end", "no step that ended"), denoising(pipe):
        run_wan(pipe)


def test_a_step_that_was_not_to_come() -> None:
    model = sparsify(model_of("wan"), {"threshold": THRESHOLD})
    loop = Loop(model, 4, 0)
    with refused("step", "2, which was told to come", r"got 0\)"), denoising(loop) as on_step_end:
        for step in (0, 1, 0):  # a run was interrupted
            on_step_end(loop, step, loop.scheduler.timesteps[step], {})
    with refused("pipe", "called with"), denoising(loop) as on_step_end:
        on_step_end(Loop(model, 4, 0), 0, 999, {})


def test_timesteps_that_the_scheduler_does_not_have() -> None:
    loop = Loop(sparsify(model_of("wan"), {"threshold": THRESHOLD, "disabled_until_timestep": 700}), 4, 0)
    with refused("pipe.scheduler.timesteps", "4 timesteps from 3 on"), denoising(loop) as on_step_end:
        on_step_end(loop, 0, torch.tensor(3.0), {})


def test_pipelines_that_cannot_be_told() -> None:
    model = model_of("wan")
    with refused("target", "one that sparsify was called with"), denoising(wan_pipeline(None)):
        pass
    sparsify(model, {"threshold": THRESHOLD})
    with refused("pipe", "num_timesteps"), denoising(SimpleNamespace(components={"transformer": model})):
        pass
