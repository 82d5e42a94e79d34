"""A model that skips: policies go onto its attention modules, and come off again without a trace."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import expected
from .config.config import SkipSoftmaxConfig, load_document
from .config.dialects import KEY, is_ours
from .config.export import merged, section_of
from .config.kernels import difference, kernels_here
from .config.patterns import matches
from .counts import TileCounts
from .modules import attention_modules, head_dim_of, heads_of
from .policy import LayerPolicy, attach_policy, policy_of
from .warning import warn

_ATTRIBUTE = "skimattn_sparse"
ConfigLike = SkipSoftmaxConfig | Mapping[str, Any] | str | Path | None


@dataclass
class Record:
    """What was done to a model: by which configuration, and the policies that were there before."""

    config: SkipSoftmaxConfig
    before: dict[str, LayerPolicy | None]
    enabled: bool = True
    dense_step: bool = False
    awaits_step: bool = False


def record_of(model: torch.nn.Module) -> Record:
    """What ``sparsify`` left on a model.

    Raises:
        ArgumentError: nothing did.
    """
    found: Record | None = model.__dict__.get(_ATTRIBUTE)
    if found is None:
        raise expected("model", "one that sparsify was called with", type(model).__name__)
    return found


def config_of(model: torch.nn.Module) -> SkipSoftmaxConfig:
    """The configuration that a model was sparsified with; raises as :func:`record_of`."""
    return record_of(model).config


def sparsify(model: torch.nn.Module, config: ConfigLike = None, *, count: bool = False) -> torch.nn.Module:
    """Let the attention modules of a model skip; an integration that calls our kernels reads what is attached here.

    Args:
        model: any module; what was attached by an earlier call is replaced.
        config: a configuration, a document or file that :meth:`SkipSoftmaxConfig.read` takes, or None: what
            ``model.config`` keeps under ``sparse_attention_config``.
        count: count visited and skipped tiles, for :func:`summary`. It selects the kernels that count.

    Returns:
        The model.

    Raises:
        ArgumentError: it has no attention modules; none of them is told anything; or a setting cannot be. The model is
            then as it was.
    """
    return attach(model, resolve(model, as_config(model, config)), count=count)


@dataclass(frozen=True)
class Resolved:
    """A configuration and the attention modules of a model, by name, with the policy of each; None: dense."""

    config: SkipSoftmaxConfig
    modules: dict[str, torch.nn.Module]
    policies: dict[str, LayerPolicy | None]


def resolve(model: torch.nn.Module, config: SkipSoftmaxConfig) -> Resolved:
    """What :func:`sparsify` would attach; the model is not touched. Raises as it does."""
    modules = attention_modules(model, config.targets)
    policies = {name: config.policy_for(name, type(module).__name__) for name, module in modules.items()}
    if not any(policies.values()):
        got = "none" if config.calibration is None else "one that asks for a calibration: see calibrate"
        raise expected("config", f"a setting for at least one of {len(modules)} attention modules", got)
    for name, policy in policies.items():
        _check_heads(name, modules[name], policy)
    return Resolved(config, modules, policies)


def attach(model: torch.nn.Module, resolved: Resolved, *, count: bool) -> torch.nn.Module:
    """Give the modules of a model their policies, in place of what an earlier call gave them; raises nothing."""
    _say_what_is_odd(resolved.config, resolved.modules, resolved.policies)
    restore(model, missing_ok=True)
    before = {name: policy_of(module) for name, module in resolved.modules.items()}
    for name, policy in resolved.policies.items():
        if policy is not None and count:
            policy.collector = TileCounts()
        attach_policy(resolved.modules[name], policy)
    model.__dict__[_ATTRIBUTE] = Record(resolved.config, before)
    await_step(model)
    return model


def as_config(model: torch.nn.Module, config: ConfigLike) -> SkipSoftmaxConfig:
    """A configuration in any of the forms that :func:`sparsify` takes; raises as it does."""
    if isinstance(config, SkipSoftmaxConfig):
        return config
    if config is not None:
        return SkipSoftmaxConfig.read(config)
    kept = getattr(getattr(model, "config", None), KEY, None)
    if kept is None:
        raise expected("config", f"a configuration, since model.config has no {KEY}", "None")
    return SkipSoftmaxConfig.read({KEY: kept})


def _check_heads(name: str, module: torch.nn.Module, policy: LayerPolicy | None) -> None:
    heads = heads_of(module)
    for phase, rule in policy.rules.items() if policy and heads else ():
        if isinstance(rule.factor, tuple) and len(rule.factor) != heads:
            raise expected(f"{name}: {phase}", f"one number for each of {heads} query heads", len(rule.factor))


def _say_what_is_odd(
    config: SkipSoftmaxConfig, modules: Mapping[str, torch.nn.Module], policies: Mapping[str, LayerPolicy | None]
) -> None:
    """Patterns that nothing matches, and figures that were found with other kernels than those here."""
    for pattern in config.patterns:
        names = [(name, type(module).__name__) for name, module in modules.items()]
        if pattern != "default" and not any(matches(pattern, one) for pair in names for one in pair):
            warn(f"patterns.{pattern}: no attention module of the model matches")
    if not config.kernels and not config.producer:
        return  # somebody's own figures
    said: set[str] = set()
    for name, policy in policies.items():
        head_dim = head_dim_of(modules[name])
        for phase in policy.rules if policy and head_dim else ():
            found = config.setting_for(name, type(modules[name]).__name__)
            target = found[1].target_sparsity.get(phase) if found else None
            here = kernels_here(phase, head_dim or 0)
            text = here and difference(config.kernels.get(phase), here, target if isinstance(target, float) else None)
            if text and text not in said:
                said.add(text)
                warn(f"{phase}: {text}")


def restore(model: torch.nn.Module, *, missing_ok: bool = False) -> None:
    """Take everything off again: the model is what it was before :func:`sparsify`.

    Raises:
        ArgumentError: it was not sparsified, and ``missing_ok`` does not allow that.
    """
    if missing_ok and _ATTRIBUTE not in model.__dict__:
        return
    record, modules = record_of(model), dict(model.named_modules())
    for name, policy in record.before.items():
        if name in modules:  # the caller may have taken it out
            attach_policy(modules[name], policy)
    del model.__dict__[_ATTRIBUTE]


def enable(model: torch.nn.Module) -> None:
    """Skip again after :func:`disable`."""
    record_of(model).enabled = True
    _switch(model)


def disable(model: torch.nn.Module) -> None:
    """Run dense until :func:`enable`; nothing is forgotten and nothing counted."""
    record_of(model).enabled = False
    _switch(model)


def set_step(model: torch.nn.Module, step: int | None = None, timestep: float | None = None) -> None:
    """Say which denoising step comes next: early ones may be dense, as the configuration has it.

    Args:
        model: a sparsified one.
        step: its number, from 0.
        timestep: its timestep, which falls from step to step.
    """
    record = record_of(model)
    record.dense_step, record.awaits_step = record.config.is_dense_at(step, timestep), False
    _switch(model)


def await_step(model: torch.nn.Module) -> None:
    """Before the first step, of which nobody has said anything: dense if the configuration has dense steps."""
    record = record_of(model)
    record.dense_step = record.awaits_step = record.config.is_dense_at(0, math.inf)
    _switch(model)


def _switch(model: torch.nn.Module) -> None:
    record, modules = record_of(model), dict(model.named_modules())
    for name in record.before:
        policy = policy_of(modules[name]) if name in modules else None
        if policy is not None:
            policy.enabled = record.enabled and not record.dense_step
            policy.awaits_step = record.enabled and record.awaits_step


def export_config(model: torch.nn.Module) -> dict[str, Any]:
    """What ``config.json`` is to hold under ``sparse_attention_config``: ModelOpt's form, and a block of our own."""
    record = record_of(model)
    modules = attention_modules(model, record.config.targets)
    return section_of(record.config, tuple(dict.fromkeys(type(module).__name__ for module in modules.values())))


def save_pretrained(model: torch.nn.Module, folder: str | Path) -> None:
    """Save a model with its configuration in ``config.json``, whose other keys stay.

    A model that cannot save itself (``model.save_pretrained``) gets its ``config.json`` written or changed alone.

    Raises:
        ArgumentError: the model was not sparsified, or another method's settings stand under our key.
    """
    section, file = export_config(model), Path(folder) / "config.json"
    kept = getattr(getattr(model, "config", None), KEY, None)
    merged({} if kept is None else {KEY: kept}, section)  # refuses before anything is written
    own = getattr(model, "save_pretrained", None)
    if own is not None:
        own(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    document = load_document(file) if file.exists() else {}
    text = json.dumps(merged(document, section), indent=2) + "\n"
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def from_pretrained(model: torch.nn.Module, folder: str | Path, *, count: bool = False) -> torch.nn.Module:
    """Sparsify a model as the ``config.json`` of a folder says; the counterpart of :func:`save_pretrained`.

    Raises:
        ArgumentError: there is nothing of ours in it; else as :func:`sparsify`.
    """
    document = load_document(Path(folder))
    if not is_ours(document.get(KEY)):
        raise expected(f"{folder}", f"a config.json with a {KEY} of ours", "none")
    return sparsify(model, SkipSoftmaxConfig.read(document), count=count)
