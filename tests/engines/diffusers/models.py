"""Tiny random transformers, what they are called with, and the q, k and v of diffusers' own attention.

Rows weigh near keys most, as in real video models, so that there is something to skip and rotary embeddings matter:
all queries and keys have a common part in columns that turn through a radian or two in a tile of 128 keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch.overrides import TorchFunctionMode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXT = 40
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 64}
_WAN = {**_HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 32, "ffn_dim": 64, "num_layers": 2}
_HUNYUAN = {
    **_HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "text_embed_dim": 32,
    "pooled_projection_dim": 16,
    "rope_axes_dim": (16, 24, 24),
}
_FLUX = {
    **_HEADS,
    "in_channels": 8,
    "num_layers": 1,
    "num_single_layers": 1,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (16, 24, 24),
}


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _video(batch: int, frames: int = 10) -> torch.Tensor:
    """Latents of which a frame has 64 tokens."""
    return _random(batch, 4, frames, 16, 16, seed=1)


def wan_inputs(batch: int = 1) -> dict[str, torch.Tensor]:
    text = _random(batch, 7, 32, seed=2)
    return {"hidden_states": _video(batch), "timestep": torch.full((batch,), 500), "encoder_hidden_states": text}


def vace_inputs() -> dict[str, torch.Tensor]:
    return {**wan_inputs(), "control_hidden_states": _random(1, 6, 10, 16, 16, seed=5)}


def hunyuan_inputs(lengths: tuple[int, ...] = (TEXT, 13)) -> dict[str, torch.Tensor]:
    """Texts of these lengths, padded."""
    batch, width = len(lengths), max(TEXT, *lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return {
        **wan_inputs(batch),
        "encoder_hidden_states": _random(batch, width, 32, seed=2),
        "encoder_attention_mask": mask,
        "pooled_projections": _random(batch, 16, seed=3),
        "guidance": torch.full((batch,), 6000.0),
    }


def flux_inputs() -> dict[str, torch.Tensor]:
    ids = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(40.0), torch.arange(16.0), indexing="ij"), -1)
    return {
        "hidden_states": _random(2, 640, 8, seed=1),
        "encoder_hidden_states": _random(2, TEXT, 32, seed=2),
        "pooled_projections": _random(2, 16, seed=3),
        "timestep": torch.tensor([0.5, 0.5]),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }


@dataclass(frozen=True)
class Family:
    """Class, sizes and inputs of a model; columns of a head that all have in common; the attention that skips."""

    model: str
    sizes: dict[str, Any]
    inputs: Callable[[], dict[str, torch.Tensor]]
    near: slice
    places: tuple[str, ...]


_JOINT = ("transformer_blocks.0.attn", "single_transformer_blocks.0.attn")
_VACE = {**_WAN, "vace_layers": [0], "vace_in_channels": 6}
FAMILIES = {
    "wan": Family("WanTransformer3DModel", _WAN, wan_inputs, slice(0, 4), ("blocks.0.attn1", "blocks.1.attn1")),
    "vace": Family(
        "WanVACETransformer3DModel",
        _VACE,
        vace_inputs,
        slice(0, 4),
        ("blocks.0.attn1", "blocks.1.attn1", "vace_blocks.0.attn1"),
    ),
    "hunyuan": Family("HunyuanVideoTransformer3DModel", _HUNYUAN, hunyuan_inputs, slice(0, 4), _JOINT),
    "flux": Family("FluxTransformer2DModel", _FLUX, flux_inputs, slice(20, 24), _JOINT),
}


def model_of(family: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """A model with weights that bf16 holds, in either precision."""
    row = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(diffusers, row.model)(**row.sizes | changes)
    for place in row.places:
        try:
            attn = model.get_submodule(place)
        except AttributeError:  # changes have left it out
            continue
        for name in ("to_q", "to_k"):
            getattr(attn, name).bias.view(-1, 64)[:, row.near] = 5.0
        for name, norm in attn.named_modules():
            if name.startswith("norm"):  # no two alike
                norm.weight.mul_(1 + 0.2 * torch.rand_like(norm.weight))
    return model.to(DEVICE, torch.bfloat16).to(dtype).eval()


def output_of(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The sample, float32, of inputs that bf16 holds."""
    given = {}
    for name, value in inputs.items():
        floats = isinstance(value, torch.Tensor) and value.is_floating_point() and not name.endswith("_ids")
        given[name] = value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        if floats:
            given[name] = given[name].bfloat16().to(model.dtype)
    sample: torch.Tensor = model(**given, return_dict=False)[0]
    return sample.float()


_SDPA = ("query", "key", "value")


@contextmanager
def outputs_of(model: Any, family: str) -> Iterator[dict[str, list[torch.Tensor]]]:
    """What the attention that skips gives, float32, by module: Wan one tensor, the others video or image and text."""
    found: dict[str, list[torch.Tensor]] = {}

    def keep(place: str) -> Any:
        def hook(module: Any, given: Any, out: Any) -> None:
            found[place] = [x.float() for x in (out if isinstance(out, tuple) else (out,))]

        return hook

    handles = [model.get_submodule(place).register_forward_hook(keep(place)) for place in FAMILIES[family].places]
    yield found
    for handle in handles:
        handle.remove()


class Handed(TorchFunctionMode):
    """Writes down the q, k and v ``[B, S, H, D]`` and the mask that diffusers' own processors hand to torch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, ...]] = []
        self.masks: list[torch.Tensor | None] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            found = [kwargs[name] if name in kwargs else args[place] for place, name in enumerate(_SDPA)]
            self.calls.append(tuple(x.transpose(1, 2).clone() for x in found))
            self.masks.append(kwargs.get("attn_mask"))
        return func(*args, **kwargs)
