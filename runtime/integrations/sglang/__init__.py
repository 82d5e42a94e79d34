"""skimattn as an attention back end of SGLang, without a fork: installed beside it, it is there.

    python -m sglang.launch_server --model-path MODEL --attention-backend skimattn --page-size 128

The entry point ``sglang.srt.plugins`` makes it known in every process that SGLang starts. Nothing of SGLang is imported
until it calls.

**What is computed.** Decoder attention of bf16 and fp16 models with caches of the same type; sliding windows, also in
pools of their own; sinks and softcap; chunked prefill, prefix caching, mixed chunks (``--enable-mixed-chunk``); tensor,
pipeline and data parallelism. CUDA graphs hold batches that decode.

**Stage.** A request is in the phase *prefill* until its prompt is computed, whatever the size of its chunks, and then
in *decode*, as SGLang's scheduler says it. Every request of a batch has the threshold of its own phase and length.

**Configuration**: see :func:`read_settings`. All else is refused by name when SGLang starts: MLA, hybrid models with
linear attention, encoders and cross attention, other cache types, speculative decoding, context parallelism, two-batch
overlap, patterns that match no layer, and settings that are none of serving's. SGLang hands back ends nothing that a
single request could say, so thresholds are of deployments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..serving.channel import tiles
from ._register import register

if TYPE_CHECKING:
    from ._settings import Settings, read_settings

__all__ = ["Settings", "read_settings", "register", "tiles"]


def __getattr__(name: str) -> object:
    """Import what needs pydantic when it is first asked for."""
    if name in ("Settings", "read_settings"):
        from . import _settings

        return getattr(_settings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
