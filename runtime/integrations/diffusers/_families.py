"""Transformers and processors that are known, by the names of their classes; what is none of them is refused."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch

from ...errors import expected
from ._processors import FluxProcessor, HunyuanVideoProcessor, Processor, WanProcessor

_HOME = "diffusers.models.transformers."
_JOINT = ("transformer_blocks.*.attn", "single_transformer_blocks.*.attn")
_JOINT_ARGUMENTS = ("attn", "hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb")


@dataclass(frozen=True)
class Family:
    """Transformers that have one kind of attention.

    Args:
        targets: patterns of their self-attention modules.
        original: the class of processor that these are made with.
        arguments: what that takes; a release that has changed them may compute something else.
        processor: ours.
    """

    targets: tuple[str, ...]
    original: str
    arguments: tuple[str, ...]
    processor: type[Processor]


_WAN = Family(
    ("blocks.*.attn1", "vace_blocks.*.attn1"),
    f"{_HOME}transformer_wan.WanAttnProcessor",
    ("attn", "hidden_states", "encoder_hidden_states", "attention_mask", "rotary_emb"),
    WanProcessor,
)
_HUNYUAN_VIDEO = Family(
    _JOINT,
    f"{_HOME}transformer_hunyuan_video.HunyuanVideoAttnProcessor2_0",
    _JOINT_ARGUMENTS,
    HunyuanVideoProcessor,
)
_FLUX = Family(_JOINT, f"{_HOME}transformer_flux.FluxAttnProcessor", _JOINT_ARGUMENTS, FluxProcessor)
_FAMILIES = {
    f"{_HOME}transformer_wan.WanTransformer3DModel": _WAN,
    f"{_HOME}transformer_wan_vace.WanVACETransformer3DModel": _WAN,
    f"{_HOME}transformer_hunyuan_video.HunyuanVideoTransformer3DModel": _HUNYUAN_VIDEO,
    f"{_HOME}transformer_flux.FluxTransformer2DModel": _FLUX,
}


def family_of(name: str, transformer: torch.nn.Module) -> Family:
    """What a transformer is; ``name`` is what messages call it.

    Raises:
        ArgumentError: it is none of those known.
    """
    found = _FAMILIES.get(_class_of(transformer))
    if found is None:
        known = ", ".join(path.rpartition(".")[2] for path in _FAMILIES)
        raise expected(name, f"one of {known}, before torch.compile wraps it", _class_of(transformer))
    return found


def check_processor(name: str, processor: object, family: Family) -> None:
    """Refuse a processor that computes something other than ours does.

    Raises:
        ArgumentError: it is of another class, takes other arguments, or is set up for context parallelism.
    """
    if _class_of(processor) != family.original:
        wanted = f"{family.original.rpartition('.')[2]}, as the model is made with"
        raise expected(f"{name}.processor", wanted, _class_of(processor))
    takes = tuple(inspect.signature(type(processor).__call__).parameters)[1:]
    if takes != family.arguments:
        wanted = f"one that takes {', '.join(family.arguments)}, as in releases that are known"
        raise expected(f"{name}.processor", wanted, ", ".join(takes))
    parallel = getattr(processor, "_parallel_config", None)
    if parallel is not None:
        raise expected(f"{name}.processor", "one without context parallelism", type(parallel).__name__)


def _class_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
