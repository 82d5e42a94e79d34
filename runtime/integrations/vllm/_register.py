"""Makes the back end known to vLLM; what the entry point calls, in every process that vLLM starts."""

from __future__ import annotations

from skimattn.codegen import variables

from ..serving.channel import open_channel

CPU_VARIABLE = "SKIMATTN_VLLM_CPU"
PATH = "skimattn.integrations.vllm._backend.SkimAttentionBackend"


def register() -> None:
    """Make ``--attention-backend CUSTOM`` mean skimattn. More than once does no harm.

    vLLM on a CPU has one back end and takes no other; with ``SKIMATTN_VLLM_CPU=1`` the reference takes its place, which
    is slow and made for tests.
    """
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    open_channel()
    register_backend(AttentionBackendEnum.CUSTOM, PATH)
    if variables.switch(CPU_VARIABLE, False):
        register_backend(AttentionBackendEnum.CPU_ATTN, PATH)
