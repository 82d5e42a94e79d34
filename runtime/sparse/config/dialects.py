"""The dialects that configurations come in: which one a document is in, and its values as ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ArgumentError, expected
from .foreign import ALGORITHMS, Values, from_engine, from_modelopt, is_skip_group
from .recipe import from_recipe

KEY = "sparse_attention_config"
OWN = "skimattn"
FORMAT = 1


def is_ours(section: object) -> bool:
    """Whether what stands under ``sparse_attention_config`` is about skipping softmax tiles.

    Other models keep other things under this key; those are neither read nor written over.
    """
    if not isinstance(section, Mapping):
        return False
    groups = section.get("config_groups")
    if isinstance(groups, Mapping):
        return OWN in section or any(is_skip_group(group) for group in groups.values())
    return OWN in section or section.get("algorithm", section.get("sparse_algo")) in ALGORITHMS


def values_of(document: Mapping[str, Any]) -> Values:
    """What ``SkipSoftmaxConfig`` takes, out of a document of any dialect.

    Raises:
        ArgumentError: it is of no dialect, or a key is unknown in the one that it is of.
    """
    section = document.get(KEY, document)
    if not isinstance(section, Mapping) or (KEY in document and not is_ours(section)):
        raise expected(KEY, f"a configuration of {ALGORITHMS[0]}", _shown(section))
    for is_in, read in _DIALECTS:
        if is_in(section):
            return read(section)
    known = [*("threshold", "scale_factor", "target_sparsity", "patterns"), KEY, "config_groups", "sparse_cfg"]
    raise ArgumentError(f"configuration: expected one of {', '.join(known)} (got {_shown(section)})")


def _shown(section: object) -> str:
    return f"keys {', '.join(map(str, section)) or 'none'}" if isinstance(section, Mapping) else repr(section)


def from_own(block: Mapping[str, Any]) -> Values:
    """Our own block."""
    values = dict(block)
    form = values.pop("format", FORMAT)
    if form != FORMAT:
        raise expected(f"{OWN}.format", str(FORMAT), f"{form!r}, of version {values.get('version')}")
    values.pop("version", None)
    return values


_DIALECTS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any]], Values]], ...] = (
    (lambda section: isinstance(section.get(OWN), Mapping), lambda section: from_own(section[OWN])),
    (lambda section: "config_groups" in section, from_modelopt),
    (lambda section: "sparse_cfg" in section, from_recipe),
    (lambda section: "algorithm" in section or "threshold_scale_factor" in section, from_engine),
    (lambda section: bool({"threshold", "scale_factor", "target_sparsity", "patterns"} & set(section)), dict),
)
