"""Makes ``attn_implementation="skimattn"`` known to transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.generation import GenerationMixin

from ._attention import attention
from ._mask import attention_mask
from ._phase import follow_generate

NAME = "skimattn"
_LOWEST = (4, 57)


@contextmanager
def computed_by(model: transformers.PreTrainedModel, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """In this context a model's attention is another function that takes our masks, registered as ``name``."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, attention_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def register() -> None:
    """Make ``attn_implementation="skimattn"`` and ``model.set_attn_implementation("skimattn")`` work.

    Once in a process is enough, and more do no harm. The prefill of ``generate`` is wrapped, so that it says which
    stage it is; other attention does not notice.

    Raises:
        ImportError: transformers is older than 4.57.
    """
    version = transformers.__version__
    if tuple(map(int, version.split(".")[:2])) < _LOWEST:
        raise ImportError(f"transformers: expected 4.57 or later (got {version}); pip install 'skimattn[hf]'")
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, attention_mask)
    follow_generate(GenerationMixin)
