"""Attention processors: the module's own projections, norms and rotary embeddings, and attention by our kernels.

They are made without arguments and keep nothing, as diffusers makes some anew from the class of those that are there.
What a module skips stands on the module.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb

from ..._call.checks import describe
from ...errors import expected
from ._attention import attend
from ._lengths import LastMask

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines


class Processor:
    """What processors of all models have in common."""

    @property
    def _parallel_config(self) -> None:
        """What ``enable_parallelism`` sets on processors for context parallelism."""
        return None

    @_parallel_config.setter
    def _parallel_config(self, config: object) -> None:
        if config is not None:
            wanted = "None, since attention over keys of several ranks is not computed here (restore the model before)"
            raise expected("parallel_config", wanted, type(config).__name__)


def refuse_unknown(**given: object) -> None:
    """Refuse what the module's own processor would compute with, and none of ours does."""
    for name, value in given.items():
        if value is not None:
            got = describe(value) if isinstance(value, torch.Tensor) else type(value).__name__
            raise expected(name, "None", got)


def _projected(
    attn: Any, states: torch.Tensor | None, name: str = "to_{}", fused: str = "to_qkv"
) -> list[torch.Tensor]:
    """q, k and v ``[B, S, columns]`` of a module that may have its projections fused."""
    if attn.fused_projections:
        return list(getattr(attn, fused)(states).chunk(3, dim=-1))
    return [getattr(attn, name.format(letter))(states) for letter in "qkv"]


def _through(parts: Iterable[torch.nn.Module], x: torch.Tensor) -> torch.Tensor:
    for part in parts:
        x = part(x)
    return x


def _heads(heads: int, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.view(*x.shape[:-1], heads, -1) for x in tensors]


class WanProcessor(Processor):
    """Self-attention of Wan: norms over all heads together, neighbouring columns turned."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> torch.Tensor:
        """``[B, S, columns]`` to the same; called by diffusers."""
        refuse_unknown(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
        q, k, v = _projected(attn, hidden_states)
        q, k, v = _heads(attn.heads, attn.norm_q(q), attn.norm_k(k), v)
        if rotary_emb is not None:
            q, k = _turned(q, rotary_emb), _turned(k, rotary_emb)
        return _through(attn.to_out, attend(attn, q, k, v).flatten(2))


def _turned(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """``x`` ``[B, S, H, D]`` with its pairs of columns turned; each angle stands twice in ``[1, S, 1, D]``."""
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    first, second = x.view(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.empty_like(x)
    pairs = turned.view(*x.shape[:-1], -1, 2)
    pairs[..., 0] = first * cos - second * sin
    pairs[..., 1] = first * sin + second * cos
    return turned


class HunyuanVideoProcessor(Processor):
    """Joint attention of HunyuanVideo: text behind video, padded at its end and not turned."""

    def __init__(self) -> None:
        """No mask was seen yet."""
        self._masks = LastMask()

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video ``[B, S, columns]`` and text ``[B, T, columns]`` to the same; called by diffusers."""
        frames = hidden_states.shape[1]
        if attn.add_q_proj is None:  # one set of projections for both
            joint = torch.cat((hidden_states, encoder_hidden_states), dim=1)
            q, k, v = self._projected(attn, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), joint)
            if image_rotary_emb is not None:
                for x in (q, k):
                    x[:, :frames] = apply_rotary_emb(x[:, :frames], image_rotary_emb, sequence_dim=1)
        else:
            video = self._projected(attn, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), hidden_states)
            if image_rotary_emb is not None:
                video[:2] = [apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in video[:2]]
            added = ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")
            text = self._projected(attn, *added, encoder_hidden_states)
            q, k, v = (torch.cat(pair, dim=1) for pair in zip(video, text, strict=True))
        lengths = None
        if attention_mask is not None:
            lengths = self._masks.lengths(attention_mask, len(k), k.shape[1])
        out = attend(attn, q, k, v, lengths).flatten(2)
        return self._to_out(attn, out[:, :frames], out[:, frames:])

    @staticmethod
    def _projected(
        attn: Any, projections: tuple[str, str, str], norms: tuple[str, str], states: torch.Tensor
    ) -> list[torch.Tensor]:
        """q, k and v ``[B, S, H, D]``, the first two normed where the module has norms."""
        found = _heads(attn.heads, *(getattr(attn, name)(states) for name in projections))
        for index, name in enumerate(norms):
            norm = getattr(attn, name)
            found[index] = found[index] if norm is None else norm(found[index])
        return found

    @staticmethod
    def _to_out(attn: Any, video: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Through the projections that the module has: single-stream blocks have their own."""
        added = getattr(attn, "to_add_out", None)
        return _through(getattr(attn, "to_out", None) or (), video), text if added is None else added(text)


class FluxProcessor(Processor):
    """Attention of Flux: joint with text before the image in double-stream blocks, turned together."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        ip_hidden_states: list[torch.Tensor] | None = None,
        ip_adapter_masks: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Image ``[B, S, columns]``, and text ``[B, T, columns]`` if it is given, to the same; called by diffusers."""
        refuse_unknown(
            attention_mask=attention_mask, ip_hidden_states=ip_hidden_states, ip_adapter_masks=ip_adapter_masks
        )
        q, k, v = self._heads_of(attn, hidden_states)
        q, k = attn.norm_q(q), attn.norm_k(k)
        if attn.added_kv_proj_dim is not None:
            text_q, text_k, text_v = self._heads_of(attn, encoder_hidden_states, "add_{}_proj", "to_added_qkv")
            q = torch.cat((attn.norm_added_q(text_q), q), dim=1)
            k = torch.cat((attn.norm_added_k(text_k), k), dim=1)
            v = torch.cat((text_v, v), dim=1)
        if image_rotary_emb is not None:
            q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        out = attend(attn, q, k, v).flatten(2)
        if encoder_hidden_states is None:
            return out
        texts = encoder_hidden_states.shape[1]
        image = _through(attn.to_out, out[:, texts:].contiguous())
        return image, attn.to_add_out(out[:, :texts].contiguous())

    @staticmethod
    def _heads_of(attn: Any, states: torch.Tensor | None, *names: str) -> list[torch.Tensor]:
        """q, k and v ``[B, S, H, D]``; ranks of tensor parallelism have fewer heads of the same size."""
        return [x.view(*x.shape[:-1], -1, attn.head_dim) for x in _projected(attn, states, *names)]
