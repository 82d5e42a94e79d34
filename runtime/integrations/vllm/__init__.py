"""skimattn as an attention back end of vLLM, without a fork: installed beside it, it is there.

    vllm serve MODEL --attention-backend CUSTOM --additional-config '{"skimattn": {"config": {"threshold": 0.01}}}'

Two entry points make it known: ``vllm.general_plugins`` (the back end, in every process) and
``vllm.stat_logger_plugins`` (tiles on the metrics endpoint). Nothing of vLLM is imported until it calls them.

**What is computed.** Decoder attention of bf16 and fp16 models, with caches of the same type or of e4m3, sliding
windows, sinks, softcap and ALiBi slopes; batches in which some requests prefill and others decode, chunked prefill,
prefix caching and speculative decoding; tensor, pipeline and data parallelism. Full CUDA graphs hold batches that
decode; the others run in pieces (vLLM's ``FULL_AND_PIECEWISE``).

**Stage.** A request is in the phase *prefill* until its prompt is computed, whatever the size of its chunks, and then
in *decode*, as vLLM says it. Every request of a batch has the threshold of its own phase and length.

**Configuration**: see :func:`read_settings`. All else is refused by name when vLLM starts: MLA, encoders and cross
attention, other cache types, float32, context parallelism, patterns that match no layer, and settings that are none of
serving's. vLLM hands back ends nothing that a single request could say, so thresholds are of deployments.
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
