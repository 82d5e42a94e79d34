"""``sparsify`` and ``restore``: policies and processors onto a transformer, or those of a pipeline, and off again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from ...errors import expected
from ...sparse import model as policies
from ...sparse.config.config import SkipSoftmaxConfig
from ...sparse.config.patterns import matches
from ...sparse.model import ConfigLike, Resolved, as_config, attach, resolve
from ._families import Family, check_processor, family_of

_ATTRIBUTE = "skimattn_processors"
_ROLE = "transformer"  # of a pipeline's components, transformer_2 among them
_LOWEST = (0, 36)


@dataclass(frozen=True)
class _Replaced:
    """Processors by name: ours, and those that were in their place."""

    ours: dict[str, Any]
    before: dict[str, Any]


@dataclass(frozen=True)
class _Plan:
    """What is to be done to a transformer, once all of them were found to be in order."""

    transformer: Any
    resolved: Resolved
    replaced: _Replaced


def sparsify(target: Any, config: ConfigLike | Mapping[str, ConfigLike] = None, *, count: bool = False) -> Any:
    """Let the self-attention of a pipeline's transformers, or of one transformer, skip.

    Args:
        target: a pipeline with components ``transformer`` and perhaps ``transformer_2``, or a transformer; what was
            attached by an earlier call is replaced.
        config: as :func:`skimattn.sparse.sparsify` takes it, for all transformers; or by component,
            ``{"transformer": ..., "transformer_2": ...}``, of which those that are not named stay as they are.
        count: count visited and skipped tiles, for :func:`skimattn.sparse.summary`.

    Returns:
        The target.

    Raises:
        ArgumentError: a transformer or a processor is not known, or as :func:`skimattn.sparse.sparsify` does. All
            transformers are then as they were.
        ImportError: diffusers is older than 0.36.
    """
    if tuple(map(int, diffusers.__version__.split(".")[:2])) < _LOWEST:
        raise ImportError(
            f"diffusers: expected 0.36 or later (got {diffusers.__version__}); pip install 'skimattn[diffusers]'"
        )
    transformers = transformers_of(target)
    by_name = _by_component(config, transformers)
    plans = [_plan(name, transformers[name], one) for name, one in by_name.items()]
    for plan in plans:
        attach(plan.transformer, plan.resolved, count=count)
        _put_back(plan.transformer)
        _set(plan.transformer, plan.replaced.ours)
        plan.transformer.__dict__[_ATTRIBUTE] = plan.replaced
    return target


def restore(target: Any) -> None:
    """Take everything off again: transformers have the processors that they had before :func:`sparsify`.

    A processor that was set since then stays.

    Raises:
        ArgumentError: none of them was sparsified.
    """
    for transformer in sparsified(target).values():
        _put_back(transformer)
        del transformer.__dict__[_ATTRIBUTE]
        policies.restore(transformer, missing_ok=True)


def transformers_of(target: Any) -> dict[str, Any]:
    """The transformers of a pipeline by component, or a transformer alone, known or not.

    Raises:
        ArgumentError: there are none.
    """
    if isinstance(target, torch.nn.Module):
        return {_ROLE: target}
    components = getattr(target, "components", None)
    components = components if isinstance(components, Mapping) else {}
    found = {name: one for name, one in components.items() if name.startswith(_ROLE) and one is not None}
    if not found:
        raise expected("target", "a transformer, or a pipeline that has one", type(target).__name__)
    return found


def sparsified(target: Any) -> dict[str, Any]:
    """Those that :func:`sparsify` was called with.

    Raises:
        ArgumentError: it was with none.
    """
    found = {name: one for name, one in transformers_of(target).items() if _ATTRIBUTE in one.__dict__}
    if not found:
        raise expected("target", "one that sparsify was called with", type(target).__name__)
    return found


def _by_component(config: Any, transformers: Mapping[str, Any]) -> dict[str, ConfigLike]:
    """A configuration for each transformer that is to have one."""
    if not (isinstance(config, Mapping) and any(str(name).startswith(_ROLE) for name in config)):
        return dict.fromkeys(transformers, config)
    for name in config:
        if name not in transformers:
            raise expected(f"config.{name}", f"components of the pipeline: {', '.join(transformers)}", "another key")
    return dict(config)


def _plan(name: str, transformer: Any, config: ConfigLike) -> _Plan:
    family = family_of(name, transformer)
    resolved = resolve(transformer, _aimed(transformer, as_config(transformer, config), family))
    held = transformer.attn_processors
    for module, processor in _originals(transformer).items():
        held[module] = processor
    skipping = [module for module, policy in resolved.policies.items() if policy is not None]
    for module in skipping:
        check_processor(f"{name}.{module}", held[f"{module}.processor"], family)
    ours = family.processor()
    places = [f"{module}.processor" for module in skipping]
    return _Plan(
        transformer, resolved, _Replaced(dict.fromkeys(places, ours), {place: held[place] for place in places})
    )


def _aimed(transformer: torch.nn.Module, config: SkipSoftmaxConfig, family: Family) -> SkipSoftmaxConfig:
    """The configuration with targets that are self-attention: all of it, or what it aims at of that."""
    if not config.targets:
        return config.model_copy(update={"targets": family.targets})
    found = [
        name
        for name, module in transformer.named_modules()
        if any(matches(target, name) for target in family.targets)
        and any(matches(target, one) for target in config.targets for one in (name, type(module).__name__))
    ]
    if not found:
        wanted = f"patterns of self-attention, such as {family.targets[0]} (cross attention stays dense)"
        raise expected("targets", wanted, ", ".join(config.targets))
    return config.model_copy(update={"targets": tuple(found)})


def _originals(transformer: Any) -> dict[str, Any]:
    """What ours stand in the place of now."""
    replaced: _Replaced | None = transformer.__dict__.get(_ATTRIBUTE)
    if replaced is None:
        return {}
    now = transformer.attn_processors
    return {name: replaced.before[name] for name, ours in replaced.ours.items() if now.get(name) is ours}


def _put_back(transformer: Any) -> None:
    originals = _originals(transformer)
    if originals:
        _set(transformer, originals)


def _set(transformer: Any, processors: Mapping[str, Any]) -> None:
    """Set some processors, which diffusers wants to be told together with all others."""
    transformer.set_attn_processor({**transformer.attn_processors, **processors})
