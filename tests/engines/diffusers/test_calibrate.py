"""Calibration of pipelines: what targets come to, transformers in turn, dense steps, noise, and what is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from skimattn import ArgumentError
from skimattn.integrations.diffusers import calibrate, denoising, sparsify
from skimattn.sparse import policy_of, read_statistics

from .models import DEVICE
from .pipelines import FORWARDS, LAYERS, STEPS, wan_pipeline

TRIALS = (0.02, 0.1, 0.3, 0.6, 0.9)
TILES = 8 * 4 * 2  # groups of 64 rows, tiles of 128 keys, and heads, of 512 tokens


def request(**changes: Any) -> dict[str, Any]:
    text = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.bfloat16)
    given = {"prompt_embeds": text, "negative_prompt_embeds": torch.zeros_like(text), "num_frames": 5}
    return given | {"height": 256, "width": 256, "num_inference_steps": STEPS} | changes


def found_of(pipe: Any, **options: Any) -> Any:
    given: dict[str, Any] = {"thresholds": TRIALS, "progress": False, "extrapolate": True} | options
    return calibrate(pipe, given.pop("requests", [request()]), given.pop("target", 0.3), **given)


def shares(pipe: Any, folder: Path, **changes: Any) -> list[float]:
    """What each component skips of one request."""
    with denoising(pipe, stat_log=folder / "x.jsonl") as on_step_end:
        seeded = {"generator": torch.Generator().manual_seed(0), "output_type": "latent"}
        pipe(**request(callback_on_step_end=on_step_end, **seeded, **changes))
    found = read_statistics(folder / "x.jsonl")
    made = []
    for name in ("transformer.", "transformer_2."):
        own = [index for index, layer in enumerate(found.layers) if layer.startswith(name)]
        visited, skipped = found.tiles["prefill"][:, own].sum((0, 1))
        made.append(skipped / visited)
    return made


def test_each_transformer_meets_the_target_and_nothing_is_left_behind(tmp_path: Path) -> None:
    pipe = wan_pipeline()
    before = [dict(model.attn_processors) for model in (pipe.transformer, pipe.transformer_2)]
    found = found_of(pipe)
    assert list(found) == ["transformer", "transformer_2"]
    assert [dict(model.attn_processors) for model in (pipe.transformer, pipe.transformer_2)] == before
    assert not any(policy_of(module) for model in (pipe.transformer, pipe.transformer_2) for module in model.modules())
    sparsify(pipe, {name: one.config for name, one in found.items()})
    assert shares(pipe, tmp_path) == pytest.approx([0.3, 0.3], abs=0.03)


def test_points_are_of_the_keys_that_were_there(tmp_path: Path) -> None:
    pipe = wan_pipeline(None)
    several = [request(), request(height=384)]
    found = found_of(pipe, requests=several, state=tmp_path)["transformer"]
    assert {point.length for point in found.points["prefill"]} == {512, 768}
    assert {point.visited for point in found.points["prefill"]} == {
        TILES * LAYERS * FORWARDS * STEPS,
        12 * 6 * 2 * LAYERS * FORWARDS * STEPS,
    }
    assert [file.name for file in tmp_path.iterdir()] == ["transformer.jsonl"]
    assert found_of(pipe, requests=several, state=tmp_path)["transformer"].points == found.points
    for others in ([request(), request(width=384)], [request(), request(height=384, generator=torch.Generator())]):
        with pytest.raises(ArgumentError, match=r"^state: expected the file of this calibration"):
            found_of(pipe, requests=others, state=tmp_path)


def test_dense_steps_do_not_count(tmp_path: Path) -> None:
    pipe = wan_pipeline(None)
    told: list[int] = []

    def callback(pipe: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        told.append(step)
        return arguments

    found = found_of(pipe, requests=[request(callback_on_step_end=callback)], initial_disabled_steps=2)
    points = found["transformer"].points["prefill"]
    assert {point.visited for point in points} == {TILES * LAYERS * FORWARDS * (STEPS - 2)}
    assert told[:STEPS] == list(range(STEPS)), "a callback of the request's own is called as well"


def test_runs_do_not_depend_on_each_other() -> None:
    """The same noise in all, and a first transformer that is dense, whichever thresholds are tried."""
    pipe, generator = wan_pipeline(), torch.Generator().manual_seed(5)
    all_of_them = found_of(pipe, requests=[request(generator=generator)])["transformer_2"].points["prefill"]
    for seed, same in ((5, True), (6, False)):
        generator.manual_seed(seed)
        fewer = found_of(pipe, requests=[request(generator=generator)], thresholds=TRIALS[2:])["transformer_2"]
        assert (fewer.points["prefill"] == all_of_them[2:]) is same
    assert generator.get_state().equal(torch.Generator().manual_seed(6).get_state())


def test_refusals() -> None:
    pipe = wan_pipeline()
    with pytest.raises(ArgumentError, match=r"^requests\[1\]: expected what pipe\(\*\*request\) takes, a mapping"):
        found_of(pipe, requests=[request(), "a cat"])
    with pytest.raises(ArgumentError, match=r"^initial_disabled_steps: expected 0 or more .got -1"):
        found_of(pipe, initial_disabled_steps=-1)
    with pytest.raises(ArgumentError, match=r"^thresholds: expected at least two, rising"):
        found_of(pipe, thresholds=())
    with pytest.raises(ArgumentError, match=r"^forward: expected prefill calls of blocks.0.attn1 that count"):
        found_of(wan_pipeline(boundary_ratio=0.0))
    sparsify(pipe, {"threshold": 0.1})
    with pytest.raises(ArgumentError, match=r"^pipe: expected a pipeline that is not sparsified"):
        found_of(pipe)
    with pytest.raises(ArgumentError, match=r"^pipe: expected a pipeline that is not sparsified"):
        found_of(wan_pipeline().transformer)
