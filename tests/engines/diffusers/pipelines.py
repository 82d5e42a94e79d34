"""Real pipelines around tiny transformers: texts come as embeddings, and latents go out as they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import diffusers
import torch

from .models import DEVICE, TEXT, model_of

STEPS = 4
LAYERS = 2
FORWARDS = 2  # of a step: with and without the prompt


def wan_pipeline(boundary_ratio: float | None = 0.8) -> Any:
    """Wan 2.2: two transformers, of which the second takes over below the boundary."""
    second = None if boundary_ratio is None else model_of("wan")
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=model_of("wan"),
        transformer_2=second,
        boundary_ratio=boundary_ratio,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_wan(pipe: Any, callback: Any = None, steps: int = STEPS) -> torch.Tensor:
    """The latents of two frames of 256 tokens, which is four tiles."""
    text = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.bfloat16)
    out = pipe(
        prompt_embeds=text,
        negative_prompt_embeds=torch.zeros_like(text),
        height=256,
        width=256,
        num_frames=5,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        callback_on_step_end=callback,
    )
    frames: torch.Tensor = out.frames
    return frames


Telling = Callable[[Any], AbstractContextManager[Any]]


def run_hunyuan(telling: Telling) -> None:
    """A run of a pipeline inside of ``telling(pipe)``, which gives its callback."""
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=model_of("hunyuan"),
        vae=None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    with telling(pipe) as on_step_end:
        pipe(
            prompt_embeds=torch.randn(1, TEXT, 32).to(DEVICE, torch.bfloat16),
            pooled_prompt_embeds=torch.randn(1, 16).to(DEVICE, torch.bfloat16),
            prompt_attention_mask=(torch.arange(TEXT) < 13).long()[None].to(DEVICE),
            height=128,
            width=128,
            num_frames=5,
            num_inference_steps=STEPS,
            output_type="latent",
            callback_on_step_end=on_step_end,
        )


def run_flux(telling: Telling) -> None:
    """Likewise."""
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=model_of("flux", in_channels=16),
    )
    pipe.set_progress_bar_config(disable=True)
    with telling(pipe) as on_step_end:
        pipe(
            prompt_embeds=torch.randn(1, TEXT, 32).to(DEVICE, torch.bfloat16),
            pooled_prompt_embeds=torch.randn(1, 16).to(DEVICE, torch.bfloat16),
            height=256,
            width=256,
            num_inference_steps=STEPS,
            output_type="latent",
            callback_on_step_end=on_step_end,
        )
