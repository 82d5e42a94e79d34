"""What the layers of a worker are told, and their statistics, whatever the engine."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...sparse.policy import attach_policy
from .layers import of_rank, policies_of
from .settings import Settings
from .skipping import Skipping
from .statistics import Statistics
from .thresholds import LayerRules


@dataclass(frozen=True)
class Layer:
    """An attention layer of an engine.

    Args:
        module: which is told.
        heads: query heads of this rank.
        window: keys that a row sees; None: all.
    """

    module: torch.nn.Module
    heads: int
    window: int | None = None


@dataclass(frozen=True)
class Share:
    """Which part of the model is here.

    Args:
        rank: of tensor parallelism.
        ranks: how many there are.
        all_layers: and not those of one pipeline stage.
    """

    rank: int = 0
    ranks: int = 1
    all_layers: bool = True


class Worker:
    """What the layers of a worker are told, read once, and their statistics.

    Args:
        settings: of the deployment.
        layers: those that are computed here, by name.
        share: of the model.
        device: of the layers.
        stat_log: where this engine logs; None: nowhere.
        show: see :class:`Statistics`; None: nobody asks.
    """

    def __init__(
        self,
        settings: Settings,
        layers: Mapping[str, Layer],
        share: Share,
        device: torch.device,
        stat_log: Path | None,
        show: Callable[[list[int]], None] | None,
    ) -> None:
        """Tell the layers; raises ``ArgumentError`` for what cannot be honoured."""
        self.device = device
        self.layers = layers
        self.rules: dict[str, LayerRules] = {}
        self.statistics: Statistics | None = None
        if settings.config is None:
            return
        for name, policy in policies_of(settings.config, layers, all_here=share.all_layers).items():
            layer = layers[name]
            own = of_rank(policy, name, layer.heads, share.rank, share.ranks)
            attach_policy(layer.module, own)
            self.rules[name] = LayerRules(own.rules, layer.window)
        if self.rules and (show is not None or stat_log is not None):
            modules = {name: layers[name].module for name in self.rules}
            self.statistics = Statistics(modules, device, stat_log, show)
            weakref.finalize(self, self.statistics.close)

    def skipping(self, names: list[str], requests: int) -> Skipping | None:
        """What those layers skip, of so many requests at once; None: nothing."""
        rules = {name: self.rules[name] for name in names if name in self.rules}
        if not rules:
            return None
        heads = self.layers[next(iter(rules))].heads
        return Skipping(rules, heads, requests, self.device, count=self.statistics is not None)
