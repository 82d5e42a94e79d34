"""Makes the back end known to SGLang; what the entry point calls, in every process that SGLang starts."""

from __future__ import annotations

from typing import Any

from ..serving.channel import open_channel
from . import _scheduled

NAME = "skimattn"
_BATCH = "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new"
_FORWARD = "sglang.srt.model_executor.model_runner.ModelRunner.forward"


def register() -> None:
    """Make ``--attention-backend skimattn`` known. More than once does no harm.

    SGLang tells back ends neither which requests of a mixed batch decode nor when a forward is over. Its own registry
    of hooks for plug-ins does.
    """
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS, register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import add_attention_backend_choices

    if NAME in ATTENTION_BACKENDS:
        return
    open_channel()
    add_attention_backend_choices([NAME])
    register_attention_backend(NAME)(_create)
    HookRegistry.register(_BATCH, _scheduled.note, HookType.AFTER)
    HookRegistry.register(_FORWARD, _scheduled.over, HookType.AFTER)


def _create(runner: Any) -> Any:
    from ._backend import SkimAttentionBackend

    return SkimAttentionBackend(runner)
