"""The guide is true: its code runs as it stands, and so do its commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from skimattn.sparse import read_statistics

from tests.helpers.guides import run_guide
from tests.helpers.standin import ROOT

from .models import DEVICE
from .pipelines import wan_pipeline


def test_code_and_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipe = wan_pipeline()
    models = pipe.transformer, pipe.transformer_2
    before = [model.attn_processors for model in models]
    text = torch.zeros(1, 7, 32).to(DEVICE, torch.bfloat16)
    request: dict[str, Any] = {"prompt_embeds": text, "negative_prompt_embeds": text, "output_type": "latent"}
    request |= {"height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 4}
    run_guide(ROOT / "docs" / "diffusers.md", {"pipe": pipe, "request": request})
    steps = read_statistics(tmp_path / "stats.jsonl").tiles["prefill"][..., 0].sum(1)
    assert [bool(step) for step in steps] == [False, False, True, True]
    assert [model.attn_processors for model in models] == before
    assert (tmp_path / "sparse" / "config.json").exists()
