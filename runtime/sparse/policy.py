"""What one attention layer skips: the rules that a configuration resolves to, one for each stage of a request.

A layer without a policy is dense. Front ends (``skimattn.sparse``) attach policies to modules, integrations read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from ..errors import expected

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")
_ATTRIBUTE = "skimattn_policy"


@dataclass(frozen=True)
class PhaseRule:
    """``threshold = factor / len_k ** length_power``, and dense where that is 1 or more.

    Args:
        factor: finite, at least 0; or one for each query head.
        length_power: 0: the factor is the threshold itself; 1: BLASST's scale factor; else a fitted length term.
    """

    factor: float | tuple[float, ...]
    length_power: float = 1.0
    _on_device: dict[torch.device, torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what would make thresholds that mean nothing."""
        factors = self.factor if isinstance(self.factor, tuple) else (self.factor,)
        if not factors or not all(math.isfinite(one) and one >= 0 for one in factors):
            raise expected("factor", "finite floats that are 0 or more", self.factor)
        if not (math.isfinite(self.length_power) and self.length_power >= 0):
            raise expected("length_power", "a finite float that is 0 or more", self.length_power)

    def threshold(self, len_k: int | torch.Tensor, device: torch.device | str = "cpu") -> float | torch.Tensor:
        """What ``skip_softmax_threshold`` takes.

        Args:
            len_k: keys of the request, of all requests if they agree, or an integer tensor ``[B]``.
            device: of the result, where factors differ by head.

        Returns:
            A float where the length and the factor are one number; else float32 ``[B]`` or ``[B, Hq]`` (``[1, Hq]`` for
            a length that is one number, to be expanded), computed on the device without a read-back.
        """
        if isinstance(len_k, torch.Tensor):
            lengths = len_k.to(torch.float32).clamp(min=1.0) ** self.length_power
            factors = self._by_head(len_k.device)
            return _below_one(factors / (lengths if factors.dim() == 0 else lengths[:, None]))
        scale = float(max(len_k, 1)) ** self.length_power
        if isinstance(self.factor, tuple):
            return _below_one(self._by_head(device) / scale)[None]
        ratio = self.factor / scale
        return ratio if ratio < 1 else 0.0

    def prepare(self, device: torch.device | str) -> None:
        """Copy the factors to a device now, so that no later call has to; needed before a CUDA graph is captured."""
        self._by_head(device)

    def _by_head(self, device: torch.device | str) -> torch.Tensor:
        """The factors on a device: copied there once, since a copy from the host cannot be part of a CUDA graph."""
        wanted = torch.device(device)
        if wanted.type == "cuda" and wanted.index is None:
            wanted = torch.device("cuda", torch.cuda.current_device())
        found = self._on_device.get(wanted)
        if found is None:
            found = self._on_device[wanted] = torch.tensor(self.factor, dtype=torch.float32, device=wanted)
        return found


def _below_one(ratio: torch.Tensor) -> torch.Tensor:
    return torch.where(ratio < 1, ratio, 0.0).to(torch.float32)


class Collector(Protocol):
    """Who wants to know what was skipped. Nothing that it does may wait for the device."""

    def counts(self, phase: Phase, batch: int, heads_q: int, device: torch.device) -> torch.Tensor | None:
        """What a call is to add its (visited, skipped) tiles to, as ``stats`` takes it; None: not this call."""


@dataclass
class LayerPolicy:
    """The rules of one attention module.

    Args:
        rules: a stage that is not in it is dense.
        enabled: False: dense, and nothing is counted.
        collector: asked before each call that skips.
        awaits_step: early denoising steps are to be dense, and nobody has said which step comes.
    """

    rules: Mapping[Phase, PhaseRule] = field(default_factory=dict)
    enabled: bool = True
    collector: Collector | None = None
    awaits_step: bool = False

    def rule(self, phase: Phase) -> PhaseRule | None:
        """The rule that holds now; None: dense."""
        return self.rules.get(phase) if self.enabled else None


def policy_of(module: torch.nn.Module) -> LayerPolicy | None:
    """The policy attached to an attention module, or None."""
    found: LayerPolicy | None = getattr(module, _ATTRIBUTE, None)
    return found


def policies_of(model: torch.nn.Module | Mapping[str, torch.nn.Module]) -> dict[str, LayerPolicy]:
    """The policies of a model's modules, or of modules by name."""
    modules = dict(model.named_modules()) if isinstance(model, torch.nn.Module) else model
    return {name: policy for name, module in modules.items() if (policy := policy_of(module)) is not None}


@contextmanager
def computed_dense(model: torch.nn.Module) -> Iterator[None]:
    """In this context all policies of a model are switched off, and as they were after it."""
    policies = [*policies_of(model).values()]
    before = [policy.enabled for policy in policies]
    for policy in policies:
        policy.enabled = False
    try:
        yield
    finally:
        for policy, enabled in zip(policies, before, strict=True):
            policy.enabled = enabled


def attach_policy(module: torch.nn.Module, policy: LayerPolicy | None) -> None:
    """Attach a policy to an attention module, or (None) take the one away that is there."""
    if policy is None:
        module.__dict__.pop(_ATTRIBUTE, None)
        return
    for device in {parameter.device for parameter in module.parameters()}:
        for rule in policy.rules.values() if device.type != "meta" else ():
            rule.prepare(device)  # not later: a graph that was compiled before would be compiled again
    module.__dict__[_ATTRIBUTE] = policy  # not a submodule and not a buffer: state_dict does not show it
