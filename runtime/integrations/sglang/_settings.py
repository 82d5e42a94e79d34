"""What a deployment of SGLang is told: by ``--json-model-override-args``, by the environment, or by the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ...errors import expected
from ..serving.settings import Settings, Source, read_from

__all__ = ["Settings", "read_settings"]
_SOURCE = Source("json_model_override_args", "SKIMATTN_SGLANG")


def read_settings(override: str, section: object = None) -> Settings:
    """The settings. Each comes from the first of the sources that has it.

    The environment has the same as the argument: ``SKIMATTN_SGLANG_CONFIG`` (a file, a folder, or JSON),
    ``SKIMATTN_SGLANG_STAT_LOG`` and ``SKIMATTN_SGLANG_METRICS``.

    Args:
        override: SGLang's ``json_model_override_args``, whose key ``skimattn`` may hold ``config`` (a document that
            :meth:`SkipSoftmaxConfig.read` takes, or its file or folder; false: dense), ``stat_log`` and ``metrics``.
        section: what the checkpoint keeps under ``sparse_attention_config``; other methods' is left alone.

    Raises:
        ArgumentError: a key is unknown, a value cannot be, or the configuration is not one for serving.
        OSError: its file cannot be read.
    """
    try:
        given = json.loads(override or "{}")
    except json.JSONDecodeError as error:
        raise expected("json_model_override_args", "JSON", error) from error
    return read_from(_SOURCE, given if isinstance(given, Mapping) else {}, section)
