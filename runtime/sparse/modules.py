"""Attention modules of a model: which they are, and how many heads of how many columns they have."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import expected
from .config.patterns import matches

_WORDS = ("attn", "attention")


def attention_modules(model: torch.nn.Module, targets: Sequence[str] = ()) -> dict[str, torch.nn.Module]:
    """The attention modules of a model by name, in its order.

    Args:
        model: any module.
        targets: patterns of their names or of the names of their classes; default: modules that have a ``layer_idx``
            and whose class or last name speaks of attention.

    Raises:
        ArgumentError: there are none.
    """
    found = {name: module for name, module in model.named_modules() if _is_attention(name, module, targets)}
    if not found:
        wanted = (
            f"modules that match {', '.join(targets)}" if targets else "modules with layer_idx, named like attention"
        )
        raise expected("model", wanted, type(model).__name__)
    return found


def _is_attention(name: str, module: torch.nn.Module, targets: Sequence[str]) -> bool:
    cls = type(module).__name__
    if targets:
        return any(matches(target, name) or matches(target, cls) for target in targets)
    last = name.rpartition(".")[2].lower()
    return getattr(module, "layer_idx", None) is not None and any(w in last or w in cls.lower() for w in _WORDS)


def heads_of(module: torch.nn.Module) -> int | None:
    """Query heads, if the module or its configuration says."""
    return _number(module, "num_heads", "num_attention_heads", "heads")


def kv_heads_of(module: torch.nn.Module) -> int | None:
    """Key and value heads, if the module or its configuration says."""
    return _number(module, "num_key_value_heads", "num_kv_heads")


def head_dim_of(module: torch.nn.Module) -> int | None:
    """Columns of a query, if the module or its configuration says."""
    own = _number(module, "qk_head_dim", "head_dim", "attention_head_dim")
    if own is not None:
        return own
    width, heads = _number(module, "hidden_size", "inner_dim"), heads_of(module)
    return width // heads if width and heads else None


def _number(module: torch.nn.Module, *names: str) -> int | None:
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None
