"""What a deployment of vLLM is told: from ``--additional-config``, from the environment, or from the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..serving.settings import Settings, Source, read_from

__all__ = ["Settings", "read_settings"]
_SOURCE = Source("additional_config", "SKIMATTN_VLLM")


def read_settings(additional: Mapping[str, Any], section: object = None) -> Settings:
    """The settings. Each comes from the first of the sources that has it.

    The environment has the same as the argument: ``SKIMATTN_VLLM_CONFIG`` (a file, a folder, or JSON),
    ``SKIMATTN_VLLM_STAT_LOG`` and ``SKIMATTN_VLLM_METRICS``.

    Args:
        additional: vLLM's ``additional_config``, whose key ``skimattn`` may hold ``config`` (a document that
            :meth:`SkipSoftmaxConfig.read` takes, or its file or folder; false: dense), ``stat_log`` and ``metrics``.
        section: what the checkpoint keeps under ``sparse_attention_config``; other methods' is left alone.

    Raises:
        ArgumentError: a key is unknown, a value cannot be, or the configuration is not one for serving.
        OSError: its file cannot be read.
    """
    return read_from(_SOURCE, additional, section)
